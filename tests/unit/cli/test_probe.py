"""``armvm probe image`` and ``read`` as a user runs them; ``run`` boots, and is tested where the boots are."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from armvm.guest.check import check_image
from armvm.platform.check import CHECKS
from armvm.platform.instructions import instructions
from armvm.spec.catalogue import Topic, requirements_of
from armvm.spec.verdict import Level
from conftest import Armvm
from tools.disk_images import disk_image
from tools.fat_images import save_sparse
from tools.probe_logs import good


def good_log() -> bytes:
    """One VM instance's console from its first start to its last, Linux included."""
    logs = good().logs()
    return "".join(text for instance, text, _ in logs if instance in {logs[0][0], "linux"}).encode()


@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk", "vhdx", "vhd"])
def test_the_probes_disk_is_a_portable_image(armvm: Armvm, tmp_path: Path, form: str) -> None:
    from armvm.disk.detect import open_disk

    path = tmp_path / f"probe.{form}"
    result = armvm("probe", "image", "-o", path)
    assert result.returncode == 0, result.stderr
    with open_disk(path) as disk:
        assert disk.format == {"vhd": "vpc"}.get(form, form)
        assert not check_image(disk, states=list(ExecutionState)).failed([Level.MUST])
    subprocess.run(["qemu-img", "info", path], check=True, capture_output=True, timeout=60)
    again = armvm("probe", "image", "-o", path)
    assert again.returncode == 69
    assert "already there" in again.stderr
    empty = armvm("probe", "read", path)
    assert empty.returncode == 65, "nobody has booted it"


def test_it_says_how_to_boot_it_everywhere(armvm: Armvm, tmp_path: Path) -> None:
    said = armvm("probe", "image", "-o", tmp_path / "probe.img").stdout
    assert all(entry.name in said for entry in instructions().values())
    one = armvm("probe", "image", "-o", tmp_path / "other.img", "--for", "xen").stdout
    assert "xl create" in one
    assert "Azure" not in one
    assert "other.img" in one


def test_a_log_is_judged_wherever_it_comes_from(armvm: Armvm, tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    lines = good_log().replace(b"\r\n", b"\n").splitlines()
    log.write_bytes(b"\x1b[2Jwelcome\r\n" + b"".join(b"[  12.3] " + line + b"\r\n" for line in lines) + b"bye\r\n")
    result = armvm("probe", "read", "--format", "json", log)
    assert result.returncode == 0, result.stdout
    document = json.loads(result.stdout)
    report = document["reports"][0]
    assert report["subject"]["kind"] == "platform"
    topics = (Topic.FIRMWARE, Topic.DESCRIPTION, Topic.PLATFORM)
    assert [f["requirement"] for f in report["findings"]] == [r.id for r in requirements_of("vmspec-1.0", *topics)]
    verdicts = {f["requirement"]: f["verdict"] for f in report["findings"]}
    assert verdicts["firmware.uefi"] == "pass"
    assert verdicts["description.fdt"] == "pass"


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_log_that_is_cut_off_is_judged_as_far_as_it_goes(armvm: Armvm, tmp_path: Path, part: float) -> None:
    log = tmp_path / "cut.log"
    content = good_log()
    log.write_bytes(content[: int(len(content) * part)])
    report = json.loads(armvm("probe", "read", "--format", "json", log).stdout)["reports"][0]
    verdicts = [f["verdict"] for f in report["findings"]]
    assert "fail" not in verdicts
    assert "unknown" in verdicts
    assert report["conforms"] is None


def test_what_no_probe_has_written_is_refused(armvm: Armvm, tmp_path: Path) -> None:
    log, disk = tmp_path / "other.log", save_sparse(disk_image(), tmp_path / "other.img")
    log.write_bytes(b"login: \x1b[31m\x00\xff" * 1000)
    for path in (log, disk, tmp_path / "none"):
        result = armvm("probe", "read", path)
        assert result.returncode == 65
        assert path.name in result.stderr
        assert "Traceback" not in result.stderr


def test_every_platform_requirement_has_a_check() -> None:
    topics = (Topic.FIRMWARE, Topic.DESCRIPTION, Topic.PLATFORM)
    ids = {entry.id for profile in ("vmspec-1.0", "vmspec-2.0") for entry in requirements_of(profile, *topics)}
    assert ids == set(CHECKS)


def test_a_machine_that_cannot_be_is_refused_with_the_clause(armvm: Armvm) -> None:
    result = armvm("probe", "run", "--gic", "2", "--vcpus", "9")
    assert result.returncode == 2
    assert "8 cores" in result.stderr
