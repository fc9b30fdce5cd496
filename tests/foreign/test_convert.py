"""What ``armvm convert`` writes, judged by QEMU, sgdisk, dosfstools, mtools and e2fsprogs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armvm.cli.main import main
from armvm.disk.detect import open_disk
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import Partition
from tools.containers import MIB, converted, patch, qemu_img, scattered_raw
from tools.guest_disks import ESP_FILES, ESP_UNIQUE, ROOT_FILES, ROOT_UNIQUE, SWAP_UNIQUE, guest_disk, run

QEMU_NAMES = {"vhd": "vpc", "img": "raw"}
SOURCES = ("raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi")
TARGETS = ("raw", "qcow2", "vmdk", "vhdx", "vhd", "vdi")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 24 MiB in every format that there is."""
    folder = tmp_path_factory.mktemp("images")
    raw = folder / "disk.raw"
    scattered_raw(raw, 24 * MIB)
    result = {"raw": raw}
    for form in SOURCES[1:]:
        options = ("-o", "subformat=dynamic,force_size=on") if form == "vpc" else ()
        result[form] = converted(raw, folder / f"disk.{form}", form, *options)
    return result


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest_disk(tmp_path_factory.mktemp("guest") / "guest.img")


PAIRS = {
    *((source, "raw") for source in SOURCES),
    *(("raw", target) for target in TARGETS),
    *(("qcow2", target) for target in TARGETS),
    *(("vmdk", "qcow2"), ("vhdx", "vmdk"), ("vpc", "vhdx"), ("vdi", "vhd")),
}


@pytest.mark.parametrize(("source", "target"), sorted(PAIRS))
def test_a_format_into_another(images: dict[str, Path], tmp_path: Path, source: str, target: str) -> None:
    out = tmp_path / f"out.{target}"
    assert main(["convert", "-q", str(images[source]), str(out)]) == 0
    form = QEMU_NAMES.get(target, target)
    qemu_img("compare", "-f", "raw", "-F", form, images["raw"], out)
    if target in ("qcow2", "vmdk", "vhdx", "vdi"):
        qemu_img("check", "-f", form, out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("a.qcow2", ("--compress",), {"compression-type": "zlib"}),
        ("a.qcow2", ("--compress", "zstd"), {"compression-type": "zstd"}),
        ("a.vmdk", ("--subformat", "streamOptimized"), {"create-type": "streamOptimized"}),
        ("a.vmdk", (), {"create-type": "monolithicSparse"}),
    ],
)
def test_kinds_of_a_format(
    images: dict[str, Path], tmp_path: Path, name: str, options: tuple[str, ...], found: dict[str, str]
) -> None:
    out = tmp_path / name
    assert main(["convert", "-q", str(images["raw"]), str(out), *options]) == 0
    form = out.suffix[1:]
    qemu_img("compare", "-f", "raw", "-F", form, images["raw"], out)
    data = json.loads(qemu_img("info", "-f", form, "--output=json", out))["format-specific"]["data"]
    assert {key: data[key] for key in found} == found
    if form == "vmdk":
        assert b'SPARSE "a.vmdk"' in out.read_bytes()[:4096], "a vmdk tells its own name"


def test_dynamic_and_static_kinds(guest: Path, tmp_path: Path) -> None:
    size = guest.stat().st_size
    for form, kind in (("vhd", "dynamic"), ("vhdx", "fixed"), ("vdi", "static")):
        out = tmp_path / f"out.{form}"
        assert main(["convert", "-q", str(guest), str(out), "--subformat", kind]) == 0
        qemu_img("compare", "-f", "raw", "-F", QEMU_NAMES.get(form, form), guest, out)
        assert (out.stat().st_size < size) is (kind == "dynamic")


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_a_vhd_is_not_rounded_up_to_its_geometry(guest: Path, tmp_path: Path, kind: str) -> None:
    """The backup GPT has to be at the end of what the VM sees, and Azure wants whole MiB."""
    out = tmp_path / "out.vhd"
    assert main(["convert", "-q", str(guest), str(out), "--subformat", kind]) == 0
    size = guest.stat().st_size
    assert size % MIB == 0
    assert json.loads(qemu_img("info", "-f", "vpc", "--output=json", out))["virtual-size"] == size
    if kind == "fixed":
        assert out.stat().st_size == size + 512
    with open_disk(out) as disk:
        assert (disk.format, disk.size_bytes) == ("vpc", size)
        assert not read_partition_table(disk).serious_problems


