"""``armvm vm export`` and ``armvm vm import``: machines for, and of, other hypervisors."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.cli.action import Action
from armvm.cli.machine_options import add_machine_arguments, chosen
from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.machine.accelerators import AcceleratorKind
    from armvm.machine.definition import DiskDevice, Machine
    from armvm.machine.export.source import Source
    from armvm.machine.libvirt.imported import Imported

_MOST_XML_BYTES = 1 << 20

_EXPORT = """\
Describe a kept machine, or the machine that an image would boot on, for another hypervisor or tool.

The description goes to standard output or to FILE, and nothing else is touched: disks that have to be converted first
are named with the command that does it. What the other side cannot be is left out and said, on standard error and in
the description itself."""
_EXPORT_EXAMPLES = """\
  armvm vm export web --to libvirt -o web.xml && virsh define web.xml
  armvm vm export web --to kubevirt -o web.yaml      also writes web.Dockerfile
  armvm vm export --image disk.qcow2 --to script -o run.sh"""
_IMPORT = """\
Make an instance of a libvirt domain, as `virsh dumpxml` prints it. Its first disk becomes the image under the instance,
and is not changed. What of the domain has no place in a machine of armvm is said, and so is every requirement of the
specification that the domain, as it stands there, would break."""
_IMPORT_EXAMPLES = """\
  virsh dumpxml web >web.xml && armvm vm import web.xml --name web
  armvm vm import web.xml --judge          only say what is left out and which requirements it breaks"""


def _add_export(parser: argparse.ArgumentParser) -> None:
    from armvm.machine.export.source import TARGETS

    parser.add_argument("name", metavar="NAME", nargs="?", help="the instance")
    parser.add_argument("--image", type=Path, metavar="IMAGE", help="an image instead of an instance")
    parser.add_argument(
        "--to",
        required=True,
        choices=tuple(TARGETS),
        help="; ".join(f"{name}: {what}" for name, (_, what) in TARGETS.items()),
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there (default: standard output)")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "hvf", "tcg"), default="auto", help="what it is to run with (default: auto)"
    )
    add_machine_arguments(parser)


def _export(options: argparse.Namespace) -> int:
    from armvm.atomic import write_file
    from armvm.machine.export.source import find_export

    if (options.name is None) == (options.image is None):
        raise UsageError("name an instance, or an image with --image")
    exported = find_export(options.to)(_source(options))
    if options.output is None:
        sys.stdout.write(exported.text)
    else:
        files = [(options.output, exported.text)]
        files += [(options.output.with_suffix(suffix), text) for suffix, text in exported.more]
        for path, _ in files:
            if path.exists() and not options.force:
                raise UsageError(f"{path} is already there", hint="--force replaces it")
        for path, text in files:
            write_file(path, text.encode(), mode=0o777 if text.startswith("#!") else 0o666)
    for warning in exported.warnings:
        _say(options, f"note: {warning}")
    return 0


def _source(options: argparse.Namespace) -> Source:
    from armvm.machine.definition import disk_names, problems, require_sound
    from armvm.machine.disk_size import size_bytes
    from armvm.machine.export.source import Source

    if options.name is not None:
        name, machine, standing = _from_instance(options)
        made = False
    else:
        name, machine = _from_image(options)
        standing, made = frozenset(), machine.variables is not None
    require_sound(problems(machine))
    sizes = tuple(size_bytes(disk) for disk in machine.disks)
    standing &= frozenset(disk_names(machine))
    return Source(name, machine, sizes, _accelerator(options, machine.state), standing, new_variables=made)


def _from_instance(options: argparse.Namespace) -> tuple[str, Machine, frozenset[str]]:
    from armvm.instance.store import find

    instance = find(options.name)
    instance.require()
    machine = instance.machine()
    if options.arch not in {None, machine.state.value} or options.sector_size or options.firmware:
        raise UsageError("--arch, --sector-size and --firmware are for --image: an instance has its own")
    standing = frozenset(image.disk for image in instance.definition().images)
    return instance.name, replace(machine, **chosen(options)), standing


def _from_image(options: argparse.Namespace) -> tuple[str, Machine]:
    """The machine that boots the image, with a variable store of its own beside the description."""
    from armvm.disk.detect import open_disk
    from armvm.firmware.discovery import find_firmware
    from armvm.image.contents import ImageContents
    from armvm.machine.definition import DEFAULT_MEMORY_BYTES, DiskDevice, Machine, VariablesFile, Writes

    with open_disk(options.image, sector_size=options.sector_size, in_place=True) as disk:
        states = [ExecutionState(options.arch)] if options.arch else list(ImageContents(disk).bootable_states)
        device = DiskDevice(options.image.absolute(), disk.format, disk.sector_size, Writes.DISCARDED)
    if not states:
        raise InputError("nothing to boot on it", subject=str(options.image), hint="--arch exports it all the same")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", options.image.stem).strip("-._")[:60] or "machine"
    firmware = find_firmware(states[0], override=options.firmware)
    folder = (options.output.absolute() if options.output else Path.cwd() / "x").parent
    machine = Machine(
        state=states[0],
        firmware=firmware,
        disks=(device,),
        memory_bytes=DEFAULT_MEMORY_BYTES[states[0]],
        variables=VariablesFile(folder / f"{name}-vars.fd", "raw") if firmware.keeps_variables else None,
    )
    return name, replace(machine, **chosen(options))


def _accelerator(options: argparse.Namespace, state: ExecutionState) -> AcceleratorKind:
    from armvm.machine.accelerators import AcceleratorKind, available

    if options.accel != "auto":
        return AcceleratorKind(options.accel)
    return next(one.kind for one in available(state) if not one.narrows)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.xml", type=Path, help="a libvirt domain")
    parser.add_argument("--name", help="the instance to be made (default: the domain's own name)")
    parser.add_argument("--judge", action="store_true", help="make nothing")


def _import(options: argparse.Namespace) -> int:
    from armvm.machine.libvirt.imported import read_domain

    found = read_domain(_content(options.file), subject=str(options.file))
    for finding in found.findings:
        seen = "".join(f" ({one.where}: {one.found})" for one in finding.evidence)
        print(f"{finding.level.value:<6} {finding.requirement}: {finding.message}{seen}")
    for sentence in found.left_out:
        print(f"left out: {sentence}")
    if options.judge:
        return 1 if any(finding.level.value == "must" for finding in found.findings) else 0
    _make(options, found)
    return 0


def _make(options: argparse.Namespace, found: Imported) -> None:
    from armvm.disk.detect import open_disk
    from armvm.instance.create import create
    from armvm.instance.store import find
    from armvm.machine.definition import Writes, problems, require_sound

    if not found.machine.disks:
        raise InputError("the domain has no disk that an instance could stand on", subject=str(options.file))
    first, *others = found.machine.disks
    for disk in others:
        if disk.writes is Writes.KEPT:
            _say(options, f"note: what the guest writes to {disk.path} is discarded: the instance leaves it as it is")
    disks = (first, *map(_harmless, others))
    machine = replace(found.machine, disks=disks)
    require_sound(problems(machine))
    instance = find(options.name or found.name)
    if instance.exists:
        raise UsageError(f"instance {instance.name} is there already", hint="choose another name: --name NAME")
    with open_disk(first.path, sector_size=first.sector_size, format=first.format, in_place=True) as content:
        create(instance, machine, content, firmware_file=found.loader)
    _say(options, f"instance {instance.name} is made: armvm vm start {instance.name}")


def _harmless(disk: DiskDevice) -> DiskDevice:
    """A disk that the guest does not change for good."""
    from armvm.machine.definition import Writes

    return replace(disk, writes=Writes.DISCARDED) if disk.writes is Writes.KEPT else disk


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_XML_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error


def _say(options: argparse.Namespace, line: str) -> None:
    if not options.quiet:
        print(f"armvm: {printable(line)}", file=sys.stderr)


ACTIONS = {
    "export": Action(_EXPORT, _EXPORT_EXAMPLES, _add_export, _export),
    "import": Action(_IMPORT, _IMPORT_EXAMPLES, _add_import, _import),
}
