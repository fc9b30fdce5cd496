"""Building: what goes in comes out at its place, the same bytes every time, and nothing is lost when it goes wrong."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.disk.storage import Disk
from armvm.errors import InputError, OutputError, UsageError
from armvm.execution import ExecutionState
from armvm.guest.check import check_image
from armvm.guid import LINUX_DATA_TYPE, LINUX_ROOT_ARM64_TYPE
from armvm.image.build import build_image
from armvm.image.contents import ImageContents
from armvm.image.recipe import EspFile, KernelRecipe, Recipe
from armvm.spec.verdict import Level
from tools.pe_images import linux_kernel, make_pe

AARCH64, AARCH32 = ExecutionState.AARCH64, ExecutionState.AARCH32
TIME = 1_700_000_000


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(linux_kernel())
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "hello.efi"
    path.write_bytes(make_pe(AARCH64))
    return path


def _build(recipe: Recipe, path: Path, *, overwrite: bool = False) -> Path:
    build_image(recipe, path, timestamp=TIME, overwrite=overwrite)
    return path


def _read(disk: Disk, path: str) -> bytes:
    volume = ImageContents(disk).esps[0].volume
    assert volume is not None
    entry = volume.lookup(path)
    assert entry is not None, path
    return volume.read(entry)


def test_a_kernel_becomes_a_unified_kernel_image(tmp_path: Path, kernel: Path) -> None:
    initrds = []
    for name in "ab":
        initrds.append(tmp_path / name)
        initrds[-1].write_bytes(name.encode() * 1001)
    recipe = Recipe(kernels={AARCH64: KernelRecipe(kernel, tuple(initrds), "quiet splash")})
    with open_disk(_build(recipe, tmp_path / "disk.img")) as disk:
        assert not check_image(disk).failed(Level)
        program = ImageContents(disk).boot_programs[AARCH64]
        assert program.program is not None
        assert program.pe is not None
        assert program.program.command_line == "quiet splash"
        content = _read(disk, AARCH64.removable_path)
        linux, initrd = program.pe.section(".linux"), program.pe.section(".initrd")
        assert linux is not None
        assert initrd is not None
        assert content[linux.raw_offset : linux.raw_offset + linux.data_size] == kernel.read_bytes()
        joined = b"a" * 1001 + b"\0" * 3 + b"b" * 1001
        assert content[initrd.raw_offset : initrd.raw_offset + initrd.data_size] == joined


def test_both_states_in_one_image(tmp_path: Path, program: Path) -> None:
    kernel32 = tmp_path / "zImage"
    kernel32.write_bytes(linux_kernel(AARCH32))
    recipe = Recipe(efi={AARCH64: program}, kernels={AARCH32: KernelRecipe(kernel32)})
    with open_disk(_build(recipe, tmp_path / "disk.img")) as disk:
        assert not check_image(disk, states=[AARCH64, AARCH32]).failed(Level)
        assert _read(disk, AARCH64.removable_path) == program.read_bytes()


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_sector_sizes_and_formats(tmp_path: Path, program: Path, sector_size: int, format: str) -> None:
    recipe = Recipe(efi={AARCH64: program}, sector_size=sector_size, format=format, size_bytes=400 << 20)
    path = _build(recipe, tmp_path / "disk")
    assert path.stat().st_blocks * 512 < 8 << 20, "sparse"
    with open_disk(path) as disk:
        assert (disk.format, disk.sector_size, disk.size_bytes) == (format, sector_size, 400 << 20)
        assert not check_image(disk).failed(Level)


def test_extra_files_and_trees(tmp_path: Path, program: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "loader/entries").mkdir(parents=True)
    (tree / "loader/entries/a.conf").write_text("title A\n")
    (tree / "top.txt").write_text("top")
    files = (EspFile(tree, "/"), EspFile(program, "\\tools\\hello.efi"), EspFile(tree, "copy"))
    with open_disk(_build(Recipe(efi={AARCH64: program}, esp_files=files), tmp_path / "disk.img")) as disk:
        assert _read(disk, "/loader/entries/a.conf") == b"title A\n"
        assert _read(disk, "/copy/top.txt") == b"top"
        assert _read(disk, "/tools/hello.efi") == program.read_bytes()


def test_the_same_inputs_give_the_same_bytes_and_others_do_not(tmp_path: Path, kernel: Path) -> None:
    recipe = Recipe(kernels={AARCH64: KernelRecipe(kernel, (), "a")})
    first = _build(recipe, tmp_path / "1.img").read_bytes()
    kernel.touch()
    assert _build(recipe, tmp_path / "2.img").read_bytes() == first
    other = Recipe(kernels={AARCH64: KernelRecipe(kernel, (), "b")})
    assert _build(other, tmp_path / "3.img").read_bytes() != first
    with open_disk(tmp_path / "1.img") as one, open_disk(tmp_path / "3.img") as two:
        guids = [ImageContents(disk).table.partitions[0].unique_guid for disk in (one, two)]
        assert guids[0] != guids[1], "two images are two disks"


def test_an_existing_image_is_kept_unless_told(tmp_path: Path, program: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_text("precious")
    with pytest.raises(OutputError, match="already there"):
        _build(Recipe(efi={AARCH64: program}), path)
    assert path.read_text() == "precious"
    _build(Recipe(efi={AARCH64: program}), path, overwrite=True)
    assert path.stat().st_size > 64 << 20


def test_a_failed_build_leaves_nothing_and_changes_nothing(tmp_path: Path, kernel: Path) -> None:
    path = tmp_path / "out/disk.img"
    path.parent.mkdir()
    path.write_text("precious")
    broken = tmp_path / "missing.cpio"
    with pytest.raises(InputError, match=r"missing\.cpio"):
        _build(Recipe(kernels={AARCH64: KernelRecipe(kernel, (broken,))}), path, overwrite=True)
    with pytest.raises(UsageError, match="ESP"):
        _build(Recipe(kernels={AARCH64: KernelRecipe(kernel)}, esp_size_bytes=1 << 20), path, overwrite=True)
    with pytest.raises(UsageError, match="fit"):
        _build(Recipe(kernels={AARCH64: KernelRecipe(kernel)}, size_bytes=2 << 20), path, overwrite=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["disk.img"]
    assert path.read_text() == "precious"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        _build(Recipe(efi={AARCH64: program}), tmp_path / "disk.img")
    assert not list(tmp_path.glob("*.img"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("state", ExecutionState)
def test_a_program_for_another_state_is_refused(tmp_path: Path, state: ExecutionState) -> None:
    other = next(each for each in ExecutionState if each is not state)
    path = tmp_path / "other.efi"
    path.write_bytes(make_pe(other))
    with pytest.raises(InputError, match=r"other\.efi"):
        _build(Recipe(efi={state: path}), tmp_path / "disk.img")


def _root_folder(folder: Path) -> Path:
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/os-release").write_text('PRETTY_NAME="Test OS 1"\n')
    return folder


def test_a_root_gets_its_partition_and_the_command_line_names_it(tmp_path: Path, kernel: Path) -> None:
    root = _root_folder(tmp_path / "root")
    recipe = Recipe(kernels={AARCH64: KernelRecipe(kernel, (), "quiet")}, root=root)
    with open_disk(_build(recipe, tmp_path / "disk.img")) as disk:
        contents = ImageContents(disk)
        partition = contents.table.partitions[1]
        assert partition.type_guid == LINUX_ROOT_ARM64_TYPE
        program = contents.boot_programs[AARCH64].program
        assert program is not None
        assert program.command_line == f"root=PARTUUID={partition.unique_guid} rw quiet"
        assert program.os_name == "Test OS 1"
        assert not check_image(disk).failed(Level)


def test_a_root_that_the_command_line_names_is_left_alone(tmp_path: Path, kernel: Path, program: Path) -> None:
    kernel32 = tmp_path / "zImage"
    kernel32.write_bytes(linux_kernel(AARCH32))
    kernels = {AARCH64: KernelRecipe(kernel, (), "root=LABEL=root ro"), AARCH32: KernelRecipe(kernel32)}
    recipe = Recipe(kernels=kernels, root=_root_folder(tmp_path / "root"), size_bytes=1 << 30)
    with open_disk(_build(recipe, tmp_path / "disk.img")) as disk:
        contents = ImageContents(disk)
        program_64 = contents.boot_programs[AARCH64].program
        assert program_64 is not None
        assert program_64.command_line == "root=LABEL=root ro"
        assert contents.table.partitions[1].type_guid == LINUX_DATA_TYPE
        assert contents.table.partitions[1].size_bytes(512) > 900 << 20, "the root takes what is left"


def _archive(path: Path, *members: tuple[str, str | bytes]) -> Path:
    """A tar archive: text is a symbolic link's target, bytes are a file's content."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "members", [[("../evil", b"x")], [("loop", "loop"), ("loop/x", b"x")], [("a", b"x"), ("a/b", b"x")]]
)
def test_archives_that_make_no_tree_are_refused(
    tmp_path: Path, kernel: Path, members: list[tuple[str, str | bytes]]
) -> None:
    archive = _archive(tmp_path / "root.tar", *members)
    with pytest.raises(InputError, match=r"root\.tar"):
        _build(Recipe(kernels={AARCH64: KernelRecipe(kernel)}, root=archive), tmp_path / "disk.img")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["root.tar", "vmlinuz"]


def test_links_in_an_archive_are_followed_inside_the_tree(tmp_path: Path, kernel: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = _archive(tmp_path / "root.tar", ("a", str(outside)), ("a/evil", b"x"), ("b", "../../etc"), ("b/c", b"x"))
    _build(Recipe(kernels={AARCH64: KernelRecipe(kernel)}, root=archive), tmp_path / "disk.img")
    assert not list(outside.iterdir())


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b" + bytes(99), b"\x28\xb5\x2f\xfd" + bytes(99)])
def test_what_is_no_archive_is_refused(tmp_path: Path, kernel: Path, content: bytes) -> None:
    root = tmp_path / "root.tar"
    root.write_bytes(content)
    with pytest.raises(InputError, match="tar archive"):
        _build(Recipe(kernels={AARCH64: KernelRecipe(kernel)}, root=root), tmp_path / "disk.img")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["root.tar", "vmlinuz"]
