"""The plan of a repair: every stage in its order over one disk of changes, and the verdict before and after.

The table comes first, since everything else stands in it; then the ESPs' file systems, their files, and the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from armvm.disk.patched import PatchedDisk
from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.repair.loader import complete_loader, put_loader
from armvm.repair.mbr import convert_mbr
from armvm.repair.table import repair_esp_entry, repair_table
from armvm.repair.text import Audit, FileSystems, edit_lines, no_file_systems, rename_partuuids
from armvm.repair.variables import remove_variables
from armvm.repair.volume import repair_volumes
from armvm.repair.workbench import Edit, Stage, Unrepairable, Workbench, every_requirement
from armvm.spec.verdict import Level, Report, Verdict

__all__ = ["Edit", "RepairPlan", "Unrepairable", "plan_repair"]

Check = Callable[[Disk], Report]


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repair would do to an image, what it cannot do, and what the image is judged before and after."""

    edits: tuple[Edit, ...]
    unrepairable: tuple[Unrepairable, ...]
    before: Report
    after: Report

    def left(self, wants: Callable[[str], bool] = every_requirement) -> tuple[str, ...]:
        """The musts among the wanted requirements that would still fail."""
        failed = self.after.failed([Level.MUST])
        return tuple(finding.requirement for finding in failed if wants(finding.requirement))


def plan_repair(
    disk: Disk,
    *,
    check: Check,
    audit: Audit,
    timestamp: int,
    file_systems: FileSystems = no_file_systems,
    states: Collection[ExecutionState] = (),
    wants: Callable[[str], bool] = every_requirement,
) -> tuple[RepairPlan, PatchedDisk]:
    """Plan the repair of ``disk``, which stays as it is; the disk that comes back has the changes, and is to be closed.

    ``check`` judges an image, ``audit`` finds its guest's assumptions, ``file_systems`` gives the file systems on a
    disk, named by their partitions; ``wants`` chooses requirements by their ids.
    ``timestamp`` (seconds since 1970) becomes the time of the files that are written. ``states`` are the execution
    states that the image has to serve. Raises InputError when the disk cannot be read at all.
    """
    patched = PatchedDisk(disk)
    try:
        before = check(disk)
        bench = Workbench(patched, timestamp, wants)
        stages: tuple[Stage, ...] = (
            repair_table,
            convert_mbr,
            repair_esp_entry,
            repair_volumes,
            lambda bench: put_loader(bench, states),
            complete_loader,
            remove_variables,
            lambda bench: rename_partuuids(bench, file_systems),
            lambda bench: edit_lines(bench, audit),
        )
        for stage in stages:
            stage(bench)
        after = check(patched) if bench.edits else before
    except BaseException:
        patched.close()
        raise
    plan = RepairPlan(tuple(bench.edits), _unrepairable(bench, after), before, after)
    regressions = _regressions(before, after)
    if regressions:
        patched.close()
        raise InputError(f"the repair would break {', '.join(regressions)}; nothing is written", subject=disk.name)
    return plan, patched


def _unrepairable(bench: Workbench, after: Report) -> tuple[Unrepairable, ...]:
    """What the stages said, as far as it still fails, and everything else that fails."""
    failing = {finding.requirement: finding for finding in after.findings if finding.verdict is Verdict.FAIL}
    judged = {finding.requirement for finding in after.findings if finding.verdict is not Verdict.UNKNOWN}
    topics = ("guest.",)  # what an audit found is true whatever the check could tell
    said = [
        entry
        for entry in bench.unrepairable
        if bench.wants(entry.requirement)
        and (entry.requirement in failing or (entry.requirement not in judged and entry.requirement.startswith(topics)))
    ]
    named = {entry.requirement for entry in said}
    for requirement, finding in failing.items():
        if requirement not in named and bench.wants(requirement):
            where = finding.evidence[0].where if finding.evidence else "image"
            said.append(Unrepairable(requirement, where, finding.message, finding.remedy))
    return tuple(said)


def _regressions(before: Report, after: Report) -> list[str]:
    """Requirements that held and would not any more: a repair that does that is none."""
    held = {finding.requirement for finding in before.findings if finding.verdict is Verdict.PASS}
    return [f.requirement for f in after.findings if f.verdict is Verdict.FAIL and f.requirement in held]