def _partitions(image: Path) -> tuple[int, int, tuple[Partition, ...]]:
    with open_disk(image) as disk:
        table = read_partition_table(disk)
        assert not table.serious_problems
        return disk.sector_size, disk.size_bytes, table.partitions


def _extract(image: Path, number: int, to: Path) -> Path:
    with open_disk(image) as disk:
        part = next(p for p in read_partition_table(disk).partitions if p.number == number).slice(disk)
        with to.open("wb") as file:
            for offset in range(0, part.size_bytes, MIB):
                file.write(part.read(offset, min(MIB, part.size_bytes - offset)))
    return to


def _judge_guest(image: Path, tmp_path: Path, *, sector_size: int) -> None:
    """Everything of the guest's disk is still there, and sound in everybody's eyes."""
    found, _, partitions = _partitions(image)
    assert found == sector_size
    assert [(p.number, p.unique_guid, p.name, p.attributes) for p in partitions] == [
        (1, ESP_UNIQUE, "EFI ☃", 1),
        (2, ROOT_UNIQUE, "root", 1 << 60),
        (3, SWAP_UNIQUE, "swap", 0),
    ]
    if sector_size == 512:
        assert "No problems found" in run("sgdisk", "-v", image)
    esp = _extract(image, 1, tmp_path / "esp")
    run("fsck.vfat", "-n", esp)
    assert esp.read_bytes()[11:13] == sector_size.to_bytes(2, "little")
    for name, content in ESP_FILES.items():
        out = tmp_path / "file"
        run("mcopy", "-n", "-o", "-i", esp, f"::{name}", out)
        assert out.read_bytes() == content, name
    listing = run("mdir", "-/", "-a", "-i", esp, "::")
    assert listing.count("2017-07-14   2:40") >= len(ESP_FILES) + 5, "files and folders keep their times"
    assert "GUEST-ESP" in listing
    assert "CAFE-0123" in listing
    assert "Directory for ::/void/deep" in listing
    assert run("mattrib", "-i", esp, "::/empty").split()[:2] == ["A", "SH"]
    root = _extract(image, 2, tmp_path / "root")
    run("e2fsck", "-fn", root)
    for name, content in ROOT_FILES.items():
        run("debugfs", "-R", f"dump /{name} {tmp_path / 'file'}", root)
        assert (tmp_path / "file").read_bytes() == content
    swap = _extract(image, 3, tmp_path / "swap").read_bytes()
    assert swap[4086:4096] == b"SWAPSPACE2"


