"""Makes instances: a folder that appears whole, or not at all."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.disk.storage import Disk
from armvm.errors import UsageError
from armvm.instance import dependants, events, machine_toml
from armvm.instance.addresses import addressed
from armvm.instance.beside import appearing
from armvm.instance.cloud_init import CloudInit
from armvm.instance.definition import BackingImage, Definition
from armvm.instance.store import Instance
from armvm.machine.definition import DiskDevice, Machine, VariablesFile, Writes
from armvm.units import align_up, format_size

Progress = Callable[[str, int, int], None]

KEY_NAME = "id_ed25519"
"""What the key pair of an instance's own is called in its folder."""


class Storage(enum.Enum):
    """Where the guest's writes go."""

    OVERLAY = "overlay"
    """A disk of its own over the image, which is only read."""
    COPY = "copy"
    """A whole copy of the image; that is not needed any more afterwards."""
    IN_PLACE = "in-place"
    """The image itself."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an instance is to have beside its machine.

    ``size_bytes`` is the size of its disk, the image's where it is None. ``cloud_init`` gives it a seed, and a key pair
    of its own where it names a user and no other way in. ``shared`` lets it write in place to an image that other
    instances stand on.
    """

    storage: Storage = Storage.OVERLAY
    size_bytes: int | None = None
    cloud_init: CloudInit | None = None
    shared: bool = False


def create(
    instance: Instance,
    machine: Machine,
    disk: Disk,
    *,
    firmware_file: Path | None = None,
    wishes: Wishes | None = None,
    ssh: bool = False,
    progress: Progress | None = None,
) -> Definition:
    """Make ``instance``: ``machine``, with a disk of its own made of its first one (which ``disk`` reads), and a store.

    Its network cards get addresses of their own; with ``ssh``, a port of this host leads to the guest's ssh server.
    ``progress`` is told the step, and how many of how many bytes are done. Returns what was made.
    Raises UsageError when it is there already, or cannot be made so, OutputError when it cannot be written.
    """
    wishes = wishes or Wishes()
    _check(instance, machine, disk, wishes)
    with appearing(instance.folder) as beside:
        definition = _defined(instance, addressed(machine, ssh=ssh), wishes, firmware_file)
        _fill(
            Instance(instance.name, beside), definition, disk, folder=instance.folder, wishes=wishes, progress=progress
        )
    return definition


def _check(instance: Instance, machine: Machine, disk: Disk, wishes: Wishes) -> None:
    """Raise UsageError for what cannot be, before anything is written."""
    if instance.exists:
        raise UsageError(f"instance {instance.name} is there already", hint="armvm vm delete takes it away")
    in_place = wishes.storage is Storage.IN_PLACE
    if wishes.size_bytes is not None:
        if in_place:
            raise UsageError("the disk's size is the image's own, when the guest writes to the image itself")
        if wishes.size_bytes < disk.size_bytes:
            shown = (
                f"{format_size(wishes.size_bytes)} are less than the image, which has {format_size(disk.size_bytes)}"
            )
            raise UsageError(f"a disk cannot be cut short: {shown}")
        if wishes.size_bytes % machine.disks[0].sector_size:
            raise UsageError(f"a disk of {wishes.size_bytes} bytes is not one of whole sectors")
    if wishes.storage is not Storage.COPY and disk.format not in {"raw", "qcow2"}:
        raise UsageError(
            f"{disk.name} is a {disk.format} image: an instance stands on raw and qcow2 images only",
            hint="--copy makes a qcow2 disk of it; armvm convert makes a qcow2 image",
        )
    if in_place and not wishes.shared:
        what = "written to by the guest"
        dependants.require_none(
            machine.disks[0].path, what=what, hint="--copy, or no option: a disk of its own over it"
        )


