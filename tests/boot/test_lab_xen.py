"""Nested Xen for real: the very same image boots in a domain, the probe judges Xen, and what cannot be is said.

The host is made once (minutes, under emulation) and kept in the user's own folders, as `armvm lab` keeps it: that is
what makes the next run of these tests short.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import zstandard

from armvm.disk.detect import open_disk
from armvm.disk.gpt import read_partition_table
from armvm.execution import ExecutionState
from armvm.image.build import build_image
from armvm.image.recipe import KernelRecipe, Recipe
from armvm.process import run
from conftest import Armvm
from tools.debian_images import both_states_image
from tools.kernels import debian_kernel
from tools.tiny_guest import READY, tiny_initramfs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

AARCH64, AARCH32 = ExecutionState
TIME = 1_700_000_000
SECONDS = 3000.0


@pytest.fixture(scope="module")
def home() -> str:
    """Where hosts are kept between runs of these tests, apart from the user's own."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "armvm" / "test-lab")


@pytest.fixture
def lab(armvm: Armvm, home: str, monkeypatch: pytest.MonkeyPatch) -> Armvm:
    """The command line, with the tests' own frozen hosts."""
    monkeypatch.setenv("ARMVM_HOME", home)
    return armvm


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable image of a Debian kernel and a guest of a few kilobytes, for AArch64."""
    folder = tmp_path_factory.mktemp("image")
    kernel = debian_kernel(AARCH64).image
    initrd = tiny_initramfs(AARCH64, folder)
    path = folder / "tiny.img"
    recipe = Recipe(kernels={AARCH64: KernelRecipe(kernel, (initrd,), "console=hvc0 panic=-1")})
    build_image(recipe, path, timestamp=TIME)
    return path


def test_the_same_image_boots_in_a_domain(lab: Armvm, image: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    result = lab("lab", "run", "xen", image, "--json", timeout_seconds=SECONDS)
    assert result.returncode == 0, result.stderr + result.stdout
    value = json.loads(result.stdout)
    assert value["booted"]
    assert value["unchanged"]
    assert value["sha256"] == before == hashlib.sha256(image.read_bytes()).hexdigest()
    assert READY in value["console_tail"]


def test_a_guest_that_never_says_it_fails_with_the_reason(lab: Armvm, image: Path, tmp_path: Path) -> None:
    """What is on the disk boots; what is waited for never comes."""
    result = lab("lab", "run", "xen", image, "--until", "no such words", timeout_seconds=SECONDS)
    assert result.returncode == 1
    assert "on nested xen" in result.stderr
    assert "no such words" in result.stderr


def test_what_it_cannot_do_is_said_before_anything_starts(lab: Armvm, image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "i.qcow2"
    assert lab("convert", image, copy).returncode == 0
    result = lab("lab", "run", "xen", copy, timeout_seconds=60)
    assert result.returncode == 2
    assert "takes raw images, not qcow2" in result.stderr


def findings_of(report: Path) -> dict[str, dict[str, Any]]:
    return {finding["requirement"]: finding for finding in json.loads(report.read_text())["reports"][0]["findings"]}


def test_the_probe_judges_xen(lab: Armvm, tmp_path: Path) -> None:
    report = tmp_path / "xen.json"
    result = lab("lab", "run", "xen", "--probe", "-o", f"json:{report}", timeout_seconds=SECONDS)
    assert result.returncode == 1, result.stderr
    # EDK2's ArmVirtXen keeps no variables and knows no time: facts of this platform, and all that it lacks.
    others = {name: finding for name, finding in findings_of(report).items() if finding["verdict"] != "pass"}
    assert set(others) == {"firmware.rtc", "firmware.variables-persist"}, others
    findings = findings_of(report)
    assert "Xen PV" in findings["platform.console"]["message"]
    assert "Xen PV bus" in json.dumps(findings["platform.hotplug-block"])


def test_an_image_is_not_written_to(lab: Armvm, image: Path, tmp_path: Path) -> None:
    """Not even one that nobody may write to anyway."""
    copy = tmp_path / "read-only.img"
    shutil.copyfile(image, copy)
    copy.chmod(0o400)
    assert lab("lab", "run", "xen", copy, "--json", timeout_seconds=SECONDS).returncode == 0


@pytest.fixture(scope="module")
def debian() -> Path:
    """A real Debian for both states, kept in the user's cache."""
    return both_states_image()


def test_a_real_debian_comes_to_its_login_prompt(lab: Armvm, debian: Path) -> None:
    before = _digest(debian)
    result = lab(
        "lab", "run", "xen", debian, "--until", "portable login: ", "--timeout", "1800", timeout_seconds=SECONDS
    )
    assert result.returncode == 0, result.stderr
    assert "hvc0" in result.stdout
    assert _digest(debian) == before


def test_the_same_image_comes_to_its_login_prompt_in_aarch32(lab: Armvm, debian: Path) -> None:
    words = ("--arch", "aarch32", "--memory", "1G", "--until", "portable login: ", "--timeout", "1800")
    result = lab("lab", "run", "xen", debian, *words, timeout_seconds=SECONDS)
    assert result.returncode == 0, result.stderr
    assert "armmp-lpae" in result.stdout


def test_without_the_xen_disk_driver_it_fails_and_the_reason_is_said(lab: Armvm, debian: Path, tmp_path: Path) -> None:
    """The initial RAM disk's xen-blkfront under another name: GRUB still loads everything, Linux finds no root."""
    image = tmp_path / "no-xen.img"
    run("cp", ["--sparse=always", str(debian), str(image)], timeout_seconds=300)
    _hide_module(image, "xen-blkfront")
    result = lab("lab", "run", "xen", image, "--until", "portable login: ", "--timeout", "420", timeout_seconds=SECONDS)
    assert result.returncode == 1
    assert "guest.xen-pv" in result.stderr
    assert "xen_blkfront" in result.stderr


def _hide_module(image: Path, name: str) -> None:
    """Rename a module in the initial RAM disk of ``image``'s arm64 system (a name of the same length)."""
    with open_disk(image) as disk:
        table = read_partition_table(disk)
    for partition in table.partitions:
        root = f"{image}?offset={partition.first_lba * 512}"
        listed = run("debugfs", ["-R", "ls -p /boot", root], timeout_seconds=60, check=False).stdout.decode()
        found = re.search(r"/(initrd\.img-[^/]*-arm64)/", listed)
        if found is None:
            continue
        packed = run("debugfs", ["-R", f"cat /boot/{found[1]}", root], timeout_seconds=60).stdout
        content = zstandard.ZstdDecompressor().stream_reader(packed).read()
        whole = f"{name}.ko\0".encode()  # the name of the file in the archive; modules.dep goes on naming it
        assert whole in content
        file, commands = image.with_name("initrd"), image.with_name("commands")
        file.write_bytes(zstandard.compress(content.replace(whole, f"{name[:-1]}X.ko\0".encode()), 3))
        commands.write_text(f"rm /boot/{found[1]}\nwrite {file} /boot/{found[1]}\n")
        run("debugfs", ["-w", "-f", str(commands), root], timeout_seconds=60)
        return
    pytest.fail("no arm64 system in the image")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
