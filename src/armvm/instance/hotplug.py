"""Disks and network cards that come and go: while the machine runs, confirmed by the guest, or in its description.

What QEMU answers is only half of it: a guest without PCI hotplug never learns of what QEMU has added without a
word. So a device is there when the guest's driver has said so to the device itself, or has read from the disk; one that
the guest does not take in time is taken out again.
"""

from __future__ import annotations

import enum
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.atomic import sync_folder
from armvm.errors import ArmvmError, GuestError, InputError, MachineError, UsageError
from armvm.execution import ExecutionState
from armvm.instance import attachment as attachments
from armvm.instance import events, snapshots
from armvm.instance.attachment import DEFAULT_SECONDS, Attachment
from armvm.instance.chain import image_under
from armvm.instance.definition import BackingImage, Definition
from armvm.instance.running import Request, Running, Step, until
from armvm.instance.store import Instance
from armvm.machine.definition import Machine, disk_names, problems, require_sound
from armvm.machine.devices import DiskDevice, DiskInterface, LinkNetwork, Nic
from armvm.machine.qemu import hotplug as qemu
from armvm.machine.qemu.places import place_of_disk, place_of_nic
from armvm.process import run

_LEAST_DISK_BYTES = 1 << 16
_SECTOR_BYTES = 4096
_READ_SECONDS = 1.0
_OUT_SECONDS = 12.0
"""How long a guest gets to let go of what it has not taken in: Linux waits 5 s when a slot's button is pressed."""


class Witness(enum.Enum):
    """Who says that a device came, or went."""

    DRIVER = "the guest's driver"
    READS = "the guest, which has read from it"
    GUEST = "the guest"
    HYPERVISOR = "QEMU alone: the guest has no way to say so"
    NOBODY = "nobody: the machine is not running"


@dataclass(frozen=True, slots=True)
class Attached:
    """A device that is there: its name, its image (None for a card), and who says so."""

    name: str
    path: Path | None
    witness: Witness
    persistent: bool


def attach(running: Running, request: Request) -> Step:
    """Add a device to the running machine; the answer comes when the guest has taken it.

    Raises UsageError when there is no room for it, MachineError when QEMU does not take it, GuestError when the guest
    has not taken it in time. The machine is as before then.
    """
    wanted = attachments.parse(request)
    instance, before = running.instance, running.definition
    saved = instance.definition() if wanted.persist else None
    wanted, image = _prepared(instance, before, wanted, running=True)
    device = wanted.device
    changed = _with(before, device, image)
    _require_possible(changed.machine)
    path = _make_image(wanted)
    try:
        running.gone.discard(str(device.name))
        yield from _add(running, changed.machine, device)
        witness = yield from _taken_in(running, device, wanted.timeout_seconds)
        if saved is not None:
            instance.save(_with(saved, device, image))
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
        raise
    running.definition = changed
    events.record(instance.events, "attached", device=device.name, witness=witness.value, persist=wanted.persist)
    return _told(Attached(str(device.name), _path_of(device), witness, wanted.persist))


def detach(running: Running, request: Request) -> Step:
    """Take a device from the running machine; the answer comes when the guest has let go of it.

    Raises UsageError when it cannot be taken, MachineError when QEMU refuses, GuestError when the guest has not let go
    of it in time: it is still there then.
    """
    name, persist = str(request.get("name")), bool(request.get("persist"))
    seconds = float(request.get("timeout") or DEFAULT_SECONDS)
    instance, machine = running.instance, running.definition.machine
    device = attachments.device_of(machine, name)
    machine = attachments.without(machine, name)
    saved = _saved_with(instance, name, strict=persist or bool(request.get("delete")))
    if request.get("delete"):
        _require_deletable(instance, device, saved=saved is not None and not persist)
    _require_removable(device)
    witness = _leaving_witness(running, device)
    yield from _remove(running, device, seconds)
    images = tuple(image for image in running.definition.images if image.disk != name)
    running.definition = replace(running.definition, machine=machine, images=images)
    if persist and saved is not None:
        instance.save(_without(saved, name))
    path = _delete_file(device) if request.get("delete") else None
    events.record(instance.events, "detached", device=name, witness=witness.value, persist=persist)
    kept = None if path is not None else _path_of(device)
    stays = saved is not None and not persist
    return {**_told(Attached(name, kept, witness, persist)), "returns": stays}


def attach_stopped(instance: Instance, wanted: Attachment) -> Attached:
    """Add a device to the description of an instance that is not running. Hold the lock.

    Raises UsageError when there is no room for it, InputError when the image is none, or when the instance is about to
    go back to a snapshot, which would undo it.
    """
    snapshots.require_settled(instance)
    before = instance.definition()
    wanted, image = _prepared(instance, before, wanted, running=False)
    changed = _with(before, wanted.device, image)
    _require_possible(changed.machine)
    path = _make_image(wanted)
    try:
        instance.save(changed)
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
        raise
    events.record(instance.events, "attached", device=wanted.device.name, persist=True)
    return Attached(str(wanted.device.name), _path_of(wanted.device), Witness.NOBODY, persistent=True)