def _defined(instance: Instance, machine: Machine, wishes: Wishes, firmware_file: Path | None) -> Definition:
    """The definition, as it is once the folder has its name."""
    from armvm.instance import chain, cloud_init, seed

    first, *more = machine.disks
    images: tuple[BackingImage, ...] = ()
    if wishes.storage is Storage.IN_PLACE:
        own = replace(first, path=first.path.absolute(), writes=Writes.KEPT)
    else:
        own = replace(first, path=instance.disk, format="qcow2", writes=Writes.KEPT)
    if wishes.storage is Storage.OVERLAY:
        images = (chain.record_image(first.path.absolute(), first.format, first.name or "disk0"),)
    disks: list[DiskDevice] = [own, *(replace(one, path=one.path.absolute()) for one in more)]
    wanted = wishes.cloud_init
    if wanted is not None:
        disks.append(seed.device(instance.folder / seed.FILE_NAME))
    return Definition(
        replace(machine, disks=tuple(disks), variables=VariablesFile(instance.variables, "qcow2")),
        images,
        firmware_file,
        None if wanted is None else wanted.user,
        None if wanted is None else cloud_init.new_instance_id(),
    )


def _fill(
    beside: Instance,
    definition: Definition,
    disk: Disk,
    *,
    folder: Path,
    wishes: Wishes,
    progress: Progress | None,
) -> None:
    """Write what an instance has into the folder ``beside``, which is to become ``folder``."""
    from armvm.atomic import replacing, write_file
    from armvm.disk.composed import ComposedDisk
    from armvm.disk.qcow2_write import write_qcow2
    from armvm.disk.storage import MemoryDisk
    from armvm.firmware.variables import FLASH_SIZE_BYTES
    from armvm.instance.variables import new_store

    _write_disk(beside, definition, disk, wishes, progress)
    with replacing(beside.variables, mode=0o600) as file:
        write_qcow2(file, ComposedDisk("variables", FLASH_SIZE_BYTES, [(0, MemoryDisk(new_store(definition.machine)))]))
    if wishes.cloud_init is not None:
        definition = _write_seed(beside, definition, wishes.cloud_init)
    write_file(beside.description, machine_toml.serialise(definition, folder), mode=0o600)
    origin = str(definition.images[0].path) if definition.images else disk.name
    events.record(beside.events, "created", image=origin, storage=wishes.storage.value)


def _write_disk(
    beside: Instance, definition: Definition, disk: Disk, wishes: Wishes, progress: Progress | None
) -> None:
    from armvm.atomic import replacing
    from armvm.disk.composed import ComposedDisk
    from armvm.disk.qcow2_write import write_overlay, write_qcow2

    size_bytes = max(wishes.size_bytes or 0, disk.size_bytes)
    if wishes.storage is Storage.OVERLAY:
        (image,) = definition.images
        with replacing(beside.disk, mode=0o600) as file:
            write_overlay(file, backing_path=str(image.path), backing_format=image.format, size_bytes=size_bytes)
    elif wishes.storage is Storage.COPY:
        whole = align_up(size_bytes, disk.sector_size)
        # The caller closes the disk, so the composed one over it is not closed.
        source = disk if whole == disk.size_bytes else ComposedDisk(disk.name, whole, [(0, disk)])
        with replacing(beside.disk, mode=0o600) as file:
            write_qcow2(
                file, source, progress=None if progress is None else lambda done: progress("copying", done, whole)
            )


def _write_seed(beside: Instance, definition: Definition, wanted: CloudInit) -> Definition:
    """Write the seed, and a key pair where it names a user who could not log in otherwise."""
    from armvm.instance import cloud_init, seed, ssh

    if wanted.user is not None and wanted.user_data is None and not wanted.ssh_keys:
        key = ssh.make_key(beside.folder / KEY_NAME, comment=f"armvm-{beside.name}")
        wanted = replace(wanted, ssh_keys=(key,))
    files = cloud_init.render(wanted, definition.instance_id or cloud_init.new_instance_id())
    seed.write(beside.folder / seed.FILE_NAME, files)
    return replace(definition, instance_id=cloud_init.instance_id_of(files))
