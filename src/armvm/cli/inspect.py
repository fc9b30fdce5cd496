"""``armvm inspect``: the facts about an image, no verdicts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from armvm.cli.terminal import say_traffic, stdout_style, steps
from armvm.errors import InputError, MissingError
from armvm.printable import printable
from armvm.units import format_size

if TYPE_CHECKING:
    from armvm.disk.storage import Disk
    from armvm.guest.inspect import GuestFacts
    from armvm.image.inspect import ImageFacts, ProgramFacts

SCHEMA = "armvm.inspect/1"
_MOST_BOOTS = 16

DESCRIPTION = """Say what a disk image holds, without judging it: container, sizes, partitions, file systems, boot
programs, the operating system, its kernels and their command lines."""
EXAMPLES = """  armvm inspect disk.qcow2
  armvm inspect --json disk.img
  armvm inspect https://example.org/disk.qcow2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("image", metavar="IMAGE", help="a disk image, a block device, or a URL")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--sector-size", type=int, choices=(512, 4096), help="the disk's sectors (default: found out)")
    parser.add_argument(
        "--allow-backing-files",
        action="store_true",
        help="follow a qcow2 image's backing file, if it lies below the image's own folder",
    )


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    from armvm.disk.detect import open_disk
    from armvm.disk.remote import shown_name
    from armvm.image.inspect import inspect_image

    with steps(quiet=options.quiet) as progress:
        disk = open_disk(
            options.image,
            sector_size=options.sector_size,
            allow_backing_files=options.allow_backing_files,
            progress=progress,
        )
    with disk:
        facts = inspect_image(disk, name=shown_name(options.image))
        guests, note = _guests(disk)
    say_traffic(disk.traffic, quiet=options.quiet)
    if options.json:
        print(json.dumps(_as_json(facts, guests, note), indent=2))
    else:
        print("\n".join(_as_text(facts, guests, note)))
    return 0


def _guests(disk: Disk) -> tuple[tuple[GuestFacts, ...], str | None]:
    """The guests on the disk; or none, and why they could not be looked at."""
    from armvm.guest.audit import GuestAudit
    from armvm.image.contents import ImageContents

    try:
        return GuestAudit(ImageContents(disk)).facts(), None
    except (InputError, MissingError) as error:
        return (), f"the guest could not be read: {error.message}"


def _as_text(facts: ImageFacts, guests: Sequence[GuestFacts], guest_note: str | None) -> Iterator[str]:
    style = stdout_style()
    yield style.bold(printable(facts.name))
    yield f"  container    {facts.format}"
    yield f"  disk         {format_size(facts.size_bytes)} ({facts.size_bytes} bytes), {facts.sector_size}-byte sectors"
    guid = f", disk GUID {facts.disk_guid}" if facts.disk_guid else ""
    yield f"  partitions   {facts.table.value}{guid}"
    for each in facts.partitions:
        content = each.content
        held = (
            " ".join(filter(None, [content.kind, content.label and f"“{printable(content.label)}”"]))
            if content
            else "?"
        )
        name = f" “{printable(each.partition.name)}”" if each.partition.name else ""
        yield f"    {each.partition.number:>3}  {format_size(each.size_bytes):>9}  {each.type_name}{name}: {held}"
        if content and content.uuid:
            yield f"                    UUID {printable(content.uuid)}, PARTUUID {each.partition.unique_guid}"
    yield f"  EFI programs {len(facts.programs)}"
    for program in facts.programs:
        yield from _program(program)
    if facts.os_name and not any(guest.os for guest in guests):
        yield f"  OS           {printable(facts.os_name)}"
    for guest in guests:
        yield from _guest(guest)
    for note in (*facts.notes, *filter(None, [guest_note])):
        yield f"  {style.doubtful('note')}         {printable(note)}"


