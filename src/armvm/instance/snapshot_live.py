"""Snapshots of a machine that runs: disks, variables and memory of one moment, and a machine that goes on from there.

The guest stands still while a snapshot is made. Its memory goes into the first disk that it writes, by QEMU's job
``snapshot-save`` with nodes that are named: the variable store is copied as a file, and its content is part of the
memory too (the flash chip's), which is what counts when the machine goes on from there.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from armvm.errors import ArmvmError, InputError, MachineError, UsageError
from armvm.instance import events, safekeeping, snapshots
from armvm.instance.running import Request, Running, Step
from armvm.instance.snapshot_file import VARIABLES, Memory, folder_of
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import Machine, disk_names
from armvm.machine.devices import DiskInterface
from armvm.machine.qemu.devices import node_name
from armvm.machine.qemu.jobs import run_job
from armvm.machine.qemu.session import QemuSession
from armvm.printable import printable

_SECONDS = 3600.0
"""How long QEMU may take to write or read memory and disks: a dead one hangs up, and is noticed at once."""
_CPU_SUFFIX = "-arm-cpu"


def snapshot(running: Running, request: Request) -> Step:
    """Make the snapshot ``request["name"]`` of the running machine.

    Raises UsageError when that cannot be, MachineError when QEMU fails: there is no such snapshot then.
    """
    name, instance = str(request.get("name")), running.instance
    definition = running.definition
    disks = snapshots.disks_of(definition)
    _require_movable(definition.machine)
    _require_free(running, name, disks)
    begun = snapshots.begin(instance, name, definition, comment=str(request.get("comment") or ""))
    try:
        with _Standstill(running.session):
            snapshots.copy_variables(instance, definition, name)
            nodes = [node_name(disk.name) for disk in disks]
            yield from run_job(
                running.session,
                "snapshot-save",
                {"tag": name, "vmstate": nodes[0], "devices": nodes},
                timeout_seconds=_SECONDS,
            )
            made = replace(begun, memory=_memory(running, disks[0].name, name))
            snapshots.commit(instance, made, definition)
    except Exception:  # when the machine is over there is nothing to be waited for: ``settle`` takes it away then
        yield from _take_back(running, name)
        raise
    assert made.memory is not None  # noqa: S101 - just set
    return {"name": name, "memory_bytes": made.memory.size_bytes}


def restore(running: Running, request: Request) -> Step:
    """Make the running machine go on from the snapshot ``request["name"]``; what it has been since is gone.

    Raises UsageError, InputError or MachineError with the machine as it is when it cannot; MachineError with the
    machine at its end when QEMU fails then. The instance is what the snapshot says all the same, without the memory.
    """
    name = str(request.get("name"))
    _require_resumable(running, name)
    definition = snapshots.definition_of(running.instance, name)
    # The snapshot's own disks must be there before the machine as it is now is given up.
    _require_inside(running, name)
    snapshots.announce(running.instance, name)
    running.restart(definition, paused=True)
    result = yield from _load(running, name)
    return result


def resume(running: Running, name: str) -> Step:
    """Make a machine that was started paused, as ``snapshots.definition_of`` says, go on from the snapshot ``name``.

    Raises UsageError, InputError or MachineError when it cannot: end the machine then.
    """
    _require_resumable(running, name)
    _require_inside(running, name)
    snapshots.announce(running.instance, name)
    result = yield from _load(running, name)
    return result


def delete(running: Running, request: Request) -> Step:
    """Delete the snapshot ``request["name"]`` of the running machine. Raises UsageError when there is none."""
    name, instance = str(request.get("name")), running.instance
    held = snapshots.find(instance, name).disks
    nodes = _present(running, name)
    snapshots.hide(instance, name)
    if nodes:
        yield from run_job(
            running.session, "snapshot-delete", {"tag": name, "devices": nodes}, timeout_seconds=_SECONDS
        )
    snapshots.discard(instance, name, besides=frozenset(disk.path for disk in running.definition.machine.disks))
    return {"name": name, "disks": len(held)}


class _Standstill:
    """The guest stands still within the block, and everything it wrote is in the files; then it goes on as before."""

    def __init__(self, session: QemuSession) -> None:
        self._session = session
        self._ran = False

    def __enter__(self) -> None:
        self._ran = bool(self._session.qmp.execute("query-status").get("running"))
        if self._ran:
            self._session.qmp.execute("stop", timeout_seconds=_SECONDS)

    def __exit__(self, *_: object) -> None:
        if self._ran and not self._session.qmp.closed:
            self._session.qmp.execute("cont", timeout_seconds=_SECONDS)


@dataclass(frozen=True, slots=True)
class _Runner:
    """What runs the guest's instructions now."""

    accelerator: str
    cpu: str


