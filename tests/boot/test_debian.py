"""Real Debian images, set up from the machine's package archive: they conform, boot everywhere, and are reproducible.

Setting one up takes minutes under emulation; the root trees stay in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from armvm.disk.detect import open_disk
from armvm.execution import ExecutionState
from armvm.guid import ESP_TYPE
from armvm.image.contents import ImageContents
from armvm.process import run
from conftest import Armvm
from tools.plain_qemu import PLATFORMS, boot, command
from tools.web_servers import nginx

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

EPOCH = "1750000000"
PASSWORD = "correct horse"  # noqa: S105 - of images that exist for minutes
BOOT_SECONDS = 900
IMAGES = ("arm64", "armhf", "both")
# The release alone: its packages do not change from day to day.
FROM = ("--from", "debian:bookworm", "--pockets", "none", "--ssh", "--hostname", "portable")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the images are, gigabytes of them, until the tests of this file have run."""
    path = tmp_path_factory.mktemp("debian")
    hashed = run("openssl", ["passwd", "-6", "-salt", "armvmtest", PASSWORD], timeout_seconds=30)
    (path / "hash").write_bytes(hashed.stdout)
    yield path
    shutil.rmtree(path)


def _build(folder: Path, architecture: str, name: str) -> Path:
    image = folder / name
    arguments = [*FROM, "--arch", architecture, "--password-hash-file", str(folder / "hash")]
    built = subprocess.run(
        [sys.executable, "-m", "armvm", "build", "-o", str(image), *arguments],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
        timeout=4800,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return image


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[str, Path]:
    """One image for each state, and one for both."""
    return {architecture: _build(folder, architecture, f"{architecture}.img") for architecture in IMAGES}


def _report(armvm: Armvm, image: Path) -> dict[str, Any]:
    said = armvm("check", "--format", "json", image, timeout_seconds=600)
    report: dict[str, Any] = json.loads(said.stdout)["reports"][0]
    return report


@pytest.mark.parametrize("name", IMAGES)
def test_the_image_conforms(armvm: Armvm, images: dict[str, Path], name: str) -> None:
    report = _report(armvm, images[name])
    verdicts = {finding["requirement"]: finding["verdict"] for finding in report["findings"]}
    assert {verdict for requirement, verdict in verdicts.items() if requirement.startswith("image.")} == {"pass"}
    assert report["conforms"] is not False


@pytest.mark.parametrize("name", IMAGES)
def test_every_must_and_should_holds(armvm: Armvm, images: dict[str, Path], name: str) -> None:
    report = _report(armvm, images[name])
    assert report["conforms"] is True
    assert {finding["verdict"] for finding in report["findings"]} <= {"pass", "not-applicable"}


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        *(("arm64", "edk2-64"), ("arm64", "uboot-64"), ("armhf", "edk2-32"), ("armhf", "uboot-32")),
        *(("both", "edk2-64"), ("both", "edk2-32"), ("both", "uboot-64"), ("both", "uboot-32")),
    ],
)
def test_it_boots_to_the_login_prompt(images: dict[str, Path], name: str, platform: str) -> None:
    image = images[name]
    before = _digest(image)
    said = boot(
        PLATFORMS[platform],
        image,
        "portable login: ",
        powers_off=False,
        drive="snapshot=on",
        deadline_seconds=BOOT_SECONDS,
    )
    assert "Debian GNU/Linux 12 portable ttyAMA0" in said
    assert _digest(image) == before


