"""Repaired images judged by sgdisk, sfdisk, fsck.vfat and qemu-img; and repairs killed at random moments."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.disk.gpt import read_partition_table
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.process import run
from armvm.repair.journal import journal_path
from armvm.units import MIB
from conftest import Armvm
from tools.disk_images import BROKEN
from tools.fat_images import save_sparse
from tools.repairs import REPAIRED, mbr_disk, much_to_repair, plan

SGDISK_FAULTS = ("Problem:", "Identified", "corrupt", "CRC", "Warning", "Caution")


def judge(path: Path, *, first_lba: int = 2048) -> None:
    """sgdisk finds no problem in the table, fsck.vfat none in the ESP."""
    said = run("sgdisk", ["-v", str(path)], timeout_seconds=30, check=False)
    text = said.stdout.decode() + said.stderr
    assert "No problems found" in text
    assert not any(word in text for word in SGDISK_FAULTS), text
    with RawDisk(path) as disk:
        table = read_partition_table(disk)
        (esp,) = (partition for partition in table.partitions if partition.is_esp)
        assert esp.first_lba == first_lba
        volume = save_sparse(esp.slice(disk), path.with_suffix(".esp"))
    checked = run("fsck.vfat", ["-n", "-v", str(volume)], timeout_seconds=30, check=False)
    assert checked.returncode == 0, checked.stdout.decode()


@pytest.mark.parametrize("what", REPAIRED)
def test_sgdisk_and_fsck_find_nothing_in_a_repaired_image(what: str, tmp_path: Path) -> None:
    with BROKEN[what][1]() as disk, plan(disk)[1] as repaired:
        judge(save_sparse(repaired, tmp_path / "repaired.img"))


def test_sgdisk_and_sfdisk_read_what_was_an_mbr(tmp_path: Path) -> None:
    end = 2048 + 33 * MIB // 512
    logical = [(0x83, end + 2048, 2048), (0x82, end + 6144, 2048)]
    image = mbr_disk(((0xEF, 2048, end - 2048),), size_bytes=40 * MIB, logical=logical)
    before = tmp_path / "before.img"
    before.write_bytes(image)
    old = json.loads(run("sfdisk", ["--json", str(before)], timeout_seconds=20).stdout)["partitiontable"]["partitions"]
    _, repaired = plan(MemoryDisk(bytes(image)))
    after = save_sparse(repaired, tmp_path / "after.img")
    judge(after)
    new = json.loads(run("sfdisk", ["--json", str(after)], timeout_seconds=20).stdout)["partitiontable"]
    assert new["label"] == "gpt"
    kept = {(p["node"].removeprefix(str(before)), p["start"], p["size"]) for p in old if p["type"] != "f"}
    assert {(p["node"].removeprefix(str(after)), p["start"], p["size"]) for p in new["partitions"]} == kept


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vhdx", "vdi"])
def test_every_format_is_repaired_where_it_stands(format: str, armvm: Armvm, tmp_path: Path) -> None:
    image = made(tmp_path, format)
    result = armvm("repair", "--write", "--format", "json", image)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["mode"] == "written"
    assert document["after"]["conforms"] is not False
    assert not journal_path(image).exists()
    if format not in ("raw", "vdi"):  # qemu-img checks no raw image, and vdi only in part
        run("qemu-img", ["check", "-f", format, str(image)], timeout_seconds=30)
    run("qemu-img", ["convert", "-O", "raw", str(image), str(tmp_path / "after.img")], timeout_seconds=60)
    judge(tmp_path / "after.img")
    assert armvm("repair", image).stdout.endswith("nothing to repair\n")


@pytest.mark.parametrize("name", ["out.img", "out.qcow2"])
def test_a_copy_is_repaired_and_its_source_left_alone(name: str, armvm: Armvm, tmp_path: Path) -> None:
    image = much_to_repair(tmp_path / "disk.img")
    before = image.read_bytes()
    result = armvm("repair", "-o", tmp_path / name, image)
    assert result.returncode == 0, result.stderr
    assert image.read_bytes() == before
    run("qemu-img", ["convert", "-O", "raw", str(tmp_path / name), str(tmp_path / "after.img")], timeout_seconds=60)
    judge(tmp_path / "after.img")
    assert (tmp_path / name).stat().st_blocks * 512 < 4 * MIB


def test_an_image_that_a_vm_has_open_is_refused(armvm: Armvm, tmp_path: Path) -> None:
    for kind in ("raw", "qcow2"):
        image = made(tmp_path, kind)
        before = digest(image)
        command = ["qemu-system-aarch64", "-M", "none", "-display", "none", "-monitor", "stdio"]
        drive = f"if=none,id=d,format={kind},file={image}"
        with subprocess.Popen([*command, "-drive", drive], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
            try:
                assert machine.stdout is not None
                assert machine.stdout.read(4) == b"QEMU"
                result = armvm("repair", "--write", image)
            finally:
                machine.kill()
        assert result.returncode == 69, result.stdout
        assert "in use" in result.stderr
        assert digest(image) == before
        assert not journal_path(image).exists()


def test_a_stream_optimized_vmdk_is_refused_before_anything_is_written(armvm: Armvm, tmp_path: Path) -> None:
    raw = much_to_repair(tmp_path / "disk.img")
    image = tmp_path / "disk.vmdk"
    options = ["-O", "vmdk", "-o", "subformat=streamOptimized"]
    run("qemu-img", ["convert", *options, str(raw), str(image)], timeout_seconds=60)
    before = digest(image)
    result = armvm("repair", "--write", image)
    assert result.returncode == 65
    assert "-o OUT" in result.stderr
    assert digest(image) == before
    assert not journal_path(image).exists()


# Killed


def made(folder: Path, format: str) -> Path:
    raw = much_to_repair(folder / "made.img")
    if format == "raw":
        return raw
    image = folder / f"made.{format}"
    run("qemu-img", ["convert", "-O", format, str(raw), str(image)], timeout_seconds=60)
    return image


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(path: Path) -> str:
    """A digest of the disk as a VM sees it."""
    with open_disk(path) as disk:
        return digest_of(disk)


def digest_of(disk: Disk) -> str:
    total = hashlib.sha256()
    for start in range(0, disk.size_bytes, 4 * MIB):
        total.update(disk.read(start, min(4 * MIB, disk.size_bytes - start)))
    return total.hexdigest()


@dataclass
class Tally:
    """How many images were found in which state."""

    untouched: int = 0
    finished: int = 0
    interrupted: int = 0


def command(image: Path, *options: str) -> list[str]:
    """A repair at a fixed time, so that every one writes the same bytes."""
    return ["env", "SOURCE_DATE_EPOCH=1700000000", sys.executable, "-m", "armvm", "repair", *options, str(image)]


def kill_at(arguments: list[str], seconds: float, journal: Path | None = None) -> bool:
    """Run a repair and kill it after so many seconds (with ``journal``: from when that appears). Whether it was."""
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while journal is not None and process.poll() is None and not journal.exists():
            time.sleep(0.0002)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0002)
        killed = process.poll() is None
        if killed:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    return killed


def timed(arguments: list[str], journal: Path) -> tuple[float, float]:
    """How many seconds a repair takes, and for how many of them its journal is there."""
    started = time.monotonic()
    seen = 0
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            seen += journal.exists()
            time.sleep(0.0002)
    assert process.returncode == 0
    return time.monotonic() - started, max(seen * 0.0003, 0.01)


def kill_repairs(folder: Path, format: str, count: int, seed: int) -> Tally:
    """Kill ``count`` repairs at random moments; each image must be as before, or be finished or undone exactly."""
    pristine = made(folder, format)
    before, before_content = digest(pristine), content(pristine)
    image = folder / f"image.{format}"
    shutil.copy(pristine, image)
    took, window = timed(command(image, "--write"), journal_path(image))
    after_content = content(image)
    assert after_content != before_content
    tally = Tally()
    source = random.Random(seed)
    journal = journal_path(image)
    for number in range(count):
        shutil.copy(pristine, image)
        # Half of them anywhere, half of them while the journal or the image is being written.
        near = number % 2 == 0
        seconds = source.uniform(0, 1.2 * window) if near else source.uniform(0, took)
        kill_at(command(image, "--write"), seconds, journal if near else None)
        if not journal.exists():
            here = content(image)
            if here == before_content:
                assert digest(image) == before
                tally.untouched += 1
            else:
                assert here == after_content
                tally.finished += 1
            continue
        tally.interrupted += 1
        # Settle it one way or the other, killed once more on the way there.
        option, expected = source.choice((("--resume", after_content), ("--undo", before_content)))
        kill_at(command(image, source.choice(("--resume", "--undo"))), source.uniform(0, took))
        if journal.exists():
            subprocess.run(command(image, option), check=True, stdout=subprocess.DEVNULL, timeout=120)
            assert content(image) in (expected, before_content)
            if content(image) != expected:
                assert digest(image) == before  # the journal had not been whole: nothing was ever written
        else:
            assert content(image) in (before_content, after_content)
        assert not journal.exists()
        if format != "raw":
            # Clusters that nobody uses are all that a kill may leave in the container (exit code 3).
            checked = run("qemu-img", ["check", "-f", format, str(image)], timeout_seconds=30, check=False)
            assert checked.returncode in (0, 3), checked.stdout.decode()
    return tally


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_no_image_is_lost_when_a_repair_is_killed(format: str, tmp_path: Path) -> None:
    tally = kill_repairs(tmp_path, format, 8, seed=4)
    assert tally.untouched + tally.finished + tally.interrupted == 8


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_no_image_is_lost_in_200_kills(format: str, tmp_path: Path) -> None:
    tally = kill_repairs(tmp_path, format, 200, seed=200)
    print(f"{format}: {tally}")  # noqa: T201 - what the proof found
    assert tally.interrupted > 10
    assert tally.untouched > 10
