"""``armvm check`` and ``armvm inspect`` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from armvm.image.check import CHECKS
from conftest import Armvm
from tools.disk_images import BROKEN, disk_image
from tools.fat_images import save_sparse


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save_sparse(disk_image(), tmp_path / "good.img")


def test_a_good_image_exits_0_and_passes(armvm: Armvm, good: Path) -> None:
    result = armvm("check", "--format", "json", good)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)["reports"][0]
    assert report["conforms"] is None
    assert report["subject"] == {"kind": "image", "name": str(good), "format": "raw", "size_bytes": 35 << 20}
    assert {f["requirement"] for f in report["findings"] if f["verdict"] == "pass"} == {
        *CHECKS,
        "image.self-contained-boot",
    }


def test_every_broken_image_is_named_by_the_command(armvm: Armvm, tmp_path: Path) -> None:
    paths = {}
    for number, (what, (_, make)) in enumerate(BROKEN.items()):
        with make() as disk:
            paths[what] = str(save_sparse(disk, tmp_path / f"{number}.img"))
    assert len(paths) >= 25
    result = armvm("check", "--format", "json", *paths.values(), timeout_seconds=120)
    assert result.returncode == 1, result.stderr
    reports = {report["subject"]["name"]: report for report in json.loads(result.stdout)["reports"]}
    for what, path in paths.items():
        failed = [f["requirement"] for f in reports[path]["findings"] if f["verdict"] == "fail"]
        assert failed == [BROKEN[what][0]], what


def test_should_and_strict_decide_the_exit_code(armvm: Armvm, good: Path, tmp_path: Path) -> None:
    firmware = save_sparse(BROKEN["EDK2"][1](), tmp_path / "firmware.img")
    assert armvm("check", firmware).returncode == 0
    assert armvm("check", "--fail-on", "should", firmware).returncode == 1
    assert armvm("check", "--strict", good).returncode == 1


def test_outputs_go_to_files_in_their_formats(armvm: Armvm, good: Path, tmp_path: Path) -> None:
    result = armvm("check", "-o", "json:a.json", "-o", "text:b.txt", "-o", "c.txt", good, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == "armvm.report/1"
    assert (tmp_path / "b.txt").read_text() == (tmp_path / "c.txt").read_text()
    assert armvm("check", "-o", "sarif:x", good, cwd=tmp_path).returncode == 2


def test_the_time_is_source_date_epoch(armvm: Armvm, good: Path) -> None:
    result = armvm("check", "--format", "json", good, env={"SOURCE_DATE_EPOCH": "1000000000"})
    assert json.loads(result.stdout)["created"] == "2001-09-09T01:46:40Z"
    assert armvm("check", "--format", "json", good, env={"SOURCE_DATE_EPOCH": "soon"}).returncode == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.img", b""),
        ("gzip.img", b"\x1f\x8b\x08\x00" + bytes(4096)),
        ("cut.qcow2", b"QFI\xfb\x00\x00\x00\x03"),
    ],
)
def test_an_unreadable_image_exits_65_with_one_clear_line(
    armvm: Armvm, tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = armvm("check", path)
    assert result.returncode == 65
    assert name in result.stderr
    assert "Traceback" not in result.stderr
    assert path.read_bytes() == content


def test_a_missing_image_exits_65_and_the_others_are_judged(armvm: Armvm, good: Path, tmp_path: Path) -> None:
    result = armvm("check", "--format", "json", tmp_path / "none.img", good)
    assert result.returncode == 65
    assert len(json.loads(result.stdout)["reports"]) == 1
    assert "none.img" in result.stderr


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes_come_to_a_finding_or_an_error(armvm: Armvm, tmp_path: Path, seed: int) -> None:
    import random

    path = tmp_path / "random.img"
    path.write_bytes(random.Random(seed).randbytes(200_000 + seed))
    started = time.monotonic()
    result = armvm("check", path)
    assert result.returncode in (1, 65)
    assert "Traceback" not in result.stderr
    assert time.monotonic() - started < 20  # a hang, not a slow machine


def test_control_characters_in_names_are_escaped(armvm: Armvm, tmp_path: Path) -> None:
    path = save_sparse(disk_image({"EFI/x/evil\u202e.efi": b"MZ"}), tmp_path / "a\x1b[31m.img")
    for arguments in (["check", path], ["inspect", path]):
        result = armvm(*arguments)
        assert "\x1b" not in result.stdout + result.stderr
        assert "\u202e" not in result.stdout + result.stderr


def test_a_large_sparse_qcow2_costs_what_a_small_one_does(armvm: Armvm, good: Path, tmp_path: Path) -> None:
    from armvm.disk.gpt import read_partition_table
    from armvm.disk.raw import RawDisk

    with good.open("r+b") as file:
        file.truncate(20 << 30)
    large = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", good, large], check=True, timeout=120)
    with RawDisk(good) as disk:
        assert read_partition_table(disk).problems  # the backup is not at the end any more
    assert large.stat().st_size < 4 << 20
    before = os.times()
    result = armvm("check", "--format", "json", large)
    after = os.times()
    report = json.loads(result.stdout)["reports"][0]
    assert report["subject"]["size_bytes"] == 20 << 30
    assert [f["requirement"] for f in report["findings"] if f["verdict"] == "fail"] == ["image.gpt"]
    assert after.children_user - before.children_user < 5  # a walk through 20 GiB takes longer on any machine


def test_inspect_says_the_facts(armvm: Armvm, good: Path) -> None:
    result = armvm("inspect", "--json", good)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["schema"] == "armvm.inspect/1"
    assert facts["partition_table"]["kind"] == "gpt"
    assert facts["partition_table"]["partitions"][0]["content"]["kind"] == "vfat"
    programs = {program["boots"]: program for program in facts["efi_programs"]}
    assert programs["aarch64"]["command_line"] == "quiet"
    assert programs["aarch32"]["kind"] == "unified kernel image"
    assert facts["os"] == "Test"
    text = armvm("inspect", good).stdout
    assert "unified kernel image" in text
    assert "quiet" in text


@pytest.mark.parametrize("what", ["no partition table", "fat chain-loop", "boot program is text", "no file system"])
def test_inspect_of_a_broken_image_is_still_facts(armvm: Armvm, tmp_path: Path, what: str) -> None:
    path = save_sparse(BROKEN[what][1](), tmp_path / "broken.img")
    result = armvm("inspect", path)
    assert result.returncode == 0, result.stderr