def test_it_is_a_working_debian(images: dict[str, Path]) -> None:
    """Logged in: no unit failed, it has keys and an id of its own, and its own update-grub boots it again."""
    argv = command(PLATFORMS["edk2-64"], images["arm64"], drive="snapshot=on")
    guest = pexpect.spawn(argv[0], argv[1:], timeout=BOOT_SECONDS, encoding="utf-8", codec_errors="replace")
    try:
        _log_in(guest)
        assert _output(guest, "systemctl is-system-running --wait; systemctl --failed --no-legend | cat") == "running"
        assert "ssh_host_ed25519_key.pub" in _output(guest, "ls /etc/ssh | cat")
        assert len(_output(guest, "cat /etc/machine-id")) == 32
        assert _output(guest, "findmnt -no FSTYPE /boot/efi") == "vfat"
        assert _output(guest, "systemctl is-active systemd-networkd systemd-resolved ssh | sort -u") == "active"
        guest.sendline(
            "dpkg-reconfigure -f noninteractive grub-efi-arm64 && update-grub && "
            "grep -c hvc0 /boot/grub/grub.cfg && echo grub-'done'"
        )
        guest.expect("grub-done")
        guest.sendline("reboot")
        _log_in(guest)
        guest.sendline("poweroff")
        guest.expect(pexpect.EOF)
    finally:
        guest.close(force=True)


def test_over_http_the_audit_reads_a_small_part(
    armvm: Armvm, images: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """A disk of 2 GiB as qcow2 behind nginx: kernel configuration, modules' lists and the initial RAM disk suffice."""
    served = folder / "served"
    served.mkdir()
    image = served / "arm64.qcow2"
    made = armvm("convert", "-q", images["arm64"], image, "--size", "2G", timeout_seconds=600)
    assert made.returncode == 0, made.stderr
    with nginx(served, tmp_path / "nginx") as server:
        said = armvm("check", "--strict", "--fail-on", "should", f"{server.url}/arm64.qcow2", timeout_seconds=300)
        sent = sum(size for _, size, _ in server.sent())
    assert said.returncode == 0, said.stdout + said.stderr
    assert re.search(r"read [\d.]+ MiB of [\d.]+ MiB in \d+ requests", said.stderr)
    assert sent < image.stat().st_blocks * 512 * 5 // 100
    shutil.rmtree(served)


def _log_in(guest: pexpect.spawn[str]) -> None:
    guest.expect("portable login: ")
    guest.sendline("root")
    guest.expect("Password: ")
    guest.sendline(PASSWORD)
    guest.expect(r"root@portable:~# ")
    guest.sendline("stty -echo; PS1=; bind 'set enable-bracketed-paste off'; echo rea''dy")
    guest.expect(r"ready\r+\n")


def _output(guest: pexpect.spawn[str], line: str) -> str:
    """What a command says on the guest's console."""
    guest.sendline(f"echo; {line}; echo fi''ni")
    guest.expect(r"\r+\n((?:.|\n)*?)fini\r+\n")
    assert guest.match is not None
    return str(guest.match[1]).replace("\r", "").strip()


@pytest.mark.parametrize("name", IMAGES)
def test_other_tools_agree(images: dict[str, Path], folder: Path, name: str) -> None:
    image = images[name]
    verified = run("sgdisk", ["-v", str(image)], timeout_seconds=120)
    assert b"No problems found" in verified.stdout
    with open_disk(image) as disk:
        partitions = ImageContents(disk).table.partitions
        for partition in partitions:
            part = folder / "part"
            offset, size = partition.offset_bytes(512), partition.size_bytes(512)
            copying = ["if=" + str(image), f"of={part}", "bs=1M", f"skip={offset >> 20}", f"count={size >> 20}"]
            run("dd", [*copying, "conv=sparse"], timeout_seconds=600)
            judge = ("fsck.vfat", ["-nv"]) if partition.type_guid == ESP_TYPE else ("e2fsck", ["-fn"])
            run(judge[0], [*judge[1], str(part)], timeout_seconds=600)
            part.unlink()
    assert len(partitions) == (3 if name == "both" else 2)


def test_the_same_recipe_gives_the_same_bytes(images: dict[str, Path], folder: Path) -> None:
    again = _build(folder, "both", "again.img")
    assert _digest(again) == _digest(images["both"])
    again.unlink()


def test_the_states_are_what_the_architectures_say(images: dict[str, Path]) -> None:
    served = {}
    for name, image in images.items():
        with open_disk(image) as disk:
            served[name] = set(ImageContents(disk).boot_programs)
    states = {"arm64": {ExecutionState.AARCH64}, "armhf": {ExecutionState.AARCH32}, "both": set(ExecutionState)}
    assert served == states


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