def test_other_sectors_and_back(guest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _judge_guest(guest, tmp_path, sector_size=512)
    wide, back, again = tmp_path / "wide.qcow2", tmp_path / "back.img", tmp_path / "again.qcow2"
    assert main(["convert", str(guest), str(wide), "--sector-size", "4096"]) == 0
    notes = capsys.readouterr().err
    assert "partition 1: its file system is rebuilt as FAT32 with 4096-byte sectors, 36 MiB becomes 257 MiB" in notes
    assert "partition 2: moves" in notes
    assert "partition 3: moves" in notes
    _judge_guest(wide, tmp_path, sector_size=4096)
    with open_disk(wide) as disk:  # aligned anew, for what was moved
        assert all(p.offset_bytes(4096) % MIB == 0 for p in read_partition_table(disk).partitions)
    assert main(["convert", "-q", str(guest), str(again), "--sector-size", "4096"]) == 0
    assert again.read_bytes() == wide.read_bytes(), "the same input gives the same bytes"
    assert main(["convert", "-q", str(wide), str(back), "--sector-size", "512"]) == 0
    _judge_guest(back, tmp_path, sector_size=512)
    assert back.stat().st_blocks * 512 < 8 * MIB


def test_what_can_stay_keeps_its_place(guest: Path, tmp_path: Path) -> None:
    """There and back with an ESP that is large enough: nothing moves."""
    disk = guest_disk(tmp_path / "disk.img", esp_mib=260)
    wide, back = tmp_path / "wide.img", tmp_path / "back.img"
    assert main(["convert", "-q", str(disk), str(wide), "--sector-size", "4096"]) == 0
    assert main(["convert", "-q", str(wide), str(back), "--sector-size", "512"]) == 0
    _, size, before = _partitions(disk)
    _, size_wide, between = _partitions(wide)
    _, size_back, after = _partitions(back)
    assert size == size_wide == size_back
    places = [p.offset_bytes(4096) for p in between]
    assert places[:2] == [p.offset_bytes(512) for p in before][:2]
    assert places == [p.offset_bytes(512) for p in after]
    assert [p.size_bytes(512) for p in before] == [p.size_bytes(4096) for p in between]


def test_growing(guest: Path, tmp_path: Path) -> None:
    plain, grown = tmp_path / "plain.img", tmp_path / "grown.qcow2"
    assert main(["convert", "-q", str(guest), str(plain), "--size", "+64M"]) == 0
    _judge_guest(plain, tmp_path, sector_size=512)
    _, size, before = _partitions(guest)
    assert plain.stat().st_size == size + 64 * MIB
    assert _partitions(plain)[2] == before
    again = tmp_path / "again.qcow2"
    for out in (grown, again):
        assert main(["convert", "-q", str(guest), str(out), "--size", "256M", "--grow-partition", "last"]) == 0
    assert grown.read_bytes() == again.read_bytes(), "resize2fs writes no time of its own"
    back = tmp_path / "grown.img"
    qemu_img("convert", "-O", "raw", grown, back)
    _judge_guest(back, tmp_path, sector_size=512)
    _, size, after = _partitions(back)
    assert size == 256 * MIB
    root = after[1]
    assert root.offset_bytes(512) + root.size_bytes(512) == 255 * MIB
    assert f"Block count:              {root.size_bytes(512) // 4096}" in run("dumpe2fs", "-h", tmp_path / "root")


def test_growing_an_esp_into_the_room_behind_it(tmp_path: Path) -> None:
    """An ESP that is last: FAT is rebuilt to fill it."""
    program = tmp_path / "hello.efi"
    program.write_bytes(b"MZ" + bytes(1000))
    from tools.pe_images import make_pe

    program.write_bytes(make_pe())
    small, large = tmp_path / "small.img", tmp_path / "large.img"
    assert main(["build", "-q", "-o", str(small), "--efi", f"aarch64={program}", "--esp-size", "34M"]) == 0
    assert main(["convert", "-q", str(small), str(large), "--size", "100M", "--grow-partition", "1"]) == 0
    esp = _extract(large, 1, tmp_path / "esp")
    assert esp.stat().st_size == 98 * MIB
    run("fsck.vfat", "-n", esp)
    assert int.from_bytes(esp.read_bytes()[32:36], "little") * 512 == 98 * MIB


def test_shrinking(guest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut, shrunk, fitted = (tmp_path / f"{name}.img" for name in ("cut", "shrunk", "fitted"))
    _, size, before = _partitions(guest)
    assert main(["convert", "-q", str(guest), str(cut), "--size", "min"]) == 0
    _judge_guest(cut, tmp_path, sector_size=512)
    end = before[1].offset_bytes(512) + before[1].size_bytes(512)
    assert cut.stat().st_size == end + MIB < size
    assert _partitions(cut)[2] == before
    assert main(["convert", "-q", str(guest), str(shrunk), "--shrink"]) == 0
    _judge_guest(shrunk, tmp_path, sector_size=512)
    assert shrunk.stat().st_size < end - 8 * MIB
    assert main(["convert", "-q", str(guest), str(fitted), "--shrink", "--size", "56M"]) == 0
    _judge_guest(fitted, tmp_path, sector_size=512)
    assert fitted.stat().st_size == 56 * MIB
    capsys.readouterr()
    assert main(["convert", "-q", str(guest), str(tmp_path / "no.img"), "--size", "56M"]) == 2
    assert "partition 2 (ext4) ends at byte" in capsys.readouterr().err
    assert main(["convert", "-q", str(guest), str(tmp_path / "no.img"), "--shrink", "--size", "41M"]) == 2
    assert "cannot be made 1 MiB large: " in capsys.readouterr().err
    assert not (tmp_path / "no.img").exists()


def test_an_unclean_file_system_is_not_resized(guest: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.img"
    run("cp", "--sparse=always", guest, bad)
    with open_disk(bad) as disk:
        start = read_partition_table(disk).partitions[1].offset_bytes(512)
    patch(bad, start + 4096, bytes(4096))  # the group descriptors
    before = hashlib.sha256(bad.read_bytes()).digest()
    assert main(["convert", "-q", str(bad), str(tmp_path / "out.img"), "--shrink"]) == 65
    assert main(["convert", "-q", str(bad), str(tmp_path / "out.img"), "--size", "min"]) == 0
    assert hashlib.sha256(bad.read_bytes()).digest() == before


def test_small_blocks_cannot_go_to_large_sectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = guest_disk(tmp_path / "disk.img", ext_options=("-b", "1024"))
    out = tmp_path / "out.img"
    assert main(["convert", "-q", str(disk), str(out), "--sector-size", "4096"]) == 2
    said = capsys.readouterr().err
    assert "partition 2: ext4 with blocks of 1024 bytes cannot be mounted from sectors of 4096" in said
    assert not out.exists()


def test_a_great_sparse_disk_takes_no_time_and_no_room(tmp_path: Path) -> None:
    huge = tmp_path / "huge.img"
    disk = guest_disk(tmp_path / "disk.img")
    assert main(["convert", "-q", str(disk), str(huge), "--size", "20G"]) == 0
    for arguments in (("a.qcow2",), ("b.img",), ("c.img", "--sector-size", "4096"), ("d.vhd",), ("e.vmdk",)):
        out = tmp_path / arguments[0]
        started = time.monotonic()
        assert main(["convert", "-q", str(huge), str(out), *arguments[1:]]) == 0
        assert time.monotonic() - started < 10
        assert out.stat().st_blocks * 512 < 16 * MIB
    with open_disk(tmp_path / "c.img") as wide:
        assert (wide.sector_size, wide.size_bytes) == (4096, 20 << 30)


@pytest.mark.parametrize(
    "arguments", [("out.img",), ("out.qcow2", "--compress"), ("out.vhd",), ("out.img", "--shrink")], ids=str
)
def test_killed_at_any_moment_it_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """SIGKILL at six moments spread over the time that it takes: OUT is whole or not there, and nothing else is."""
    folder = tmp_path / "here"
    folder.mkdir()
    source = guest_disk(folder / "disk.img", free_mib=40)
    with source.open("r+b") as file:  # enough to be in the midst of it
        file.seek(70 * MIB)
        file.write(os.urandom(8 * MIB))
    before = hashlib.sha256(source.read_bytes()).digest()
    command = [sys.executable, "-m", "armvm", "convert", "-q", source.name, *arguments]
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    whole = time.monotonic() - started
    killed = 0
    for moment in range(1, 7):
        (folder / arguments[0]).unlink(missing_ok=True)
        with subprocess.Popen(command, cwd=folder, start_new_session=True) as victim:
            try:
                victim.wait(whole * moment / 7)
            except subprocess.TimeoutExpired:
                os.killpg(victim.pid, signal.SIGKILL)
                victim.wait()
        assert hashlib.sha256(source.read_bytes()).digest() == before
        names = {path.name for path in folder.iterdir()} - {source.name}
        killed += not names
        assert names <= {arguments[0]}
        if names:  # it was quicker this time, and then it is whole
            with open_disk(folder / arguments[0]) as disk:
                assert not read_partition_table(disk).serious_problems
    assert killed >= 3


def test_bad_input_leaves_nothing(images: dict[str, Path], guest: Path, tmp_path: Path) -> None:
    for form in ("qcow2", "vmdk", "vhdx", "vpc"):
        cut = tmp_path / f"cut.{form}"
        cut.write_bytes(images[form].read_bytes()[: 300_000 if form == "qcow2" else 3000])
        for target in ("img", "qcow2", "vdi"):
            assert main(["convert", "-q", str(cut), str(tmp_path / f"out.{target}")]) == 65, (form, target)
    broken = tmp_path / "broken.img"
    run("cp", "--sparse=always", guest, broken)
    patch(broken, 512 + 16, b"\xff")  # the primary header's CRC
    assert main(["convert", "-q", str(broken), str(tmp_path / "out.img"), "--sector-size", "4096"]) == 65
    assert main(["convert", "-q", str(broken), str(tmp_path / "out.img"), "--size", "+1G"]) == 65
    assert not list(tmp_path.glob("out.*"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert main(["convert", "-q", str(broken), str(tmp_path / "out.qcow2")]) == 0, "a plain copy judges nothing"
    qemu_img("compare", "-f", "raw", "-F", "qcow2", broken, tmp_path / "out.qcow2")