def _load(running: Running, name: str) -> Step:
    """Load disks and memory and let the guest run; then the instance is what the snapshot says."""
    instance, session = running.instance, running.session
    found = snapshots.find(instance, name)
    nodes = [node_name(disk) for disk in found.disks]
    assert found.memory is not None  # noqa: S101 - it was required
    try:
        yield from run_job(
            session,
            "snapshot-load",
            {"tag": name, "vmstate": node_name(found.memory.disk), "devices": nodes},
            timeout_seconds=_SECONDS,
        )
        safekeeping.keep(instance, folder_of(instance, name) / VARIABLES)
        session.qmp.execute("cont", timeout_seconds=_SECONDS)
    except MachineError as error:
        if not session.qmp.closed:
            with suppress(MachineError):
                session.qmp.tell("quit")  # it is neither what it was nor what it was to be
        raise MachineError(
            f"the memory of the snapshot {name} could not be loaded: {error.message}",
            output_tail=error.output_tail,
            hint=f"disks and variables are as in the snapshot: armvm vm start {instance.name} boots from them",
        ) from error
    running.gone.clear()
    instance.save(replace(running.definition, machine=replace(running.definition.machine, platform=None)))
    snapshots.arrived(instance)
    events.record(instance.events, "restored", snapshot=name, memory=True)
    return {"name": name}


def _take_back(running: Running, name: str) -> Generator[None, None, None]:
    """Take away what was made of a snapshot that failed; what cannot be is taken away when the machine is over."""
    session = running.session
    with suppress(ArmvmError):
        if not session.qmp.closed:
            nodes = _present(running, name)
            if nodes:
                yield from run_job(session, "snapshot-delete", {"tag": name, "devices": nodes}, timeout_seconds=60.0)
            own = frozenset(disk.path for disk in running.definition.machine.disks)
            snapshots.discard(running.instance, name, besides=own)


def _require_movable(machine: Machine) -> None:
    """Raise UsageError for devices whose state QEMU cannot save."""
    stuck = [
        f"disk {name} (nvme)"
        for name, disk in zip(disk_names(machine), machine.disks, strict=True)
        if disk.interface is DiskInterface.NVME
    ]
    stuck += [f"shared folder {printable(share.tag)}" for share in machine.shares]
    if stuck:
        raise UsageError(
            f"the memory of a machine with {', '.join(stuck)} cannot be kept: QEMU cannot save the state of that",
            hint="stop the machine: a snapshot of its disks and variables can be made then",
        )


def _require_free(running: Running, name: str, disks: tuple[snapshots.KeptDisk, ...]) -> None:
    snapshots.require_free(running.instance, name, ())
    within = _inside(running.session)
    for disk in disks:
        if name in within.get(node_name(disk.name), {}):
            raise UsageError(f"{disk.path} has a snapshot {name} of its own", hint="choose another name")


