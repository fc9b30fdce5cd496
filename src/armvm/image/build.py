"""Making a portable image from a recipe: unified kernel images, ESP, root file system, partition table, file.

Everything up to the last step is a plan: disks composed of pieces that are read only when the image is written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from armvm.atomic import replacing
from armvm.disk.composed import ComposedDisk
from armvm.disk.fat_tree import FatFile
from armvm.disk.fat_write import minimum_fat32_size, plan_fat32
from armvm.disk.gpt_write import PartitionRequest, disk_size_for, plan_partitions, serialise
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.efi import EfiProgram, program_path
from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.guid import ESP_TYPE, LINUX_DATA_TYPE, LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE, derived_guid
from armvm.image.pe import parse_pe
from armvm.image.recipe import EspFile, KernelRecipe, Recipe
from armvm.image.rootfs import RootTree, make_ext4, minimum_size, root_tree
from armvm.image.uki import build_uki
from armvm.units import MIB, align_up

DEFAULT_ESP_BYTES = 64 * MIB
"""An ESP's size where nothing asks for more: FAT32 by a wide margin, with room for a second kernel."""
_ESP_SPARE_BYTES = 8 * MIB
_HASH_CHUNK = 4 * MIB
_OS_RELEASE = ("etc/os-release", "usr/lib/os-release")

Progress = Callable[[str, int, int], None]
"""Takes the step, the bytes done, and the bytes in all."""


