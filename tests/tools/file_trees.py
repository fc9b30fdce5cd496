"""A tree of files that no two ways of storing files treat alike, and the file systems that the usual tools make of it.

No tool here needs root. Every maker returns the path of a sparse image.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

from armvm.units import MIB

MKFS_ENVIRONMENT = {**os.environ, "E2FSPROGS_FAKE_TIME": "1700000000", "SOURCE_DATE_EPOCH": "1700000000"}
UUID = "3c8e1b5a-0f2d-4a6e-9b7c-d1e2f3a4b5c6"


def make_tree(folder: Path, *, entries: int = 300) -> Path:
    """Small, large, empty, sparse and fragmented files, short, long and broken links, a folder of many ``entries``."""
    source = random.Random(entries)
    for name in ("etc", "boot/grub", "many", "deep/a/b/c/d", "usr/lib", "empty-folder"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/os-release").write_text('ID=debian\nPRETTY_NAME="Debian"\n')
    (folder / "boot/grub/grub.cfg").write_text("menuentry 'Debian' {\n}\n" * 40)
    (folder / "tiny").write_bytes(b"tiny")
    (folder / "medium").write_bytes(b"medium " * 18)  # 126 bytes: inline data that spills into the inode's attributes
    (folder / "empty").write_bytes(b"")
    (folder / "large").write_bytes(source.randbytes(700_001))
    (folder / "repeated").write_bytes(b"the same again " * 40_000)
    (folder / "deep/a/b/c/d/Grüße").write_bytes(b"deep")
    for number in range(entries):
        (folder / f"many/entry-{number}").write_bytes(b"%d" % number)
    for name, block, count in (("sparse", 4096, 2), ("fragmented", 1024, 800)):
        with (folder / name).open("wb") as file:
            for index in range(count):
                file.seek(index * (3_000_000 if count == 2 else 2 * 4096))
                file.write(source.randbytes(block))
            file.truncate(file.tell() + 500_000)
    (folder / "lib").symlink_to("usr/lib")
    (folder / "usr/lib/os-release").symlink_to("/etc/os-release")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "long-link").symlink_to("x" * 59 + "/" + "y" * 200)
    (folder / "link-60").symlink_to("z" * 60)
    return folder


def far_file(folder: Path) -> None:
    """A file whose end only a triple indirect block reaches, with blocks of 1 KiB."""
    with (folder / "far").open("wb") as file:
        file.write(b"near")
        file.seek(70 * MIB)
        file.write(b"far away")


def ext_image(path: Path, tree: Path | None, *options: str, size_bytes: int = 24 * MIB) -> Path:
    """What ``mke2fs`` makes of ``tree``."""
    _sparse(path, size_bytes)
    filled = ["-d", str(tree)] if tree else []
    run("mke2fs", "-q", "-F", "-U", UUID, "-E", f"hash_seed={UUID}", *options, *filled, str(path))
    return path


def debugfs(path: Path, *requests: str, write: bool = False) -> str:
    """What ``debugfs`` says to each of the requests."""
    option = ["-w"] if write else []
    return "".join(run("debugfs", *option, "-R", request, str(path)) for request in requests)


def squashfs_image(path: Path, tree: Path, compression: str) -> Path:
    """What ``mksquashfs`` makes of ``tree``."""
    run("mksquashfs", str(tree), str(path), "-comp", compression, "-quiet", "-no-progress", "-noappend")
    return path


def btrfs_image(path: Path, tree: Path) -> Path:
    """What ``mkfs.btrfs`` makes of ``tree``; one subvolume, no compression (for these see ``btrfs_images``)."""
    _sparse(path, 128 * MIB)
    run("mkfs.btrfs", "-q", "-U", UUID, "-L", "butter", "--rootdir", str(tree), str(path))
    return path


def xfs_image(path: Path, tree: Path | None, *options: str, size_bytes: int = 320 * MIB) -> Path:
    """What ``mkfs.xfs`` makes of a prototype that lists ``tree``."""
    _sparse(path, size_bytes)
    prototype = path.with_suffix(".prototype")
    prototype.write_text("\n".join(["/none", "0 0", "d--755 0 0", *(_prototype(tree) if tree else []), "$", ""]))
    run("mkfs.xfs", "-q", "-m", f"uuid={UUID}", "-L", "xfsroot", *options, "-p", str(prototype), str(path))
    return path


def _prototype(folder: Path) -> list[str]:
    """The lines of a prototype file (xfs_mkfs(8)): it knows no names with spaces."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            lines.append(f"{path.name} l--777 0 0 {path.readlink()}")
        elif path.is_dir():
            lines += [f"{path.name} d--755 0 0", *_prototype(path), "$"]
        else:
            lines.append(f"{path.name} ---644 0 0 {path}")
    return lines


def run(*command: str, allowed: Sequence[int] = (0,)) -> str:
    """Run a tool, with its deadline; what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=MKFS_ENVIRONMENT)
    assert done.returncode in allowed, f"{command}: {done.stderr}"
    return done.stdout


def _sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
