"""Disks as installers leave them: an ESP, an ext4 and a swap partition, all written by other tools than armvm's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from tools import gpt_images
from tools.gpt_images import MIB, Entry

ESP_UNIQUE = UUID("11111111-2222-4333-8444-555555555555")
ROOT_UNIQUE = UUID("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
SWAP_UNIQUE = UUID("99999999-8888-4777-8666-555555555555")
ESP_FILES = {
    "/EFI/BOOT/BOOTAA64.EFI": b"MZ" + b"program" * 30_000,
    "/EFI/debian/grub.cfg": f"search.partuuid {ROOT_UNIQUE} root\n".encode(),
    "/A long file name, with case.txt": b"text\n",
    "/empty": b"",
}
ROOT_FILES = {"etc/fstab": f"PARTUUID={ROOT_UNIQUE} / ext4\n".encode(), "blob": bytes(range(256)) * 8000}
FILE_TIME = 1_500_000_000


def guest_disk(
    path: Path, *, esp_mib: int = 36, root_mib: int = 24, free_mib: int = 8, ext_options: Sequence[str] = ("-b", "4096")
) -> Path:
    """A raw disk with 512-byte sectors at ``path``. Its swap partition, the second, starts on no multiple of 4096."""
    esp, root = path.with_name("esp.tmp"), path.with_name("root.tmp")
    _make_esp(esp, esp_mib * MIB)
    _make_ext4(root, root_mib * MIB, ext_options)
    swap_start, root_start = (esp_mib + 1) * MIB + 512 * 3, (esp_mib + 3) * MIB
    size = root_start + (root_mib + free_mib) * MIB
    entries = (
        Entry(1, 2048, (esp_mib + 1) * 2048 - 1, gpt_images.ESP, ESP_UNIQUE, attributes=1, name="EFI ☃"),
        Entry(3, swap_start // 512, swap_start // 512 + 2047, gpt_images.LINUX, SWAP_UNIQUE, name="swap"),
        Entry(
            2,
            root_start // 512,
            root_start // 512 + root_mib * 2048 - 1,
            gpt_images.LINUX,
            ROOT_UNIQUE,
            attributes=1 << 60,
            name="root",
        ),
    )
    swap = b"".ljust(4086, b"\0") + b"SWAPSPACE2"
    with path.open("wb") as file:
        file.write(gpt_images.good_gpt(size, partitions=entries))
        for start, content in ((MIB, esp.read_bytes()), (swap_start, swap), (root_start, root.read_bytes())):
            file.seek(start)
            file.write(content)
    for part in (esp, root):
        part.unlink()
    _punch(path)
    return path


def run(*command: str | Path, check: bool = True) -> str:
    """What another tool says; it must agree."""
    environment = {**os.environ, "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _make_esp(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run("mkfs.vfat", "-F", "32", "-s", "1", "-n", "GUEST-ESP", "-i", "cafe0123", path)
    folder = path.with_name("esp.tree")
    for name, content in ESP_FILES.items():
        target = folder / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (folder / "void" / "deep").mkdir(parents=True)
    for entry in [*folder.rglob("*")]:
        os.utime(entry, (FILE_TIME, FILE_TIME))
    run("mcopy", "-s", "-m", "-i", path, *sorted(folder.iterdir()), "::/")
    run("mattrib", "+h", "+s", "-i", path, "::/empty")
    subprocess.run(["rm", "-r", folder], check=True)


def _make_ext4(path: Path, size_bytes: int, options: Sequence[str]) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    folder = path.with_name("root.tree")
    for name, content in ROOT_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    run("mke2fs", "-q", "-F", "-t", "ext4", *options, "-d", folder, path)
    subprocess.run(["rm", "-r", folder], check=True)


def _punch(path: Path) -> None:
    """Make zeros holes, as a disk that was written to by a VM has them."""
    run("fallocate", "--dig-holes", path)
