"""Files on ext2, ext3 and ext4 edited in place: mke2fs makes the file systems, e2fsck and debugfs judge the result."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from armvm.disk.ext_edit import replace_files
from armvm.disk.patched import PatchedDisk
from armvm.disk.raw import RawDisk
from armvm.errors import InputError
from armvm.process import run
from armvm.units import MIB
from tools.fat_images import save_sparse

FSTAB = b"# made by the installer\n/dev/vda2 / ext4 defaults 0 1\n"
STAMP = 1_700_000_000


def made(folder: Path, kind: str, *options: str, size_bytes: int = 24 * MIB) -> Path:
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "boot/grub").mkdir(parents=True)
    (tree / "etc/fstab").write_bytes(FSTAB)
    (tree / "etc/fstab").chmod(0o640)
    (tree / "boot/grub/grub.cfg").write_bytes(b"# a line of text\n" * 2000)
    (tree / "etc/empty").write_bytes(b"")
    (tree / "etc/link").symlink_to("fstab")
    path = folder / "ext.img"
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run("mke2fs", ["-q", "-F", "-t", kind, *options, "-d", str(tree), str(path)], timeout_seconds=60)
    run(
        "debugfs",
        ["-w", "-R", "ea_set /etc/fstab security.selinux system_u:object_r:etc_t:s0", str(path)],
        timeout_seconds=20,
    )
    run("debugfs", ["-w", "-R", "sif /etc/fstab uid 42", str(path)], timeout_seconds=20)
    return path


def asked(path: Path, command: str) -> bytes:
    return run("debugfs", ["-R", command, str(path)], timeout_seconds=20, env={"DEBUGFS_PAGER": "cat"}).stdout


KINDS = {
    "ext2": ("ext2",),
    "ext3": ("ext3",),
    "ext4": ("ext4",),
    "ext4 without checksums": ("ext4", "-O", "^metadata_csum,^64bit"),
    "ext4 with 1 KiB blocks": ("ext4", "-b", "1024"),
}
CASES = [
    ("ext2", 200_000),
    ("ext3", 5000),
    ("ext4", 0),
    ("ext4", 54),
    ("ext4", 200_000),
    ("ext4 without checksums", 5000),
    ("ext4 with 1 KiB blocks", 30_000),
]


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_an_edited_file_keeps_everything_but_its_content(kind: str, size: int, tmp_path: Path) -> None:
    path = made(tmp_path, *KINDS[kind])
    content = (b"UUID=0f / ext4\n" * (size // 15 + 1))[:size]
    before = asked(path, "stat /etc/fstab").decode()
    with RawDisk(path) as raw, PatchedDisk(raw) as disk:
        replace_files(disk, {"/etc/fstab": content, "/boot/grub/grub.cfg": b"# short\n"}, timestamp=STAMP)
        edited = save_sparse(disk, tmp_path / "edited.img")
    assert run("e2fsck", ["-f", "-n", str(edited)], timeout_seconds=60, check=False).returncode == 0
    assert asked(edited, "cat /etc/fstab") == content
    assert asked(edited, "cat /boot/grub/grub.cfg") == b"# short\n"
    after = asked(edited, "stat /etc/fstab").decode()
    for field in (r"Inode: \d+", r"Mode: +\d+", r"User: +\d+", r"Links: \d+", r"security.selinux.*", r"crtime: \S+"):
        assert re.findall(field, before) == re.findall(field, after), field
    assert "Mode:  0640" in after
    assert "User:    42" in after
    assert f"mtime: {STAMP:#010x}" in after


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    with RawDisk(made(tmp_path, "ext4")) as raw, PatchedDisk(raw) as disk:
        replace_files(disk, {"/etc/fstab": FSTAB.replace(b"/dev/vda2", b"LABEL=root")}, timestamp=STAMP)
        changed = sum(len(new) for _, _, new in disk.changes())
    assert 0 < changed <= 16384


@pytest.mark.parametrize("path", ["/etc/link", "/etc", "/etc/nothing", '/etc/"x', "/etc/fstab\nquit"])
def test_what_is_no_plain_file_is_refused(path: str, tmp_path: Path) -> None:
    with RawDisk(made(tmp_path, "ext4")) as raw, PatchedDisk(raw) as disk:
        with pytest.raises(InputError):
            replace_files(disk, {path: b"x"}, timestamp=STAMP)
        assert list(disk.changes()) == []


def test_a_journal_that_waits_to_be_replayed_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "ext4")
    run("debugfs", ["-w", "-R", "feature needs_recovery", str(path)], timeout_seconds=20)
    with RawDisk(path) as raw, PatchedDisk(raw) as disk, pytest.raises(InputError, match="journal waits"):
        replace_files(disk, {"/etc/fstab": b"x"}, timestamp=STAMP)


def test_a_damaged_file_system_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path, "ext4")
    run("debugfs", ["-w", "-R", "sif /etc/fstab links_count 7", str(path)], timeout_seconds=20)
    with RawDisk(path) as raw, PatchedDisk(raw) as disk, pytest.raises(InputError, match="damaged"):
        replace_files(disk, {"/etc/fstab": b"x"}, timestamp=STAMP)


def test_a_full_file_system_is_refused_whole(tmp_path: Path) -> None:
    path = made(tmp_path, "ext4", size_bytes=8 * MIB)
    with RawDisk(path) as raw, PatchedDisk(raw) as disk:
        with pytest.raises(InputError):
            replace_files(disk, {"/boot/grub/grub.cfg": b"x", "/etc/fstab": bytes(10 * MIB)}, timestamp=STAMP)
        assert list(disk.changes()) == []
