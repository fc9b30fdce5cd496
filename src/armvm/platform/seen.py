"""What a check looks at: the observation of one VM, its device tree, and what the host knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.platform.fdt import DeviceTree, parse_fdt
from armvm.platform.host import ExpectedMachine, HotplugRecord
from armvm.printable import printable
from armvm.probe.efi_facts import EfiRun, TestResult
from armvm.probe.linux_run import LinuxRun
from armvm.probe.report import InstanceRun, PlatformObservation
from armvm.spec.judgement import Judgement, unknown
from armvm.spec.verdict import Evidence

FDT_TABLE = UUID("b1b621d5-f19c-41a5-830b-d9152c69aae0")
"""EFI_DTB_TABLE_GUID (UEFI 2.10 §4.6)."""
ACPI_TABLES = (UUID("8868e871-e4f1-11d3-bc22-0080c73c8881"), UUID("eb9d2d30-2d88-11d3-9a16-0090273fc14d"))
"""EFI_ACPI_20_TABLE_GUID and ACPI_TABLE_GUID (UEFI 2.10 §4.6)."""

_T = TypeVar("_T")

_ENDS = {
    TestResult.CRASHED: "took the VM down",
    TestResult.FAULT: "ended in an exception",
    TestResult.UNFINISHED: "began, and nothing was heard after it",
    TestResult.SKIPPED: "was skipped",
    TestResult.DONE: "was done, and what it found did not come through",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """All that the checks judge. ``efi`` and ``linux`` are the runs of the VM that is judged, in its execution state.

    ``tree`` is the device tree that the firmware published; ``tree_error`` says why it could not be read.
    """

    profile: str
    observation: PlatformObservation
    efi: tuple[InstanceRun, ...]
    linux: tuple[LinuxRun, ...]
    tree: DeviceTree | None
    tree_error: str | None
    machine: ExpectedMachine | None
    hotplug: HotplugRecord | None
    schema_warnings: tuple[str, ...] = ()

    def each(self, read: Callable[[EfiRun], _T | None]) -> Iterator[tuple[str, _T]]:
        """What every run says of one thing, with the run's name."""
        for entry in self.efi:
            value = read(entry.run)
            if value is not None:
                yield self.label(entry), value

    def label(self, entry: InstanceRun) -> str:
        """What messages call a run."""
        run = entry.run
        number = "a run" if run.begin.number is None else f"run {run.begin.number}"
        state = f", {run.begin.state.label}" if run.begin.state else ""
        several = any(other.instance != entry.instance for other in self.efi)
        instance = f", instance {printable(entry.instance)}" if several else ""
        return f"EFI probe, {number}{state}{instance}"

    def first(self, read: Callable[[EfiRun], _T | None]) -> _T | None:
        """What the first run that knows says of one thing."""
        return next((value for _, value in self.each(read)), None)

    def first_linux(self, read: Callable[[LinuxRun], _T | None]) -> _T | None:
        """What the first run of the Linux probe that knows says of one thing."""
        return next((value for value in map(read, self.linux) if value is not None), None)

    def done(self, test: str) -> bool:
        """Whether a test went to its end in some run."""
        return any(entry.run.went_through(test) for entry in self.efi)

    def results(self, test: str) -> Iterator[tuple[str, TestResult]]:
        """How a test ended in every run that began it."""
        return self.each(lambda run: run.tests.get(test))

    def crashed(self, test: str) -> bool:
        """Whether a test took a run down."""
        return any(result in (TestResult.CRASHED, TestResult.FAULT) for _, result in self.results(test))

    def says(self, test: Callable[[EfiRun], object]) -> bool:
        """Whether some run says so."""
        return any(test(entry.run) for entry in self.efi)

    @property
    def has_table(self) -> bool | None:
        """Whether the firmware publishes a device tree; None when that is not known."""
        if self.says(lambda run: FDT_TABLE in run.tables or (run.fdt is not None and run.fdt.present)):
            return True
        absent = self.done("tables") or self.says(lambda run: run.fdt is not None and run.fdt.present is False)
        return False if absent else None

    def silent(self, test: str, what: str) -> Judgement:
        """Unknown, since nothing came of a test, with the reason."""
        if not self.efi:
            return unknown("Nothing of the EFI probe came through.")
        evidence = [Evidence(f"{run}, test {test}", f"the test {_ENDS[result]}") for run, result in self.results(test)]
        why = _ENDS[next(self.results(test))[1]] if evidence else "was not reached"
        return unknown(f"{what} is not known: the probe's test {test!r} {why}.", *evidence)


def look(
    observation: PlatformObservation,
    profile: str,
    machine: ExpectedMachine | None,
    hotplug: HotplugRecord | None,
    schema_warnings: tuple[str, ...] = (),
) -> Seen:
    """Gather what the checks need. With several execution states seen, the machine's or the first one's is judged."""
    state = machine.state if machine is not None else observation.state
    efi = tuple(entry for entry in observation.efi_runs if _same(entry.run.begin.state, state))
    linux = tuple(run for run in observation.linux if _same(run.state, state))
    tree, error = _tree(efi, linux)
    return Seen(profile, observation, efi, linux, tree, error, machine, hotplug, schema_warnings)


def _same(state: ExecutionState | None, wanted: ExecutionState | None) -> bool:
    return state is None or wanted is None or state is wanted


def _tree(efi: tuple[InstanceRun, ...], linux: tuple[LinuxRun, ...]) -> tuple[DeviceTree | None, str | None]:
    """The tree that the firmware published; without the EFI probe, the one that Linux was given."""
    contents = [entry.run.fdt.data for entry in efi if entry.run.fdt is not None and entry.run.fdt.data is not None]
    if not efi:
        contents = [run.boot.fdt_data for run in linux if run.boot is not None and run.boot.fdt_data is not None]
    if not contents:
        return None, None
    try:
        return parse_fdt(contents[0]), None
    except InputError as error:
        return None, str(error)