def build_image(
    recipe: Recipe, output: Path, *, timestamp: int, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write the image of ``recipe`` to ``output``, whole or not at all.

    ``timestamp`` (seconds since 1970) is the time of everything in the image; the same recipe, inputs and timestamp
    give the same bytes. Raises UsageError for a recipe that contradicts itself or does not fit, InputError for an input
    that is not what it should be, OutputError when it cannot be written (and what was there is untouched).
    """
    from armvm.disk.qcow2_write import write_qcow2
    from armvm.disk.write import write_raw

    with plan_image(recipe, timestamp=timestamp, scratch_folder=output.parent, progress=progress) as disk:

        def written(done: int) -> None:
            if progress is not None:
                progress("writing", done, disk.size_bytes)

        with replacing(output, overwrite=overwrite) as file:
            if recipe.format == "qcow2":
                write_qcow2(file, disk, progress=written)
            else:
                write_raw(file, disk, progress=written)


@contextmanager
def plan_image(
    recipe: Recipe, *, timestamp: int, scratch_folder: Path, progress: Progress | None = None
) -> Iterator[Disk]:
    """The image of ``recipe`` as a disk, to be read while the block runs; temporary files are in ``scratch_folder``."""
    with ExitStack() as stack:
        root: RootTree | None = None
        scratch: Path | None = None
        if recipe.root is not None:
            if progress is not None:
                progress("reading the root tree", 0, 1)
            scratch = Path(tempfile.mkdtemp(prefix=".armvm-build-", dir=scratch_folder))
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            root = stack.enter_context(root_tree(recipe.root, scratch=scratch, clamp_time=timestamp))
        seed = _seed(recipe, root)
        root_guid = derived_guid(seed, "root partition")
        files = stack.enter_context(_esp_tree(recipe, root, root_guid))
        esp_size = _esp_size(recipe, files)
        requests = [PartitionRequest(ESP_TYPE, derived_guid(seed, "esp"), recipe.esp_label, esp_size)]
        sizes = [esp_size]
        if root is not None:
            requests.append(PartitionRequest(_root_type(recipe), root_guid, recipe.root_label, minimum_size(root)))
            sizes.append(minimum_size(root))
        if recipe.size_bytes is not None and (root is not None or recipe.esp_size_bytes is None):
            requests[-1] = replace(requests[-1], size_bytes=None)
        size = recipe.size_bytes if recipe.size_bytes is not None else disk_size_for(sizes)
        disk_guid = derived_guid(seed, "disk")
        layout = plan_partitions(requests, disk_guid=disk_guid, sector_size=recipe.sector_size, size_bytes=size)
        esp_partition = layout.partitions[0]
        volume = plan_fat32(
            esp_partition.size_bytes(recipe.sector_size),
            recipe.sector_size,
            files,
            label=recipe.esp_label,
            volume_id=derived_guid(seed, "volume").int & 0xFFFFFFFF,
            timestamp=timestamp,
            hidden_sectors=esp_partition.first_lba,
        )
        pieces: list[tuple[int, Disk]] = [(esp_partition.offset_bytes(recipe.sector_size), volume)]
        if root is not None and scratch is not None:
            partition = layout.partitions[1]
            if progress is not None:
                progress("making the root file system", 0, 1)
            file_system = stack.enter_context(
                _root_volume(
                    root,
                    scratch / "root.ext4",
                    size_bytes=partition.size_bytes(recipe.sector_size),
                    label=recipe.root_label,
                    uuid=derived_guid(seed, "root file system"),
                    timestamp=timestamp,
                )
            )
            pieces.append((partition.offset_bytes(recipe.sector_size), file_system))
        pieces += [(offset, MemoryDisk(content)) for offset, content in serialise(layout)]
        yield ComposedDisk("image", size, pieces, sector_size=recipe.sector_size)


def kernel_state(path: Path) -> ExecutionState:
    """The execution state of the kernel at ``path``, by its EFI stub. Raises InputError when it has none."""
    with RawDisk(path) as disk:
        state = parse_pe(disk).state
    if state is None:
        raise InputError("the kernel is made for another architecture", subject=str(path))
    return state


@contextmanager
def _root_volume(
    root: RootTree, path: Path, *, size_bytes: int, label: str, uuid: UUID, timestamp: int
) -> Iterator[Disk]:
    make_ext4(root, path, size_bytes=size_bytes, label=label, uuid=uuid, timestamp=timestamp)
    with RawDisk(path) as disk:
        yield disk


def _root_type(recipe: Recipe) -> UUID:
    if recipe.states == (ExecutionState.AARCH64,):
        return LINUX_ROOT_ARM64_TYPE
    return LINUX_ROOT_ARM_TYPE if recipe.states == (ExecutionState.AARCH32,) else LINUX_DATA_TYPE


def _esp_size(recipe: Recipe, files: list[FatFile]) -> int:
    least = align_up(minimum_fat32_size(files, recipe.sector_size, label=recipe.esp_label), MIB)
    if recipe.esp_size_bytes is None:
        # What is there, a little more, and never an ESP so small that the first kernel update no longer fits.
        return max(DEFAULT_ESP_BYTES, align_up(least + _ESP_SPARE_BYTES, MIB))
    if recipe.esp_size_bytes < least:
        raise UsageError(
            f"an ESP of {recipe.esp_size_bytes} bytes is too small",
            hint=f"its content, and FAT32 on sectors of {recipe.sector_size} bytes, need {least // MIB} MiB",
        )
    return recipe.esp_size_bytes


@contextmanager
def _esp_tree(recipe: Recipe, root: RootTree | None, root_guid: UUID) -> Iterator[list[FatFile]]:
    """The files of the ESP, boot programs first; their sources are open while the block runs."""
    with ExitStack() as stack:
        files = []
        for state in recipe.states:
            if state in recipe.efi:
                content: Disk = stack.enter_context(RawDisk(recipe.efi[state]))
                _require_state(content, state)
            else:
                content = _unified(recipe.kernels[state], state, root, root_guid, stack)
            files.append(FatFile(f"EFI/BOOT/{state.boot_file}", content))
        for extra in recipe.esp_files:
            files += [FatFile(path, stack.enter_context(RawDisk(source))) for path, source in _expand(extra)]
        yield files


def _require_state(program: Disk, state: ExecutionState) -> None:
    found = parse_pe(program).state
    if found is not state:
        raise InputError(
            f"this is no EFI program for {state.label}",
            subject=program.name,
            found=found.label if found else "another architecture",
        )


def _unified(
    kernel: KernelRecipe, state: ExecutionState, root: RootTree | None, root_guid: UUID, stack: ExitStack
) -> Disk:
    stub = (kernel.stub or program_path(EfiProgram.STUB, state)).read_bytes()
    linux = stack.enter_context(RawDisk(kernel.kernel))
    initrds = tuple(stack.enter_context(RawDisk(path)) for path in kernel.initrds)
    command_line = kernel.command_line
    if root is not None and not _names_root(command_line):
        command_line = " ".join(filter(None, [f"root=PARTUUID={root_guid}", "rw", command_line]))
    return build_uki(stub, linux=linux, initrd=initrds, cmdline=command_line, os_release=_os_release(root))


def _names_root(command_line: str | None) -> bool:
    return any(word.startswith("root=") for word in (command_line or "").split())


def _os_release(root: RootTree | None) -> str | None:
    if root is None:
        return None
    regular = {entry.path for entry in root.entries if entry.size_bytes}
    for path in _OS_RELEASE:
        if path in regular:
            return (root.staging / path).read_text(encoding="utf-8", errors="replace")
    return None


def _expand(extra: EspFile) -> Iterator[tuple[str, Path]]:
    """(path on the ESP, source file) for a file, or for everything in a folder, in a fixed order."""
    if not extra.source.is_dir():
        yield extra.destination, extra.source
        return
    for folder, folders, names in os.walk(extra.source):
        folders.sort()
        below = Path(folder).relative_to(extra.source).as_posix()
        for name in sorted(names):
            yield "/".join(part for part in (extra.destination, below, name) if part != "."), Path(folder) / name


def _seed(recipe: Recipe, root: RootTree | None) -> str:
    """What every GUID of the image is derived from: all that goes into it. Another input, another disk."""
    digest = hashlib.sha256()

    def add(*words: object) -> None:
        digest.update("\0".join(str(word) for word in words).encode("utf-8", "surrogateescape") + b"\n")

    def add_file(label: str, path: Path) -> None:
        add(label)
        with RawDisk(path) as disk:
            for offset in range(0, disk.size_bytes, _HASH_CHUNK):
                digest.update(disk.read(offset, min(_HASH_CHUNK, disk.size_bytes - offset)))

    add(recipe.esp_label, recipe.root_label, recipe.size_bytes, recipe.esp_size_bytes, recipe.sector_size)
    for state in recipe.states:
        if state in recipe.efi:
            add_file(f"efi {state.value}", recipe.efi[state])
            continue
        kernel = recipe.kernels[state]
        add(f"kernel {state.value}", kernel.command_line)
        for path in (kernel.stub or program_path(EfiProgram.STUB, state), kernel.kernel, *kernel.initrds):
            add_file("file", path)
    for extra in recipe.esp_files:
        for destination, source in _expand(extra):
            add_file(f"esp {destination}", source)
    if root is not None:
        for line in root.manifest():
            add(line)
    return digest.hexdigest()
