"""``armvm check``: judges images against the specification, without booting them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from armvm.cli.report_options import add_report_arguments, deliver, outputs
from armvm.errors import ArmvmError
from armvm.execution import ExecutionState
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.spec.verdict import Report

DESCRIPTION = """Judge disk images against the VM System Specification for ARM Processors, without booting them.

Every requirement is judged and reported, with evidence and remedy. Raw, qcow2, vmdk, vhdx, vhd and vdi images are
recognised by their content, also compressed (gz, xz, zst, bz2, lz4) and in a tar archive. Raw and qcow2 images on a
server (https://, http://, s3://, gs:// …) are read where they are, and only what is needed of them. Exit code: 0
nothing that counts failed, 1 a requirement failed, 65 an image could not be read."""
EXAMPLES = """  armvm check disk.qcow2
  armvm check https://example.org/disk.qcow2
  armvm check --format json *.img
  armvm check --profile vmspec-2.0 --fail-on should -o json:report.json disk.img"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a disk image, a block device, or a URL")
    parser.add_argument(
        "--arch",
        action="append",
        default=[],
        choices=[state.value for state in ExecutionState],
        help="an execution state that the image has to serve; repeatable (default: any)",
    )
    parser.add_argument("--sector-size", type=int, choices=(512, 4096), help="the disk's sectors (default: found out)")
    parser.add_argument(
        "--allow-backing-files",
        action="store_true",
        help="follow a qcow2 image's backing file, if it lies below the image's own folder",
    )
    add_report_arguments(parser)


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    files = outputs(options)
    reports: list[Report] = []
    unreadable: ArmvmError | None = None
    for image in options.images:
        try:
            reports.append(_check(image, options))
        except ArmvmError as error:
            # The other images are judged all the same: one bad file must not hide what is wrong with the rest.
            if len(options.images) == 1:
                raise
            print(f"armvm: {printable(error.message)}", file=sys.stderr)
            unreadable = unreadable or error
    code = deliver(reports, options, files)
    return unreadable.exit_code if unreadable is not None else code


def _check(image: str, options: argparse.Namespace) -> Report:
    from armvm.cli.terminal import say_traffic, steps
    from armvm.disk.detect import open_disk
    from armvm.disk.remote import shown_name
    from armvm.guest.check import check_image

    states = [ExecutionState(state) for state in options.arch]
    name = shown_name(image)
    with steps(quiet=options.quiet) as progress:
        disk = open_disk(
            image,
            sector_size=options.sector_size,
            allow_backing_files=options.allow_backing_files,
            progress=progress,
        )
    with disk:
        report = check_image(disk, profile=options.profile, states=states, name=name)
    say_traffic(disk.traffic, quiet=options.quiet, name=name if len(options.images) > 1 else None)
    return report