def _require_resumable(running: Running, name: str) -> None:
    """Raise UsageError when the snapshot has no memory, InputError when this host cannot go on with it."""
    memory = snapshots.find(running.instance, name).memory
    if memory is None:
        raise UsageError(
            f"the snapshot {name} holds no memory: the machine was not running",
            hint=f"armvm vm stop {running.instance.name}, then armvm vm restore {running.instance.name} {name}",
        )
    qmp = running.session.qmp
    known = {str(one.get("name")) for one in qmp.execute("query-machines")}
    if memory.platform not in known:
        raise InputError(
            f"the memory in it is of QEMU's machine {memory.platform}, and this is QEMU {_version(running)}",
            subject=f"snapshot {name}",
        )
    now = _runner(running)
    if (memory.accelerator, memory.cpu) != (now.accelerator, now.cpu):
        raise InputError(
            "the memory in it is of another processor than the machine has now",
            subject=f"snapshot {name}",
            found=f"{now.cpu} by {now.accelerator}",
            expected=f"{printable(memory.cpu)} by {printable(memory.accelerator)}",
            hint="restored while the machine is stopped, it comes back without its memory",
        )


def _require_inside(running: Running, name: str) -> None:
    """Raise InputError when one of the snapshot's disks is not what QEMU has open, or does not hold it."""
    found = snapshots.find(running.instance, name)
    definition = snapshots.definition_of(running.instance, name)
    paths = {disk.name: disk.path for disk in snapshots.disks_of(definition)}
    if not (folder_of(running.instance, name) / VARIABLES).is_file() and definition.machine.variables:
        raise InputError("its UEFI variables are gone", subject=f"snapshot {name}")
    open_here = {disk.path for disk in running.definition.machine.disks}
    within = _inside(running.session)
    for disk in found.disks:
        path = paths.get(disk)
        if path is None:
            raise InputError(f"the machine in it has no disk {printable(disk)}", subject=f"snapshot {name}")
        held = within.get(node_name(disk), {}) if path in open_here else snapshots.inside(path)
        if name not in held:
            raise InputError(f"the snapshot {name} is not in it any more", subject=str(path))


def _present(running: Running, name: str) -> list[str]:
    """The nodes of the machine's disks that hold a snapshot of that name."""
    mine = {node_name(disk) for disk in disk_names(running.definition.machine)}
    return [node for node, held in _inside(running.session).items() if node in mine and name in held]


def _inside(session: QemuSession) -> dict[str, dict[str, int]]:
    """The snapshots inside the images that QEMU has open: by node, their names, and the size of the memory in them."""
    found: dict[str, dict[str, int]] = {}
    for node in session.qmp.execute("query-named-block-nodes", {"flat": True}):
        held = node.get("image", {}).get("snapshots", [])
        found[str(node.get("node-name"))] = {str(one["name"]): int(one["vm-state-size"]) for one in held}
    return found


def _memory(running: Running, disk: str, name: str) -> Memory:
    runner = _runner(running)
    size = _inside(running.session).get(node_name(disk), {}).get(name, 0)
    return Memory(disk, size, _platform(running), runner.accelerator, runner.cpu, _version(running))


def _platform(running: Running) -> str:
    """QEMU's name, with a version, of the machine that runs."""
    if running.definition.machine.platform is not None:
        return running.definition.machine.platform
    machines: list[dict[str, Any]] = running.session.qmp.execute("query-machines")
    return next((str(one["name"]) for one in machines if one.get("alias") == "virt"), "virt")


def _version(running: Running) -> str:
    version = running.session.qmp.execute("query-version")["qemu"]
    return f"{version['major']}.{version['minor']}.{version['micro']}"


def _runner(running: Running) -> _Runner:
    import sys

    qmp = running.session.qmp
    accelerator = AcceleratorKind.TCG
    if qmp.execute("query-kvm").get("enabled"):
        accelerator = AcceleratorKind.KVM
    elif sys.platform == "darwin":
        from armvm.machine.accelerators import available

        accelerator = available(running.definition.machine.state)[0].kind
    path = qmp.execute("query-cpus-fast")[0]["qom-path"]
    model = str(qmp.execute("qom-get", {"path": path, "property": "type"}))
    return _Runner(accelerator.value, model.removesuffix(_CPU_SUFFIX))