def _guest(guest: GuestFacts) -> Iterator[str]:
    if guest.os is not None:
        hostname = f", hostname {printable(guest.hostname)}" if guest.hostname else ""
        yield f"  OS           {printable(guest.os.label)}{hostname}"
    if guest.root is not None:
        yield f"    root       {printable(guest.root)}"
    for place, volume in guest.mounts:
        yield f"    mount      {printable(place)}: {printable(volume)}"
    for boot in guest.boots[:_MOST_BOOTS]:
        starts = "boots" if boot.default else "offers"
        yield f"    {starts:<6}     {printable(boot.title)} ({boot.state.label})"
        for name, value in (
            ("kernel", boot.kernel),
            ("initrd", ", ".join(boot.initrds)),
            ("cmdline", boot.command_line),
        ):
            if value:
                yield f"      {name:<8} {printable(value)}"
    if len(guest.boots) > _MOST_BOOTS:
        yield f"    and {len(guest.boots) - _MOST_BOOTS} more boot entries"


def _program(facts: ProgramFacts) -> Iterator[str]:
    state = facts.state.label if facts.state else "another architecture"
    starts = f", boots {facts.boots.label}" if facts.boots else ""
    kind = printable(facts.program.label) if facts.program else "not readable as an EFI program"
    yield f"    partition {facts.partition} {printable(facts.path)}: {kind}, {state}{starts}"
    if facts.program:
        for name, value in (
            ("kernel", facts.program.kernel_version),
            ("cmdline", facts.program.command_line),
            ("prefix", facts.program.grub_prefix),
        ):
            if value:
                yield f"      {name:<8} {printable(value)}"


def _as_json(facts: ImageFacts, guests: Sequence[GuestFacts], guest_note: str | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "name": facts.name,
        "format": facts.format,
        "size_bytes": facts.size_bytes,
        "sector_size": facts.sector_size,
        "partition_table": {
            "kind": facts.table.value,
            "disk_guid": str(facts.disk_guid) if facts.disk_guid else None,
            "partitions": [
                {
                    "number": each.partition.number,
                    "type_guid": str(each.partition.type_guid),
                    "type": each.type_name,
                    "unique_guid": str(each.partition.unique_guid),
                    "name": each.partition.name,
                    "first_lba": each.partition.first_lba,
                    "last_lba": each.partition.last_lba,
                    "size_bytes": each.size_bytes,
                    "attributes": each.partition.attributes,
                    "content": {"kind": each.content.kind, "label": each.content.label, "uuid": each.content.uuid}
                    if each.content
                    else None,
                }
                for each in facts.partitions
            ],
        },
        "efi_programs": [_program_json(program) for program in facts.programs],
        "os": next((guest.os.label for guest in guests if guest.os), None) or facts.os_name,
        "guests": [_guest_json(guest) for guest in guests if guest.os or guest.root or guest.boots],
        "notes": [*facts.notes, *filter(None, [guest_note])],
    }


def _guest_json(guest: GuestFacts) -> dict[str, Any]:
    return {
        "os": {"id": guest.os.id, "version": guest.os.version, "pretty_name": guest.os.label} if guest.os else None,
        "hostname": guest.hostname,
        "root": guest.root,
        "mounts": [{"mount_point": place, "volume": volume} for place, volume in guest.mounts],
        "boot_entries": [
            {
                "title": boot.title,
                "execution_state": boot.state.value,
                "kernel": boot.kernel,
                "initrds": list(boot.initrds),
                "command_line": boot.command_line,
                "default": boot.default,
            }
            for boot in guest.boots
        ],
    }


def _program_json(facts: ProgramFacts) -> dict[str, Any]:
    program = facts.program
    return {
        "partition": facts.partition,
        "path": facts.path,
        "size_bytes": facts.size_bytes,
        "execution_state": facts.state.value if facts.state else None,
        "boots": facts.boots.value if facts.boots else None,
        "kind": program.kind.value if program else None,
        "version": program.version if program else None,
        "kernel_version": program.kernel_version if program else None,
        "command_line": program.command_line if program else None,
        "grub_prefix": program.grub_prefix if program else None,
    }
