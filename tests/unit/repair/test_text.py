"""Lines of a guest's files, replaced on FAT and on ext4."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from armvm.disk.files import MemoryFileSystem
from armvm.disk.patched import PatchedDisk
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.guest.facts import Assumption, AssumptionKind, PlacedFile, PlacedLine
from armvm.image.contents import ImageContents
from armvm.process import run
from armvm.repair.text import replaced
from armvm.repair.workbench import Workbench
from armvm.units import MIB
from tools import fat_images, gpt_images
from tools.disk_images import AA64, disk_image, unified_kernel
from tools.gpt_images import Entry
from tools.repairs import plan


class NamedFiles(MemoryFileSystem):
    """Files that stand on a partition of a certain kind."""

    def __init__(self, name: str, kind: str, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
        super().__init__(files, links=links or {})
        self.name, self.kind = name, kind


def assumption(files: MemoryFileSystem, path: str, number: int, replacement: str | None) -> Assumption:
    text = files.read(path).split(b"\n")[number - 1].rstrip(b"\r").decode()
    line = PlacedLine(PlacedFile(files, path), number, text)
    return Assumption(AssumptionKind.ROOT, "it names a device", line.where, text, "name it by UUID", line, replacement)


def lines(content: bytes, *edits: tuple[int, str]) -> bytes:
    files = NamedFiles("partition 1", "vfat", {"/f": content})
    return replaced(content, [assumption(files, "/f", number, new) for number, new in edits])


@pytest.mark.parametrize(
    ("content", "edits", "expected"),
    [
        (b"a\nb\nc\n", [(2, "B")], b"a\nB\nc\n"),
        (b"a\r\nb\r\n", [(1, "longer")], b"longer\r\nb\r\n"),
        (b"a\nb", [(2, "end")], b"a\nend"),
        (b"a\nb\nc\n", [(1, ""), (3, "C")], b"b\nC\n"),
        (b"a\nb", [(2, "")], b"a\n"),
        (b"a\n\xff\xfe\nb\n", [(3, "B")], b"a\n\xff\xfe\nB\n"),
        (b"a\rb\nc\n", [(2, "C")], b"a\rb\nC\n"),
        (b"a\nb\nc", [(2, "B\n  more")], b"a\nB\n  more\nc"),
        (b"a\r\nb", [(1, "A\nB"), (2, "C\nD")], b"A\r\nB\r\nC\nD"),
    ],
)
def test_lines_are_replaced_and_nothing_else(content: bytes, edits: list[tuple[int, str]], expected: bytes) -> None:
    assert lines(content, *edits) == expected


def test_a_line_that_is_not_the_one_that_was_seen_is_refused() -> None:
    files = NamedFiles("partition 1", "vfat", {"/f": b"a\nb\n"})
    seen = assumption(files, "/f", 2, "B")
    for content in (b"a\nother\n", b"a\n", b""):
        with pytest.raises(ValueError, match="line 2"):
            replaced(content, [seen])
    with pytest.raises(ValueError, match="two things"):
        replaced(b"a\nb\n", [seen, assumption(files, "/f", 2, "C")])
    with pytest.raises(ValueError, match="control character"):
        replaced(b"a\nb\n", [assumption(files, "/f", 2, "C\rD")])


def test_a_line_on_the_esp_is_replaced() -> None:
    config = b"set timeout=1\nlinux /vmlinuz root=/dev/vda2\n"
    files = NamedFiles("partition 1", "vfat", {"/loader/a.conf": config})
    with disk_image({AA64: unified_kernel(), "loader/a.conf": config}) as disk:
        found, patched = plan(disk, lambda _: [assumption(files, "/loader/a.conf", 2, "linux /vmlinuz root=UUID=1")])
        (esp,) = ImageContents(patched).esps
        assert esp.volume is not None
        entry = esp.volume.lookup("loader/a.conf")
        assert entry is not None
        assert esp.volume.read(entry) == b"set timeout=1\nlinux /vmlinuz root=UUID=1\n"
        assert [edit.requirement for edit in found.edits] == ["guest.no-assumptions"]
        assert "root=/dev/vda2" in found.edits[0].reason
        assert found.unrepairable == ()


def with_root(folder: Path, content: bytes) -> Disk:
    """An image with an ESP and an ext4 root whose /etc/fstab has ``content``."""
    (folder / "tree/etc").mkdir(parents=True)
    (folder / "tree/etc/fstab").write_bytes(content)
    root = folder / "root.img"
    with root.open("wb") as file:
        file.truncate(16 * MIB)
    run("mke2fs", ["-q", "-F", "-t", "ext4", "-d", str(folder / "tree"), str(root)], timeout_seconds=60)
    first, second = 2048, 2048 + 33 * MIB // 512
    entries = (Entry(1, first, second - 1, gpt_images.ESP), Entry(2, second, second + 16 * MIB // 512 - 1))
    image = gpt_images.good_gpt(51 * MIB, partitions=entries)
    esp = fat_images.fat32_disk({AA64: unified_kernel()})
    image[MIB : 34 * MIB] = esp.read(0, esp.size_bytes).ljust(33 * MIB, b"\0")
    image[34 * MIB : 50 * MIB] = root.read_bytes()
    return MemoryDisk(bytes(image), name="image")


def test_a_line_on_ext4_is_replaced_also_behind_a_link(tmp_path: Path) -> None:
    fstab = b"/dev/vda2 / ext4 defaults 0 1\n/dev/vda3 none swap sw 0 0\n"
    files = NamedFiles("partition 2", "ext4", {"/etc/fstab": fstab}, {"/link": "etc/fstab"})
    new = "UUID=7f2c9a34-0000-4000-8000-5d2b8e6a1c00 / ext4 defaults 0 1"
    seen = [assumption(files, "/etc/fstab", 2, ""), assumption(files, "/link", 1, new)]
    found, patched = plan(with_root(tmp_path, fstab), lambda _: seen)
    assert [edit.action for edit in found.edits] == ["line removed", f"line replaced by: {new}"]
    edited = tmp_path / "edited.img"
    edited.write_bytes(patched.read(34 * MIB, 16 * MIB))
    assert run("debugfs", ["-R", "cat /etc/fstab", str(edited)], timeout_seconds=20).stdout == new.encode() + b"\n"
    assert run("e2fsck", ["-fn", str(edited)], timeout_seconds=20, check=False).returncode == 0


def seen_in(files: MemoryFileSystem, _disk: Disk) -> list[Assumption]:
    return [assumption(files, "/etc/fstab", 1, "LABEL=r / xfs")]


def test_what_cannot_be_edited_is_said_with_the_line_to_write(tmp_path: Path) -> None:
    fstab = b"/dev/vda2 / xfs defaults 0 1\n"
    cases = {
        "files on xfs cannot be edited": NamedFiles("partition 1", "xfs", {"/etc/fstab": fstab}),
        "it is no partition of its own": NamedFiles("logical volume vg/root", "ext4", {"/etc/fstab": fstab}),
        "is no ext file system": NamedFiles("partition 1", "ext4", {"/etc/fstab": fstab}),
    }
    with disk_image() as disk:
        for why, files in cases.items():
            found, patched = plan(disk, partial(seen_in, files))
            assert list(patched.changes()) == []
            (entry,) = found.unrepairable
            assert why in entry.why
            assert "LABEL=r / xfs" in (entry.remedy or "")
        found, _ = plan(disk, lambda _: [assumption(cases["files on xfs cannot be edited"], "/etc/fstab", 1, None)])
        assert found.unrepairable[0].remedy == "name it by UUID"


def test_partuuids_of_a_converted_mbr_are_renamed(tmp_path: Path) -> None:
    from armvm.repair.text import rename_partuuids

    config = b"linux /vmlinuz root=PARTUUID=C0FFEE42-02 rw\n"
    files = NamedFiles("partition 1", "vfat", {"/EFI/debian/grub.cfg": config, "/other.txt": config})
    with disk_image({AA64: unified_kernel(), "EFI/debian/grub.cfg": config}) as disk, PatchedDisk(disk) as patched:
        bench = Workbench(patched, 0)
        bench.partuuids["c0ffee42-02"] = "11111111-2222-3333-4444-555555555555"
        rename_partuuids(bench, lambda _: [files])
        assert len(bench.edits) == 1
        (esp,) = ImageContents(patched).esps
        assert esp.volume is not None
        entry = esp.volume.lookup("EFI/debian/grub.cfg")
        assert entry is not None
        assert b"root=PARTUUID=11111111-2222-3333-4444-555555555555 rw" in esp.volume.read(entry)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with disk_image() as disk:
        fat_images.save_sparse(disk, path)
    with RawDisk(path) as raw, plan(raw)[1]:
        pass
