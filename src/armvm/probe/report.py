"""Everything that was seen of a platform: the runs of both probes, and how they came about."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from armvm.execution import ExecutionState
from armvm.probe.efi_facts import EfiRun
from armvm.probe.efi_run import read_efi_run
from armvm.probe.linux_run import LinuxRun, read_linux_run
from armvm.probe.wire import Run, Speaker


class After(enum.Enum):
    """What lies between a run of the EFI probe and the one before it on the same instance."""

    RESET = "reset"
    POWER_CYCLE = "power-cycle"
    KILL = "kill"
    """The hypervisor's process was killed."""


@dataclass(frozen=True, slots=True)
class Sitting:
    """What came out of one start of the VM: one console log, or the probe's files.

    ``instance`` names the VM instance (its variable store); ``after`` is what ended the instance's sitting before
    this one, where that is known.
    """

    runs: tuple[Run, ...]
    instance: str = "vm"
    after: After | None = None


@dataclass(frozen=True, slots=True)
class InstanceRun:
    """A run of the EFI probe with its instance, and what lies between it and the run before it there."""

    run: EfiRun
    instance: str
    after: After | None


@dataclass(frozen=True, slots=True)
class PlatformObservation:
    """All that is known of a platform from inside, in the order in which it happened.

    ``image_unchanged`` tells whether the probe image's file has the same hash as before; None where nobody looked.
    ``efi_failure`` and ``linux_failure`` say in words what happened when a probe was started and never spoke, or never
    got ready, where the host knows that.
    """

    name: str
    efi_runs: tuple[InstanceRun, ...]
    linux: tuple[LinuxRun, ...]
    image_unchanged: bool | None = None
    efi_failure: str | None = None
    linux_failure: str | None = None
    aarch32_failure: str | None = None

    @property
    def efi(self) -> tuple[EfiRun, ...]:
        """The runs of the EFI probe."""
        return tuple(entry.run for entry in self.efi_runs)

    @property
    def fdt(self) -> bytes | None:
        """The first device tree that came through whole: what the firmware published, else what Linux was given."""
        found = [run.fdt.data for run in self.efi if run.fdt is not None]
        found += [run.boot.fdt_data for run in self.linux if run.boot is not None]
        return next((data for data in found if data is not None), None)

    @property
    def state(self) -> ExecutionState | None:
        """The execution state that the first run was in."""
        states = [run.begin.state for run in self.efi] + [run.state for run in self.linux]
        return next((state for state in states if state is not None), None)


def observe(
    sittings: Iterable[Sitting],
    *,
    name: str = "platform",
    image_unchanged: bool | None = None,
    efi_failure: str | None = None,
    linux_failure: str | None = None,
    aarch32_failure: str | None = None,
) -> PlatformObservation:
    """Put together what the probes said in ``sittings``, which are in the order in which they took place.

    The same run twice (on the console and in a file) counts once. Between two runs of one sitting lies a reset.
    """
    efi: list[InstanceRun] = []
    linux: list[LinuxRun] = []
    seen: list[Run] = []
    for sitting in sittings:
        first = True
        for run in sitting.runs:
            if any(run.records == other.records and run.speaker is other.speaker for other in seen):
                continue
            seen.append(run)
            if run.speaker is Speaker.LINUX:
                linux.append(read_linux_run(run))
                continue
            read = read_efi_run(run)
            before = next((entry.run for entry in reversed(efi) if entry.instance == sitting.instance), None)
            after = (sitting.after if first else None) or _between(read, before)
            efi.append(InstanceRun(read, sitting.instance, after))
            first = False
    return PlatformObservation(
        name, tuple(efi), tuple(linux), image_unchanged, efi_failure, linux_failure, aarch32_failure
    )


def _between(run: EfiRun, before: EfiRun | None) -> After | None:
    """What the probe itself says of how a run came about."""
    if run.begin.reason in ("reset", "crash"):
        return After.RESET
    # A run that ended in a shutdown and was followed by another: somebody switched the VM on again.
    return After.POWER_CYCLE if before is not None and before.complete and before.next == "shutdown" else None
