"""The trial of this machine's own VM: the probes are booted, reset, cut off and plugged into, and what they say kept.

One overlay and one variable store are one instance of the VM. The first instance is started three times: for two full
runs with the probe's own reset between them, after a power cycle (and then killed), and after that kill. A second
instance of the same image follows, then Linux with hotplug.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.disk.detect import open_disk
from armvm.disk.qcow2_write import write_overlay
from armvm.errors import InputError, MissingError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.firmware.variables import FLASH_SIZE_BYTES
from armvm.firmware.varstore import new_instance_store
from armvm.machine.backend import Backend
from armvm.machine.console_text import ConsoleText
from armvm.machine.definition import (
    DEFAULT_MEMORY_BYTES,
    Bus,
    Console,
    DiskDevice,
    HardwareDescription,
    Machine,
    VariablesFile,
    Writes,
)
from armvm.platform.host import HotplugRecord
from armvm.platform.linux_disk import build_linux_disk
from armvm.platform.listening import Ear
from armvm.platform.plugging import plug
from armvm.platform.probe_disk import ProbeConfig, build_probe_disk, read_probe_disk, scratch_folder
from armvm.printable import printable
from armvm.probe.kernels import GuestKernel
from armvm.probe.report import After, PlatformObservation, Sitting, observe
from armvm.probe.wire import Run, Speaker, decode

FULL_RUNS = 2
_FIRST = "first"
_NOT_ASKED_OF_THE_OTHER_STATE = frozenset({"acpi", "smbios", "block", "network", "pci", "rtc", "counter", "variables"})

Progress = Callable[[str], None]
"""Takes one line about what is being done."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What was seen of the VM from inside, and what the host did to it meanwhile."""

    observation: PlatformObservation
    hotplug: HotplugRecord | None
    console: bytes
    """What the first instance and Linux said on the console, in order: what ``armvm probe read`` can judge again."""


def in_other_state(
    machine: Machine, backend_for: Callable[[ExecutionState], Backend]
) -> tuple[Machine, Backend] | None:
    """An AArch32 VM beside the AArch64 ``machine``, where there is what that takes: the ``other_state`` of a trial."""
    other = ExecutionState.AARCH32
    if machine.state is other or machine.console is not Console.PL011:
        return None
    try:
        backend, firmware = backend_for(other), find_firmware(other)
    except MissingError:
        return None
    return Machine(other, firmware, (), DEFAULT_MEMORY_BYTES[other], vcpus=1, gic=machine.gic, nics=()), backend


def run_trial(
    machine: Machine,
    backend: Backend,
    *,
    kernel: GuestKernel | None,
    other_state: tuple[Machine, Backend] | None = None,
    timestamp: int,
    patience: float = 1.0,
    progress: Progress = lambda _line: None,
) -> TrialResult:
    """Boot the probes on ``machine`` (its disks are replaced by theirs) and keep what they say.

    Without ``kernel`` there is no Linux probe, and what only it can show stays unknown. ``other_state`` is the same
    kind of VM in the other execution state, which the EFI probe is briefly booted on. ``patience`` multiplies every
    wait. What the probes report never raises; MachineError says that the VM could not be started at all.
    """
    with scratch_folder() as folder:
        trial = _Trial(machine, backend, folder, progress, patience)
        sittings, unchanged = trial.firmware(timestamp)
        failures = {"efi_failure": _silence(sittings[0])}
        if other_state is not None:
            sittings.append(trial.briefly(*other_state, timestamp))
            failures["aarch32_failure"] = _silence(sittings[-1])
        hotplug = None
        if kernel is not None:
            sitting, hotplug = trial.linux(kernel, timestamp)
            sittings.append(sitting)
            failures["linux_failure"] = _silence(sitting)
        name = f"{backend.name} {machine.state.value}, {machine.firmware.name}"
        observation = observe([heard.sitting for heard in sittings], name=name, image_unchanged=unchanged, **failures)
        return TrialResult(observation, hotplug, bytes(trial.console))


@dataclass(frozen=True, slots=True)
class _Heard:
    """A start of the VM, and everything that it said."""

    sitting: Sitting
    console: bytes


