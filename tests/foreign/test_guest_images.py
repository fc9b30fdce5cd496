"""The small guests are what they should be: sound file systems by other tools' judgement, and faults that are there."""

from __future__ import annotations

import filecmp
import subprocess
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from tools.guest_faults import SEEDED
from tools.guest_images import GuestImage, GuestTree, copy_guest, copy_tree, good_guest, guest_tree, pack


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> GuestTree:
    return guest_tree(tmp_path_factory.mktemp("guest") / "tree")


@pytest.fixture(scope="module")
def good(tree: GuestTree) -> GuestImage:
    return pack(tree, tree.folder.with_name("good.img"))


def _sound(image: GuestImage, folder: Path) -> None:
    """What e2fsck and fsck.fat say of the partitions, copied out."""
    for partition, command in zip(image.layout.partitions, (["fsck.fat", "-n"], ["e2fsck", "-fn"]), strict=False):
        part = folder / f"part{partition.number}"
        with image.path.open("rb") as disk, part.open("wb") as file:
            disk.seek(partition.offset_bytes(512))
            file.write(disk.read(partition.size_bytes(512)))
        done = subprocess.run([*command, str(part)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_good_image_is_sound_and_made_the_same_again(tree: GuestTree, good: GuestImage, tmp_path: Path) -> None:
    _sound(good, tmp_path)
    assert filecmp.cmp(good.path, pack(tree, tmp_path / "again.img").path, shallow=False)
    judged = subprocess.run(["sgdisk", "-v", str(good.path)], capture_output=True, text=True, timeout=60, check=True)
    assert "No problems found" in judged.stdout


@pytest.mark.parametrize(
    "name",
    [
        "no virtio-net anywhere",
        "kernel without UEFI's clock",
        "swap by device name",
        "crypttab by device name",
        "ifcfg by MAC",
    ],
)
def test_an_edited_image_is_sound(good: GuestImage, name: str, tmp_path: Path) -> None:
    image = copy_guest(good, tmp_path / "edited.img")
    SEEDED[name].edit(image)
    assert not filecmp.cmp(good.path, image.path, shallow=False)
    _sound(image, tmp_path)


@pytest.mark.parametrize("name", [name for name, fault in SEEDED.items() if not fault.on_image])
def test_a_fault_changes_the_guest(tree: GuestTree, name: str, tmp_path: Path) -> None:
    edited = copy_tree(tree, tmp_path / "tree")
    SEEDED[name].edit(edited)
    changed = _files(tree) ^ _files(edited)
    assert 1 <= len({path for path, _ in changed}) <= 5


def _files(tree: GuestTree) -> set[tuple[str, int]]:
    """Every file by its path and inode: a copy shares its inodes until a file is written."""
    return {
        (path.relative_to(tree.folder).as_posix(), path.stat().st_ino)
        for path in tree.folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_there_are_faults_of_every_kind() -> None:
    named = {requirement for fault in SEEDED.values() for requirement in fault.requirements}
    assert len(SEEDED) >= 30
    assert {name.partition(".")[0] for name in named} == {"guest", "image"}


def test_the_aarch32_guest_is_sound(tmp_path: Path) -> None:
    _sound(good_guest(tmp_path, ExecutionState.AARCH32), tmp_path)
