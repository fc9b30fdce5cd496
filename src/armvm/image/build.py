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
from armvm.guid import ESP_TYPE, derived_guid
from armvm.image.pe import parse_pe
from armvm.image.recipe import EspFile, KernelRecipe, Recipe
from armvm.image.roots import OpenRoot, PlannedRoot, open_roots, os_release, plan_roots, root_volume
from armvm.image.uki import build_uki
from armvm.units import MIB, align_down, align_up

DEFAULT_ESP_BYTES = 64 * MIB
"""An ESP's size where nothing asks for more: FAT32 by a wide margin, with room for a second kernel."""
_ESP_SPARE_BYTES = 8 * MIB
_HASH_CHUNK = 4 * MIB

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
        scratch = Path(tempfile.mkdtemp(prefix=".armvm-build-", dir=scratch_folder))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        if progress is not None and (recipe.root or recipe.roots):
            progress("reading the root tree", 0, 1)
        opened = stack.enter_context(open_roots(recipe, scratch=scratch, timestamp=timestamp))
        seed = _seed(recipe, opened)
        roots = plan_roots(opened, seed)
        files = stack.enter_context(_esp_tree(recipe, roots))
        esp_size = _esp_size(recipe, files)
        size, root_sizes = _sizes(recipe, esp_size, [root.least_bytes for root in roots])
        requests = [PartitionRequest(ESP_TYPE, derived_guid(seed, "esp"), recipe.esp_label, esp_size)]
        requests += [
            PartitionRequest(root.type_guid, root.partition_guid, root.label, size_bytes)
            for root, size_bytes in zip(roots, root_sizes, strict=True)
        ]
        if not roots and recipe.size_bytes is not None and recipe.esp_size_bytes is None:
            requests[-1] = replace(requests[-1], size_bytes=None)
        disk_guid = derived_guid(seed, "disk")
        layout = plan_partitions(requests, disk_guid=disk_guid, sector_size=recipe.sector_size, size_bytes=size)
        esp_partition = layout.partitions[0]
        volume_id = recipe.esp_volume_id
        volume = plan_fat32(
            esp_partition.size_bytes(recipe.sector_size),
            recipe.sector_size,
            files,
            label=recipe.esp_label,
            volume_id=derived_guid(seed, "volume").int & 0xFFFFFFFF if volume_id is None else volume_id,
            timestamp=timestamp,
            hidden_sectors=esp_partition.first_lba,
        )
        pieces: list[tuple[int, Disk]] = [(esp_partition.offset_bytes(recipe.sector_size), volume)]
        for root, partition in zip(roots, layout.partitions[1:], strict=True):
            if progress is not None:
                progress("making the root file system", 0, 1)
            root_bytes = partition.size_bytes(recipe.sector_size)
            file_system = stack.enter_context(
                root_volume(root, scratch=scratch, size_bytes=root_bytes, timestamp=timestamp)
            )
            pieces.append((partition.offset_bytes(recipe.sector_size), file_system))
        pieces += [(offset, MemoryDisk(content)) for offset, content in serialise(layout)]
        yield ComposedDisk("image", size, pieces, sector_size=recipe.sector_size)


def _sizes(recipe: Recipe, esp_bytes: int, least: list[int]) -> tuple[int, list[int | None]]:
    """The disk's size, and the root partitions' in bytes: what the disk has left is shared out among them."""
    smallest = disk_size_for([esp_bytes, *least])
    if recipe.size_bytes is None or not least:
        return recipe.size_bytes or smallest, list(least)
    share = align_down(max(recipe.size_bytes - smallest, 0) // len(least), MIB)
    return recipe.size_bytes, [*(size + share for size in least[:-1]), None]


def kernel_state(path: Path) -> ExecutionState:
    """The execution state of the kernel at ``path``, by its EFI stub. Raises InputError when it has none."""
    with RawDisk(path) as disk:
        state = parse_pe(disk).state
    if state is None:
        raise InputError("the kernel is made for another architecture", subject=str(path))
    return state


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
def _esp_tree(recipe: Recipe, roots: list[PlannedRoot]) -> Iterator[list[FatFile]]:
    """The files of the ESP, boot programs first; their sources are open while the block runs."""
    with ExitStack() as stack:
        files = []
        for state in recipe.states:
            if state in recipe.efi:
                content: Disk = stack.enter_context(RawDisk(recipe.efi[state]))
                _require_state(content, state)
            else:
                root = next((root for root in roots if state in root.states), None)
                content = _unified(recipe.kernels[state], state, root, stack)
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


def _unified(kernel: KernelRecipe, state: ExecutionState, root: PlannedRoot | None, stack: ExitStack) -> Disk:
    stub = (kernel.stub or program_path(EfiProgram.STUB, state)).read_bytes()
    linux = stack.enter_context(RawDisk(kernel.kernel))
    initrds = tuple(stack.enter_context(RawDisk(path)) for path in kernel.initrds)
    command_line = kernel.command_line
    if root is not None and not _names_root(command_line):
        command_line = " ".join(filter(None, [f"root=PARTUUID={root.partition_guid}", "rw", command_line]))
    return build_uki(
        stub, linux=linux, initrd=initrds, cmdline=command_line, os_release=os_release(root.tree) if root else None
    )


def _names_root(command_line: str | None) -> bool:
    return any(word.startswith("root=") for word in (command_line or "").split())


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


def _seed(recipe: Recipe, roots: list[OpenRoot]) -> str:
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
    if recipe.roots or recipe.esp_volume_id is not None:
        add(recipe.esp_volume_id, *((state.value, root.label, root.uuid) for state, root in recipe.roots.items()))
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
    for root in roots:
        for line in root.tree.manifest():
            add(line)
    return digest.hexdigest()