class _Trial:
    def __init__(self, machine: Machine, backend: Backend, folder: Path, progress: Progress, patience: float) -> None:
        self._patience = patience
        self._machine = machine
        self._backend = backend
        self._folder = folder
        self._progress = progress
        self.console = bytearray()

    def firmware(self, timestamp: int) -> tuple[list[_Heard], bool]:
        """All that the EFI probe is asked to do, and whether its image is byte for byte what it was."""
        image = self._folder / "probe.img"
        config = ProbeConfig(runs=FULL_RUNS, brief=FULL_RUNS)
        build_probe_disk(image, config=config, states=[self._machine.state], timestamp=timestamp)
        before = _digest(image)
        first = self._instance(image, _FIRST)
        sittings = [
            self._sit(first, _FIRST, None, f"the EFI probe, {FULL_RUNS} runs and a reset", until=None),
            self._sit(first, _FIRST, After.POWER_CYCLE, "again after a power cycle, then killed", until=FULL_RUNS + 1),
            self._sit(first, _FIRST, After.KILL, "again after the kill", until=None),
        ]
        second = self._instance(image, "second")
        sittings.append(self._sit(second, "second", None, "a second instance of the same image", until=1))
        return sittings, _digest(image) == before

    def briefly(self, machine: Machine, backend: Backend, timestamp: int) -> _Heard:
        """The EFI probe in the other execution state: that it runs at all is what is asked."""
        image = self._folder / "other.img"
        config = ProbeConfig(runs=1, skip=_NOT_ASKED_OF_THE_OTHER_STATE)
        build_probe_disk(image, config=config, states=[machine.state], timestamp=timestamp)
        self._progress(f"the EFI probe in {machine.state.label}")
        with backend.start(replace(machine, disks=(_passing_disk(image, backend),))) as session:
            ear = Ear(session, patience=self._patience)
            ear.listen(lambda: False)
        return _Heard(Sitting(decode(bytes(ear.heard)), "other state"), bytes(ear.heard))

    def linux(self, kernel: GuestKernel, timestamp: int) -> tuple[_Heard, HotplugRecord | None]:
        """Linux with hotplug, where the machine takes devices."""
        image = self._folder / "linux.img"
        build_linux_disk(image, kernel, state=self._machine.state, console=self._machine.console, timestamp=timestamp)
        disk = _passing_disk(image, self._backend)
        scsi = self._machine.state is ExecutionState.AARCH32 and self._machine.bus is Bus.PCI
        machine = replace(self._machine, disks=(disk,), scsi_controller=scsi)
        self._progress(f"Linux ({kernel.source}) by {_described(machine.description)}, with hotplug")
        with self._backend.start(machine) as session:
            ear = Ear(session, patience=self._patience)
            hotplug = None
            if ear.listen(lambda: any(record.type == "ready" for record in ear.records(Speaker.LINUX)), patient=True):
                hotplug = plug(session, ear, machine, self._folder)
            session.send(b"armvm:end\n")
            ear.listen(lambda: False, patient=True)
        self.console += ear.heard
        return _Heard(Sitting(decode(bytes(ear.heard)), "linux"), bytes(ear.heard)), hotplug

    def _instance(self, image: Path, name: str) -> Machine:
        """A new instance of ``image``: an overlay (or a copy) and a variable store of its own."""
        form = "qcow2" if "qcow2" in self._backend.capabilities().disk_formats else "raw"
        own = self._folder / f"{name}.{form}"
        if form == "raw":
            shutil.copyfile(image, own)
        else:
            with own.open("xb") as file:
                write_overlay(file, backing_path=image.name, backing_format="raw", size_bytes=image.stat().st_size)
        variables = None
        if self._machine.firmware.keeps_variables:
            store = self._folder / f"{name}.fd"
            with store.open("xb") as file:
                file.write(new_instance_store())
                file.truncate(FLASH_SIZE_BYTES)
            variables = VariablesFile(store, "raw")
        disk = DiskDevice(own, form, writes=Writes.KEPT)
        return replace(self._machine, disks=(disk,), variables=variables)

    def _sit(self, machine: Machine, instance: str, after: After | None, what: str, *, until: int | None) -> _Heard:
        """Start the VM and listen until it powers off, or until run ``until`` is complete: then it is killed."""
        self._progress(what)
        with self._backend.start(machine) as session:
            ear = Ear(session, patience=self._patience)
            ear.listen(lambda: until is not None and ear.completed(until))
            if until is not None:
                session.kill()
        if instance == _FIRST:
            self.console += ear.heard
        runs = [*decode(bytes(ear.heard)), *self._files(machine.disks[0].path)]
        return _Heard(Sitting(tuple(runs), instance, after), bytes(ear.heard))

    def _files(self, overlay: Path) -> list[Run]:
        """What the probe wrote on its disk: the only word there is where the firmware does not speak on the console."""
        if self._machine.console is Console.PL011:
            return []
        try:
            with open_disk(overlay, allow_backing_files=True) as disk:
                return list(read_probe_disk(disk))
        except InputError:
            return []


def _passing_disk(image: Path, backend: Backend) -> DiskDevice:
    """``image``, which nobody needs afterwards, as a disk that the guest can write to."""
    discards = Writes.DISCARDED in backend.capabilities().writes
    return DiskDevice(image, "raw", writes=Writes.DISCARDED if discards else Writes.KEPT)


def _silence(heard: _Heard) -> str | None:
    """What was heard in place of a probe; None when one spoke."""
    if heard.sitting.runs:
        return None
    text = ConsoleText()
    text.feed(heard.console)
    lines = text.tail.splitlines()
    return f"no probe spoke; the last on the console: {printable(lines[-1][-200:])}" if lines else "silence"


def _described(description: HardwareDescription) -> str:
    return "the device tree alone" if description is HardwareDescription.DT else "ACPI"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