def detach_stopped(instance: Instance, name: str, *, delete: bool = False) -> Attached:
    """Take a device from the description of an instance that is not running; its image is kept. Hold the lock.

    Raises as ``attach_stopped`` does.
    """
    snapshots.require_settled(instance)
    before = instance.definition()
    device = attachments.device_of(before.machine, name)
    changed = _without(before, name)
    if delete:
        _require_deletable(instance, device, saved=False)
    instance.save(changed)
    path = _delete_file(device) if delete else None
    events.record(instance.events, "detached", device=name, persist=True)
    kept = None if path is not None else _path_of(device)
    return Attached(name, kept, Witness.NOBODY, persistent=True)


def told(attached: Attached) -> dict[str, object]:
    """As JSON has it."""
    return _told(attached)


def _told(attached: Attached) -> dict[str, object]:
    return {
        "name": attached.name,
        "path": None if attached.path is None else str(attached.path),
        "confirmed_by": attached.witness.name.lower(),
        "witness": attached.witness.value,
        "persistent": attached.persistent,
    }


def _prepared(
    instance: Instance, definition: Definition, wanted: Attachment, *, running: bool
) -> tuple[Attachment, BackingImage | None]:
    """The attachment with name, place and image; and what that image stands on."""
    files = frozenset(path.name.removesuffix(".qcow2") for path in instance.folder.glob("*.qcow2"))
    wanted = attachments.placed(definition.machine, wanted, running=running, taken=files)
    device = wanted.device
    if isinstance(device, LinkNetwork) or not isinstance(device, DiskDevice):
        return wanted, None
    if wanted.new_bytes is None:
        return wanted, image_under(device.path, device.format, str(device.name))
    if wanted.new_bytes < _LEAST_DISK_BYTES or wanted.new_bytes % _SECTOR_BYTES:
        raise UsageError(f"no size for a disk: {wanted.new_bytes} bytes", hint="a whole number of MiB, for example 10G")
    path = instance.folder / f"{device.name}.qcow2"
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already", hint=f"--disk {path} attaches it; or choose another --name")
    return replace(wanted, device=replace(device, path=path, format="qcow2")), None


