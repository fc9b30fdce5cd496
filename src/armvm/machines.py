"""Kept machines from Python: what ``armvm vm`` does, as methods of ``armvm.Machine`` and ``armvm.AsyncMachine``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from armvm.firmware.variables import Variable
    from armvm.instance.control import State
    from armvm.instance.definition import Definition
    from armvm.instance.dialogue import Dialogue
    from armvm.instance.guest import Finished
    from armvm.instance.snapshot_file import Snapshot
    from armvm.machine.devices import DiskDevice, Nic

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_SAY_SECONDS = 120.0
_PLUG_SECONDS = 30.0


class Machine:
    """A kept machine, by its name; ``Machine.create`` makes one of an image.

    As a context it ends with the block: ``with Machine.create(…) as machine`` kills and deletes it. What a machine
    *is* stands in ``definition.machine``, the frozen value that backends and the specification's checks know.

    Methods raise the errors of ``armvm.errors``: UsageError for what makes no sense, MachineError when the machine
    could not be started or does not run, GuestError when the guest did not do what was asked in time, BusyError when
    another process holds it.
    """

    def __init__(self, name: str) -> None:
        from armvm.instance.store import find

        self._instance = find(name)

    @classmethod
    def create(
        cls,
        name: str,
        image: str | os.PathLike[str],
        *,
        arch: str | None = None,
        user: str | None = None,
        ssh_keys: Sequence[str] = (),
        packages: Sequence[str] = (),
        copy: bool = False,
        disk_size_bytes: int | None = None,
        firmware: Path | None = None,
        **fields: Any,
    ) -> Self:
        """Make an instance of ``image``, which is never written to.

        ``arch`` is the execution state (default: what the image has a boot program for). ``user``, ``ssh_keys`` and
        ``packages`` are for cloud-init. ``copy`` makes it independent of the image. Further keywords are fields of
        ``armvm.machine.definition.Machine`` (``vcpus``, ``memory_bytes``, ``nics`` …).
        """
        from armvm.disk.detect import open_disk
        from armvm.execution import ExecutionState
        from armvm.instance.cloud_init import CloudInit, hostname_of
        from armvm.instance.create import Storage, Wishes, create
        from armvm.instance.planning import kept_machine

        machine = cls(name)
        cloud_init = None
        if user is not None or ssh_keys or packages:
            cloud_init = CloudInit(
                hostname=hostname_of(name), user=user, ssh_keys=tuple(ssh_keys), packages=tuple(packages)
            )
        wishes = Wishes(Storage.COPY if copy else Storage.OVERLAY, disk_size_bytes, cloud_init)
        with open_disk(image, in_place=not copy) as disk:
            planned = kept_machine(
                disk,
                Path(image),
                state=None if arch is None else ExecutionState(arch),
                firmware_file=firmware,
                fields=fields,
            )
            create(machine._instance, planned, disk, firmware_file=firmware, wishes=wishes, ssh=True)
        return machine

    @classmethod
    def every(cls) -> tuple[Self, ...]:
        """All instances, by name."""
        from armvm.instance.store import every

        return tuple(cls(instance.name) for instance in every())

    @property
    def name(self) -> str:
        """What it is called."""
        return self._instance.name

    @property
    def folder(self) -> Path:
        """Where everything of it stands."""
        return self._instance.folder

    @property
    def exists(self) -> bool:
        """Whether it has been made."""
        return self._instance.exists

    @property
    def state(self) -> State:
        """How it is: stopped, starting, running, paused, crashed."""
        from armvm.instance.control import status

        return status(self._instance).state

    @property
    def definition(self) -> Definition:
        """What it is. Raises InputError, with file and line, when its machine.toml is broken."""
        return self._instance.definition()

    @property
    def log(self) -> str:
        """What it has said on its console, with times."""
        with suppress(FileNotFoundError):
            return self._instance.log.read_text(encoding="utf-8", errors="replace")
        return ""

    def start(self, *, snapshot: str | None = None, timeout_seconds: float = _START_SECONDS) -> None:
        """Start it in the background; with ``snapshot``, go on where that was taken. It outlives this process."""
        from armvm.instance import control

        control.start(self._instance, snapshot=snapshot, timeout_seconds=timeout_seconds)

    def stop(self, *, timeout_seconds: float = _STOP_SECONDS) -> None:
        """Press the power button and wait until it is off. Raises GuestError when the guest does not heed it."""
        from armvm.instance import control

        control.stop(self._instance, timeout_seconds=timeout_seconds)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        from armvm.instance import control

        control.kill(self._instance)

    def restart(self, *, timeout_seconds: float = _STOP_SECONDS) -> None:
        """Stop it, if it runs, and start it."""
        from armvm.instance import control

        control.restart(self._instance, timeout_seconds=timeout_seconds)

    def console(self, *, scrollback: bool = False) -> Dialogue:
        """Its console, to ``send`` bytes and ``expect`` a pattern; a context, which lets go of it.

        ``scrollback`` lets it find what was said lately, too.
        """
        from armvm.instance.dialogue import Dialogue

        return Dialogue(self._instance, scrollback=scrollback)

    def expect(self, pattern: str, *, timeout_seconds: float = _SAY_SECONDS) -> None:
        """Wait until what it said lately, or says now, matches the regular expression.

        Raises GuestError, with the last that it said, when it does not in time.
        """
        with self.console(scrollback=True) as console:
            console.expect(pattern, timeout_seconds=timeout_seconds)

    def run(self, *command: str, input: bytes = b"", timeout_seconds: float = 60.0) -> Finished:
        """Run a command in the guest, by its guest agent: ``exit_code``, ``stdout``, ``stderr``.

        Raises GuestError when no agent answers in time.
        """
        from armvm.instance.guest import Agent

        return Agent(self._instance).run(command, stdin=input, timeout_seconds=timeout_seconds)

    def attach_disk(self, disk: DiskDevice, *, persist: bool = False, timeout_seconds: float = _PLUG_SECONDS) -> str:
        """Add a disk (``armvm.machine.devices.DiskDevice``); its name, once the guest has taken it.

        ``persist`` keeps it for the next starts. Raises GuestError when the guest does not take it in time.
        """
        return self._attach(disk, None, persist, timeout_seconds)

    def attach_new_disk(self, size_bytes: int, *, persist: bool = False, timeout_seconds: float = _PLUG_SECONDS) -> str:
        """Add an empty disk of its own; its name, once the guest has taken it."""
        from armvm.machine.devices import DiskDevice, Writes

        disk = DiskDevice(Path(os.devnull), "qcow2", writes=Writes.KEPT)
        return self._attach(disk, size_bytes, persist, timeout_seconds)

    def attach_nic(
        self, nic: Nic | None = None, *, persist: bool = False, timeout_seconds: float = _PLUG_SECONDS
    ) -> str:
        """Add a network card (default: behind user-mode NAT); its name, once the guest has taken it."""
        from armvm.machine.devices import UserNetwork

        return self._attach(nic or UserNetwork(), None, persist, timeout_seconds)

    def _attach(self, device: DiskDevice | Nic, new_bytes: int | None, persist: bool, timeout_seconds: float) -> str:
        from armvm.instance import change
        from armvm.instance.attachment import Attachment

        wanted = Attachment(device, new_bytes, persist=persist, timeout_seconds=timeout_seconds)
        return str(change.attach(self._instance, wanted)["name"])

    def detach(self, device: str, *, persist: bool = False, timeout_seconds: float = _PLUG_SECONDS) -> None:
        """Take a disk or network card away; returns when the guest has let go of it."""
        from armvm.instance import change

        change.detach(self._instance, device, persist=persist, timeout_seconds=timeout_seconds)

    def snapshot(self, name: str, *, comment: str = "") -> Snapshot:
        """Keep disks, variables and, when it runs, memory as they are now, together or not at all."""
        from armvm.instance import change

        return change.snapshot(self._instance, name, comment=comment)

    def restore(self, name: str) -> None:
        """Go back to a snapshot. What has happened since is lost."""
        from armvm.instance import change

        change.restore(self._instance, name)

    def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot."""
        from armvm.instance import change

        change.delete_snapshot(self._instance, name)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Its snapshots, the oldest first."""
        from armvm.instance import snapshots

        return snapshots.every(self._instance)

    def clone(self, name: str, *, snapshot: str | None = None) -> Self:
        """Another instance like this one, which must not run, or like a snapshot of it."""
        from armvm.instance.clone import clone

        other = type(self)(name)
        clone(self._instance, other._instance, snapshot=snapshot)
        return other

    def variables(self) -> tuple[Variable, ...]:
        """Its UEFI variables, in the order of the store. It must not run."""
        from armvm.instance.variables import read_variables

        return read_variables(self._instance).variables

    def delete(self) -> None:
        """Delete it with its disks and snapshots, killing it first when it runs. There is no way back."""
        from armvm.instance import control
        from armvm.instance.remove import remove

        if control.runs(self._instance):
            control.kill(self._instance)
        remove(self._instance)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.exists:
            self.delete()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class AsyncMachine:
    """The same with coroutines: every method of ``Machine`` runs in a thread, so that many machines can be had at once.

    ``machine`` is the Machine itself. As an asynchronous context it ends with the block.
    """

    def __init__(self, machine: Machine | str) -> None:
        self.machine = Machine(machine) if isinstance(machine, str) else machine

    @classmethod
    async def create(cls, name: str, image: str | os.PathLike[str], **options: Any) -> Self:
        """Make an instance of ``image``; see ``Machine.create``."""
        return cls(await asyncio.to_thread(Machine.create, name, image, **options))

    @property
    def name(self) -> str:
        """What it is called."""
        return self.machine.name

    @property
    def state(self) -> State:
        """How it is."""
        return self.machine.state

    async def start(self, *, snapshot: str | None = None, timeout_seconds: float = _START_SECONDS) -> None:
        """Start it in the background; see ``Machine.start``."""
        await asyncio.to_thread(self.machine.start, snapshot=snapshot, timeout_seconds=timeout_seconds)

    async def stop(self, *, timeout_seconds: float = _STOP_SECONDS) -> None:
        """Press the power button and wait until it is off."""
        await asyncio.to_thread(self.machine.stop, timeout_seconds=timeout_seconds)

    async def kill(self) -> None:
        """End it at once, as a power cut would."""
        await asyncio.to_thread(self.machine.kill)

    async def restart(self, *, timeout_seconds: float = _STOP_SECONDS) -> None:
        """Stop it, if it runs, and start it."""
        await asyncio.to_thread(self.machine.restart, timeout_seconds=timeout_seconds)

    async def expect(self, pattern: str, *, timeout_seconds: float = _SAY_SECONDS) -> None:
        """Wait until what it said lately, or says now, matches the regular expression."""
        await asyncio.to_thread(self.machine.expect, pattern, timeout_seconds=timeout_seconds)

    async def send(self, text: bytes) -> None:
        """Type on its console."""

        def type_it() -> None:
            with self.machine.console() as console:
                console.send(text)

        await asyncio.to_thread(type_it)

    async def run(self, *command: str, input: bytes = b"", timeout_seconds: float = 60.0) -> Finished:
        """Run a command in the guest, by its guest agent."""
        return await asyncio.to_thread(self.machine.run, *command, input=input, timeout_seconds=timeout_seconds)

    async def attach_disk(self, disk: DiskDevice, **options: Any) -> str:
        """Add a disk; its name, once the guest has taken it."""
        return await asyncio.to_thread(self.machine.attach_disk, disk, **options)

    async def attach_nic(self, nic: Nic | None = None, **options: Any) -> str:
        """Add a network card; its name, once the guest has taken it."""
        return await asyncio.to_thread(self.machine.attach_nic, nic, **options)

    async def detach(self, device: str, **options: Any) -> None:
        """Take a disk or network card away; returns when the guest has let go of it."""
        await asyncio.to_thread(self.machine.detach, device, **options)

    async def snapshot(self, name: str, *, comment: str = "") -> Snapshot:
        """Keep disks, variables and, when it runs, memory as they are now, together or not at all."""
        return await asyncio.to_thread(self.machine.snapshot, name, comment=comment)

    async def restore(self, name: str) -> None:
        """Go back to a snapshot."""
        await asyncio.to_thread(self.machine.restore, name)

    async def clone(self, name: str, *, snapshot: str | None = None) -> Self:
        """Another instance like this one, or like a snapshot of it."""
        return type(self)(await asyncio.to_thread(self.machine.clone, name, snapshot=snapshot))

    async def delete(self) -> None:
        """Delete it, killing it first when it runs."""
        await asyncio.to_thread(self.machine.delete)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.machine.exists:
            await self.delete()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"
