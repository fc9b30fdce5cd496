"""``armvm repair``: the edits that make an image conform; shown, or written so that none is ever half done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armvm.cli.instances_option import add_instances_option, require_no_instances
from armvm.errors import BusyError, OutputError, UsageError
from armvm.execution import ExecutionState
from armvm.printable import printable
from armvm.spec.catalogue import DEFAULT_PROFILE, PROFILES

if TYPE_CHECKING:
    from armvm.disk.files import FileSystem
    from armvm.disk.patched import PatchedDisk
    from armvm.disk.storage import Disk
    from armvm.guest.facts import Assumption
    from armvm.repair.plan import RepairPlan
    from armvm.spec.verdict import Report

DESCRIPTION = """Make a disk image conform: print the edits, each with its reason, and what cannot be repaired.

Nothing is written unless asked for. --write changes the image where it stands; a journal beside it (IMAGE.armvm-repair)
makes sure that it is never half repaired: after an interruption of any kind, --resume finishes and --undo takes
everything back. -o writes a repaired copy and leaves the image as it is. Exit code: 0 nothing that counts is left
failing (or would be), 1 something cannot be repaired."""
EXAMPLES = """  armvm repair disk.img
  armvm repair --write disk.qcow2
  armvm repair -o repaired.qcow2 disk.img
  armvm repair --only image.gpt --write disk.img
  armvm repair --resume disk.img"""

SCHEMA = "armvm.repair/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("image", metavar="IMAGE", help="a disk image or block device")
    action = parser.add_argument_group("what is done").add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="repair the image in place")
    action.add_argument("-o", "--output", type=Path, metavar="OUT", help="write a repaired copy there")
    action.add_argument("--resume", action="store_true", help="finish an interrupted repair")
    action.add_argument("--undo", action="store_true", help="take back an interrupted repair")
    add_instances_option(parser)
    copy = parser.add_argument_group("the copy")
    copy.add_argument("--force", action="store_true", help="replace OUT if it exists")
    copy.add_argument("--output-format", choices=("raw", "qcow2"), help="of OUT (default: by its name, else raw)")
    choice = parser.add_argument_group("what is repaired")
    choice.add_argument("--only", action="append", default=[], metavar="REQUIREMENT", help="nothing else; repeatable")
    choice.add_argument(
        "--except", dest="leave", action="append", default=[], metavar="REQUIREMENT", help="leave this; repeatable"
    )
    choice.add_argument(
        "--arch",
        action="append",
        default=[],
        choices=[state.value for state in ExecutionState],
        help="an execution state that the image has to serve; repeatable (default: any)",
    )
    choice.add_argument("--sector-size", type=int, choices=(512, 4096), help="the disk's sectors (default: found out)")
    report = parser.add_argument_group("the report")
    report.add_argument(
        "--profile", choices=PROFILES, default=DEFAULT_PROFILE, help="which version of the specification (%(default)s)"
    )
    report.add_argument("--format", choices=("text", "json"), default="text", help="default: text")


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    if (options.force or options.output_format) and options.output is None:
        raise UsageError("--force and --output-format go with -o OUT")
    wants = _wants(options)
    image = Path(options.image)
    if options.resume or options.undo:
        return _settle(image, options)
    if _under_repair(image):
        raise BusyError(
            f"a repair of {image} was interrupted", hint="finish it with --resume, or take it back with --undo"
        )
    if options.output is not None and options.output.exists() and not options.force:
        raise OutputError(f"{options.output} is already there", hint="--force replaces it")
    if options.output is not None:
        require_no_instances(options.output, options, what="replaced")
    return _repair(image, options, wants)


def _repair(image: Path, options: argparse.Namespace, wants: Callable[[str], bool]) -> int:
    from armvm.cli.clock import timestamp
    from armvm.disk.detect import open_disk
    from armvm.repair.plan import plan_repair

    with open_disk(image, sector_size=options.sector_size, in_place=True) as disk:
        plan, patched = plan_repair(
            disk,
            check=_check(options, str(image)),
            audit=_audit,
            file_systems=_file_systems,
            timestamp=timestamp(),
            states=[ExecutionState(state) for state in options.arch],
            wants=wants,
        )
        with patched:
            mode = "plan"
            if options.output is not None:
                _copy(patched, options)
                mode = "copied"
            elif options.write and plan.edits:
                from armvm.repair.journal import write_in_place

                require_no_instances(image, options, what="changed")
                write_in_place(image, disk.format, disk.size_bytes, patched.changes())
                mode = "written"
            _say(plan, mode, options)
    return 1 if plan.left(wants) else 0


def _check(options: argparse.Namespace, name: str) -> Callable[[Disk], Report]:
    def check(disk: Disk) -> Report:
        from armvm.guest.check import check_image

        states = [ExecutionState(state) for state in options.arch]
        return check_image(disk, profile=options.profile, states=states, name=name)

    return check


def _audit(disk: Disk) -> Iterable[Assumption]:
    """What the guests on a disk assume."""
    from armvm.guest.audit import GuestAudit
    from armvm.image.contents import ImageContents

    audit = GuestAudit(ImageContents(disk))
    return [each for assumptions in audit.assumptions.values() for each in assumptions.found]


def _file_systems(disk: Disk) -> Iterable[FileSystem]:
    """The file systems on a disk that can be read, each named by its partition."""
    from armvm.disk.gpt import read_partition_table
    from armvm.disk.volumes import Volumes

    volumes = Volumes(disk, read_partition_table(disk).partitions)
    return [volume.files for volume in volumes if volume.files is not None]


def _wants(options: argparse.Namespace) -> Callable[[str], bool]:
    """Which requirements are to be repaired. Raises UsageError for one that does not exist."""
    from armvm.spec.catalogue import requirement

    only = {requirement(identifier).id for identifier in options.only}
    leave = {requirement(identifier).id for identifier in options.leave}
    return lambda identifier: identifier not in leave and (not only or identifier in only)


def _under_repair(image: Path) -> bool:
    from armvm.repair.journal import left_behind

    return left_behind(image)


def _settle(image: Path, options: argparse.Namespace) -> int:
    from armvm.repair.journal import resume, undo

    whole = resume(image) if options.resume else undo(image)
    if not whole:
        done = "the interrupted repair had written nothing yet: the image is untouched, and the journal is removed"
    elif options.resume:
        done = "the repair is finished"
    else:
        done = "the repair is taken back: the image is as it was"
    if options.format == "json":
        mode = ("resumed" if options.resume else "undone") if whole else "untouched"
        _print_json({"schema": SCHEMA, "image": str(image), "mode": mode})
    elif not options.quiet:
        print(f"{printable(str(image))}: {done}")
    return 0


def _copy(patched: PatchedDisk, options: argparse.Namespace) -> None:
    from armvm.atomic import replacing
    from armvm.cli.terminal import steps
    from armvm.disk.qcow2_write import write_qcow2
    from armvm.disk.write import write_raw

    by_name = "qcow2" if options.output.suffix.lower() == ".qcow2" else "raw"
    write = write_qcow2 if (options.output_format or by_name) == "qcow2" else write_raw
    with steps(quiet=options.quiet) as progress, replacing(options.output, overwrite=options.force) as file:
        write(file, patched, progress=lambda done: progress("writing", done, patched.size_bytes))


def _say(plan: RepairPlan, mode: str, options: argparse.Namespace) -> None:
    if options.format == "json":
        from armvm.cli.clock import created

        _print_json(_document(plan, mode, options, created()))
        return
    from armvm.cli.terminal import stdout_style

    style = stdout_style()
    name = printable(options.image)
    if not plan.edits:
        print(f"{style.bold(name)}: {'nothing to repair' if not plan.unrepairable else 'nothing that can be repaired'}")
    else:
        verb = {"plan": "would be made", "written": "made", "copied": "made in the copy"}[mode]
        count = f"{len(plan.edits)} {'edit' if len(plan.edits) == 1 else 'edits'}"
        print(f"{style.bold(name)}: {count} {verb}")
    for edit in plan.edits:
        print(f"  {style.good('edit')}  {edit.requirement}  {printable(edit.where)}")
        print(f"        {printable(edit.action)}")
        print(f"        why: {printable(edit.reason)}")
    for entry in plan.unrepairable:
        print(f"  {style.bad('left')}  {entry.requirement}  {printable(entry.where)}")
        print(f"        {printable(entry.why)}")
        if entry.remedy:
            print(f"        by hand: {printable(entry.remedy)}")
    if plan.edits:
        after = "would then " if mode == "plan" else ""
        print(f"  before: {_verdict(plan.before)}; {after}{'be' if after else 'now'}: {_verdict(plan.after)}")
        if mode == "plan" and not options.quiet:
            print(f"  nothing was written: `armvm repair --write {name}` does it in place, -o OUT in a copy")


def _verdict(report: Report) -> str:
    from armvm.spec.verdict import Level

    failed = report.failed([Level.MUST])
    if failed:
        return f"{len(failed)} {'must fails' if len(failed) == 1 else 'musts fail'}"
    return "conforms" if report.conforms else "nothing failed of what could be judged"


def _document(plan: RepairPlan, mode: str, options: argparse.Namespace, created: str) -> dict[str, Any]:
    from armvm.report.json import report_value
    from armvm.version import __version__

    return {
        "schema": SCHEMA,
        "tool": {"name": "armvm", "version": __version__},
        "profile": options.profile,
        "created": created,
        "image": options.image,
        "mode": mode,
        "output": None if options.output is None else str(options.output),
        "edits": [
            {"requirement": e.requirement, "where": e.where, "action": e.action, "reason": e.reason} for e in plan.edits
        ],
        "unrepairable": [
            {"requirement": u.requirement, "where": u.where, "why": u.why, "remedy": u.remedy}
            for u in plan.unrepairable
        ],
        "before": report_value(plan.before),
        "after": report_value(plan.after),
    }


def _print_json(document: dict[str, Any]) -> None:
    import json

    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=True) + "\n")