def _make_image(wanted: Attachment) -> Path | None:
    """Make the new disk's image, whole or not at all; its path, None when none is to be made."""
    device = wanted.device
    if wanted.new_bytes is None or not isinstance(device, DiskDevice):
        return None
    beside = device.path.with_name(f".{device.path.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        run("qemu-img", ["create", "-q", "-f", "qcow2", str(beside), str(wanted.new_bytes)], timeout_seconds=60)
        beside.rename(device.path)
        sync_folder(device.path.parent)
    except OSError as error:
        from armvm.errors import OutputError

        raise OutputError(f"cannot make {device.path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    return device.path


def _require_possible(machine: Machine) -> None:
    """Raise UsageError when there can be no such machine, on any host or on this one."""
    from armvm.machine.qemu.companions import host_problems, resolved

    require_sound(problems(machine))
    require_sound(tuple(host_problems(resolved(machine))))


def _add(running: Running, machine: Machine, device: DiskDevice | Nic) -> Generator[None, None, None]:
    """Have QEMU add it, where ``machine`` has it."""
    name = str(device.name)
    if isinstance(device, DiskDevice):
        qemu.add_disk(running.session, device, name, place=place_of_disk(machine, machine.disks.index(device)))
    else:
        qemu.add_nic(running.session, device, name, place=place_of_nic(machine, machine.nics.index(device)))
    yield


def _taken_in(running: Running, device: DiskDevice | Nic, seconds: float) -> Generator[None, None, Witness]:
    """Wait until the guest has taken it; who says so. Raises GuestError, with all as before, when it does not."""
    session, name = running.session, str(device.name)
    can_tell = _is_virtio(device) and qemu.driver_is_up(session, name) is not None
    if not can_tell and not isinstance(device, DiskDevice):
        return Witness.HYPERVISOR

    def reached() -> bool:
        return bool(qemu.driver_is_up(session, name)) if can_tell else qemu.reads(session, name) > 0

    try:
        there = yield from until(reached, seconds)
    except Exception:
        yield from _out_again(running, device)
        raise
    if there:
        if can_tell and isinstance(device, DiskDevice):
            # Linux looks for partitions as soon as the disk is there: when it has, the disk has its name.
            yield from until(lambda: qemu.reads(session, name) > 0, _READ_SECONDS)
        return Witness.DRIVER if can_tell else Witness.READS
    out = yield from _out_again(running, device)
    left = "it has been taken out again" if out else "and has not let go of it either: it is there until the next start"
    raise GuestError(
        f"{name}: not confirmed by the guest within {seconds:g} s: {_how(device, can_tell=can_tell)}; {left}",
        hint=_why_not(running, device),
    )


def _how(device: DiskDevice | Nic, *, can_tell: bool) -> str:
    if can_tell:
        return "no driver has taken it"
    return "it has read nothing from the disk" if isinstance(device, DiskDevice) else "it says nothing"


def _why_not(running: Running, device: DiskDevice | Nic) -> str:
    machine = running.definition.machine
    if machine.state is ExecutionState.AARCH32 and _is_on_pci(device):
        return (
            "32-bit ARM kernels have no PCI hotplug: disks come and go behind a SCSI controller"
            " (scsi_controller = true in machine.toml), and everything with a stopped machine"
        )
    return "is the guest up, and does it have the driver? --timeout gives it longer"


def _out_again(running: Running, device: DiskDevice | Nic) -> Generator[None, None, bool]:
    """Take back what the guest has not taken in; whether it is out."""
    with suppress(ArmvmError):
        yield from _remove(running, device, _OUT_SECONDS)
        return True
    return False


def _remove(running: Running, device: DiskDevice | Nic, seconds: float) -> Generator[None, None, None]:
    """Take the device out, and close what stands behind it. Raises GuestError when the guest keeps it."""
    name, session = str(device.name), running.session
    running.gone.discard(name)
    qemu.request_removal(session, name)
    if not (yield from until(lambda: name in running.gone, seconds)):
        raise GuestError(
            f"the guest has not let go of {name} within {seconds:g} s: it is still there",
            hint="is it mounted, or is the guest not up? --timeout gives it longer",
        )
    running.gone.discard(name)
    drop: Callable[[], None] = (
        (lambda: qemu.drop_disk(session, name))
        if isinstance(device, DiskDevice)
        else lambda: qemu.drop_nic(session, name)
    )
    # What still writes back holds the image for a moment.
    if not (yield from until(lambda: _dropped(drop), seconds)):
        drop()


def _dropped(drop: Callable[[], None]) -> bool:
    try:
        drop()
    except MachineError as error:
        if "in use" in error.message or "busy" in error.message:
            return False
        raise
    return True


def _leaving_witness(running: Running, device: DiskDevice | Nic) -> Witness:
    """Who will say that it is gone: a guest that has its driver on a PCI device has to switch its slot off first."""
    if running.definition.machine.state is ExecutionState.AARCH32 or not _is_on_pci(device):
        return Witness.HYPERVISOR
    if _is_virtio(device) and not qemu.driver_is_up(running.session, str(device.name)):
        return Witness.HYPERVISOR
    return Witness.GUEST


def _require_removable(device: DiskDevice | Nic) -> None:
    if device.port is None and _is_on_pci(device):
        raise UsageError(
            f"{device.name} sits in a place of its own, and not in a hotplug port: it cannot go while the machine runs",
            hint="stop the machine first",
        )


def _require_deletable(instance: Instance, device: DiskDevice | Nic, *, saved: bool) -> None:
    """Raise UsageError when the file is not ours to delete, or somebody needs it."""
    if not isinstance(device, DiskDevice) or not device.path.is_relative_to(instance.folder):
        raise UsageError(f"{device.name} has no file of its own in the instance's folder: --delete is for those")
    if saved:
        raise UsageError(
            f"{device.name} is in machine.toml, and would lack its file: --persist takes it from there too"
        )
    for name in snapshots.names(instance):
        with suppress(InputError):
            held = snapshots.definition_of(instance, name)
            if device.path in {disk.path for disk in held.machine.disks}:
                raise UsageError(f"the snapshot {name} needs {device.path}", hint="delete the snapshot first")


def _delete_file(device: DiskDevice | Nic) -> Path | None:
    if not isinstance(device, DiskDevice):
        return None
    device.path.unlink(missing_ok=True)
    return device.path


def _with(definition: Definition, device: DiskDevice | Nic, image: BackingImage | None) -> Definition:
    images = definition.images if image is None else (*definition.images, image)
    return replace(definition, machine=attachments.with_device(definition.machine, device), images=images)


def _without(definition: Definition, name: str) -> Definition:
    images = tuple(image for image in definition.images if image.disk != name)
    return replace(definition, machine=attachments.without(definition.machine, name), images=images)


def _saved_with(instance: Instance, name: str, *, strict: bool) -> Definition | None:
    """What machine.toml says, when it has a device of that name. Not ``strict``: one that is broken says nothing."""
    try:
        saved = instance.definition()
    except ArmvmError:
        if strict:
            raise
        return None
    machine = attachments.named(saved.machine)
    return saved if name in {*disk_names(machine), *(nic.name for nic in machine.nics)} else None


def _path_of(device: DiskDevice | Nic) -> Path | None:
    return device.path if isinstance(device, DiskDevice) else None


def _is_virtio(device: DiskDevice | Nic) -> bool:
    return not isinstance(device, DiskDevice) or device.interface is DiskInterface.VIRTIO_BLK


def _is_on_pci(device: DiskDevice | Nic) -> bool:
    return not isinstance(device, DiskDevice) or device.interface is not DiskInterface.VIRTIO_SCSI
