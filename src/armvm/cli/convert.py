"""``armvm convert``: a disk image in another format, with other sectors, or of another size."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.cli.instances_option import add_instances_option, require_no_instances
from armvm.errors import UsageError
from armvm.printable import printable
from armvm.units import format_size, parse_size

if TYPE_CHECKING:
    from armvm.disk.formats import OutputFormat
    from armvm.image.reshape import Reshape

DESCRIPTION = """Write the disk image IN to OUT, in another format, with other sectors, or of another size.

IN is never changed, and found out by its content: raw, qcow2, vmdk, vhdx, vhd, vdi. OUT's format is that of its name,
or --format. Zeros take no room in OUT. What was written is read back and compared before OUT appears; OUT is there
whole or not at all, whatever happens. Without --sector-size, --size and --shrink the disk is copied byte for byte.

With other sectors the GPT is made anew and so is every FAT file system: GUIDs, names and files stay, what needs more
room gets it. A disk of another size has its backup GPT at its new end."""
EXAMPLES = """  armvm convert disk.qcow2 disk.vhd
  armvm convert disk.img small.qcow2 --compress zstd
  armvm convert disk.qcow2 disk.vmdk --subformat streamOptimized
  armvm convert disk.img disk-4k.img --sector-size 4096
  armvm convert disk.qcow2 large.qcow2 --size +20G --grow-partition last
  armvm convert disk.qcow2 smallest.img --shrink"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("input", metavar="IN", help="a disk image or block device")
    parser.add_argument("output", metavar="OUT", type=Path, help="the image to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    add_instances_option(parser)
    parser.add_argument("--no-verify", action="store_true", help="do not read OUT back")
    parser.add_argument(
        "--allow-backing-files",
        action="store_true",
        help="follow a qcow2 image's backing file, if it lies below the image's own folder",
    )
    container = parser.add_argument_group("its format")
    container.add_argument(
        "--format", choices=("raw", "qcow2", "vmdk", "vhdx", "vhd", "vdi"), help="OUT's format (default: by its name)"
    )
    container.add_argument(
        "--compress", nargs="?", const="zlib", choices=("zlib", "zstd"), help="compress a qcow2 (default: with zlib)"
    )
    container.add_argument(
        "--subformat",
        "--vmdk-subformat",
        metavar="KIND",
        help="vmdk: monolithicSparse or streamOptimized; vhdx: dynamic or fixed; vhd: fixed or dynamic; "
        "vdi: dynamic or static (default: the first)",
    )
    shape = parser.add_argument_group("its shape")
    shape.add_argument("--sector-size", type=int, choices=(512, 4096), help="the disk's logical sectors")
    shape.add_argument(
        "--size", metavar="SIZE|+SIZE|min", help="the disk's size, or how much more; min cuts off what is unused"
    )
    shape.add_argument(
        "--grow-partition", metavar="N|last", help="let this partition, and an ext4 or FAT in it, take the free room"
    )
    shape.add_argument(
        "--shrink", action="store_true", help="also shrink an ext4 in the last partition: to --size, or to its content"
    )


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    from armvm.cli.terminal import steps
    from armvm.disk.detect import open_disk
    from armvm.image.convert import convert_image
    from armvm.machine.terminal import ending_on_signals

    output, reshape = _format(options), _reshape(options)
    if options.force:
        require_no_instances(options.output, options, what="replaced")
    with (
        ending_on_signals(),
        open_disk(options.input, allow_backing_files=options.allow_backing_files) as source,
        steps(quiet=options.quiet) as progress,
    ):
        done = convert_image(
            source,
            options.output,
            output,
            reshape=reshape,
            overwrite=options.force,
            verify=not options.no_verify,
            progress=progress,
        )
    for note in done.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    if not options.quiet:
        sectors = "" if done.sector_size == 512 else f" with {done.sector_size}-byte sectors"
        verified = ", verified" if done.verified else ""
        print(
            f"{printable(str(options.output))}: {output.format.value}, {format_size(done.size_bytes)} disk{sectors}, "
            f"{format_size(done.stored_bytes)} on disk{verified}"
        )
    return 0


def _format(options: argparse.Namespace) -> OutputFormat:
    from armvm.disk.formats import DiskFormat, OutputFormat
    from armvm.disk.qcow2_header import Compression

    chosen = DiskFormat(options.format) if options.format else DiskFormat.of_name(options.output)
    if chosen is None:
        raise UsageError(
            f"what is {printable(options.output.name)} to be?",
            hint="give it a name with .raw, .img, .qcow2, .vmdk, .vhdx, .vhd or .vdi, or say --format",
        )
    compression = Compression[options.compress.upper()] if options.compress else None
    return OutputFormat(chosen, options.subformat, compression)


def _reshape(options: argparse.Namespace) -> Reshape:
    from armvm.image.reshape import LAST, Reshape

    size: str | None = options.size
    grow: int | None = None
    if options.grow_partition is not None:
        number = options.grow_partition
        if number != "last" and not (number.isascii() and number.isdigit() and 0 < int(number) <= 128):
            raise UsageError(f"not a partition: {number!r}", hint="a number from 1 to 128, or last")
        grow = LAST if number == "last" else int(number)
    absolute = size is not None and size != "min" and not size.startswith("+")
    return Reshape(
        sector_size=options.sector_size,
        size_bytes=parse_size(size) if size is not None and absolute else None,
        extra_bytes=parse_size(size[1:]) if size is not None and size.startswith("+") else None,
        smallest=size == "min",
        shrink=options.shrink,
        grow=grow,
    )
