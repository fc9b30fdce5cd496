"""``armvm vm attach`` and ``detach``: disks and network cards that come and go."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armvm.cli.action import Action
from armvm.errors import UsageError
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.instance.attachment import Attachment
    from armvm.machine.devices import DiskDevice, Nic, PortForward

_ATTACH = """\
Adds a disk or a network card. On a running machine it is there at once, and this returns when the guest has confirmed
it: its driver has taken the device in, or it has read from the disk. What the guest does not confirm in time is taken
out again, and that is said (exit code 1). It is gone when the machine is stopped, unless --persist is given; what is
added to a stopped instance stays.

Options after a path, a comma before each: ro (the guest cannot write), format=raw|qcow2 (default: by content),
interface=virtio-blk|virtio-scsi|nvme, serial=TEXT, cache=writeback|writethrough|none|unsafe, discard=on|off,
sector-size=512|4096. A comma in a path is written twice.

A network card: user, user,forward=HOST:GUEST (a port of this host's loopback), tap=DEVICE, bridge=BRIDGE, or
link=FOLDER,end=0|1 (a cable to another instance's card at the other end); mac=ADDRESS with each."""

_ATTACH_EXAMPLES = """\
  armvm vm attach web --new-disk 20G --name data --persist
  armvm vm attach web --disk backup.raw,ro
  armvm vm attach web --nic user,forward=8080:80
  armvm vm attach web --nic link=/tmp/cable,end=0"""

_DETACH = """\
Takes a disk or a network card away. From a running machine it is gone when this returns: the guest has let go of it. A
guest that does not in time keeps it, and that is said (exit code 1). What machine.toml has is there again at the next
start, unless --persist is given. The disk's image is kept, unless --delete is given."""

_DETACH_EXAMPLES = """\
  armvm vm detach web data
  armvm vm detach web data --persist --delete      its image in the instance's folder is deleted too"""


def _attach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", help="the instance")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--disk", metavar="PATH[,…]", help="an image, with options after commas")
    what.add_argument("--new-disk", metavar="SIZE[,…]", help="a new disk in the instance's folder")
    what.add_argument("--nic", metavar="KIND[,…]", help="a network card: user, tap=, bridge= or link=")
    parser.add_argument("--name", help="what it is called, and detached by (default: disk1, net1 …)")
    _common(parser, "keep it in machine.toml, for the next starts too")


def _detach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", help="the instance")
    parser.add_argument("device", metavar="DEVICE", help="the name of the disk or network card (armvm vm show)")
    parser.add_argument("--delete", action="store_true", help="delete its image, when it is the instance's own")
    _common(parser, "take it from machine.toml too")


def _common(parser: argparse.ArgumentParser, persist: str) -> None:
    parser.add_argument("--persist", action="store_true", help=persist)
    parser.add_argument(
        "--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="how long the guest may take (default: 30)"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _attach(options: argparse.Namespace) -> int:
    from armvm.instance import change
    from armvm.instance.store import find

    instance = find(options.instance)
    instance.require()
    result = change.attach(instance, _wanted(options))
    _say(options, result, f"attached {_described(result)}")
    return 0


def _detach(options: argparse.Namespace) -> int:
    from armvm.instance import change
    from armvm.instance.store import find

    result = change.detach(
        find(options.instance),
        options.device,
        persist=options.persist,
        delete=options.delete,
        timeout_seconds=options.timeout,
    )
    kept = f"; its image is kept: {printable(str(result['path']))}" if result.get("path") else ""
    again = "; it is there again at the next start (--persist)" if result.get("returns") else ""
    _say(options, result, f"detached {_described(result)}{kept}{again}")
    return 0


def _described(result: Mapping[str, Any]) -> str:
    if result["confirmed_by"] == "nobody":
        return str(result["name"])
    return f"{result['name']}, confirmed by {result['witness']}"


def _say(options: argparse.Namespace, result: Mapping[str, Any], line: str) -> None:
    if options.json:
        print(json.dumps({"schema": "armvm.device/1", **result}, indent=2))
    elif not options.quiet:
        print(line)


def _wanted(options: argparse.Namespace) -> Attachment:
    from armvm.instance.attachment import Attachment
    from armvm.machine.devices import DiskDevice, Writes

    new_bytes, given = None, False
    device: DiskDevice | Nic
    if options.nic is not None:
        device = _nic(options.nic)
    else:
        text = options.disk if options.disk is not None else options.new_disk
        first, words = _words(text)
        given = "interface" in words
        if options.disk is not None:
            device = _image(Path(first).absolute(), words)
        else:
            from armvm.units import parse_size

            new_bytes = parse_size(first)
            device = DiskDevice(Path(os.devnull), "qcow2", writes=Writes.KEPT)
        device = _with_options(device, words)
    return Attachment(replace(device, name=options.name), new_bytes, given, options.persist, options.timeout)


def _image(path: Path, words: dict[str, str]) -> DiskDevice:
    """The disk that the image at ``path`` is. Raises InputError when it is none that can be attached."""
    from armvm.disk.detect import open_disk
    from armvm.errors import InputError
    from armvm.machine.devices import DiskDevice, Writes

    form = words.pop("format", None)
    if form is None:
        with open_disk(path, in_place=True) as disk:
            form, size = disk.format, disk.sector_size
        if form not in {"raw", "qcow2"}:
            raise InputError(f"is a {form} image: raw and qcow2 are attached", subject=str(path))
        words.setdefault("sector-size", str(size))
    return DiskDevice(path, form, writes=Writes.REFUSED if words.pop("ro", None) is not None else Writes.KEPT)


def _with_options(disk: DiskDevice, words: dict[str, str]) -> DiskDevice:
    from armvm.machine.devices import DiskCache, DiskInterface, Writes

    for word, value in words.items():
        try:
            if word == "ro":
                disk = replace(disk, writes=Writes.REFUSED)
            elif word == "interface":
                disk = replace(disk, interface=DiskInterface(value))
            elif word == "cache":
                disk = replace(disk, cache=DiskCache(value))
            elif word == "serial":
                disk = replace(disk, serial=value)
            elif word == "sector-size":
                disk = replace(disk, sector_size=int(value))
            elif word == "discard":
                disk = replace(disk, discard={"on": True, "off": False}[value])
            else:
                known = "ro, format, interface, serial, cache, discard, sector-size"
                raise UsageError(f"a disk has no option {word!r}", hint=f"there are {known}")
        except (ValueError, KeyError):
            raise UsageError(f"no value for a disk's {word}: {value!r}", hint="armvm vm attach --help") from None
    return disk


def _nic(text: str) -> Nic:
    from armvm.machine.devices import BridgeNetwork, LinkNetwork, TapNetwork, UserNetwork

    kind, words = _words(text, repeated="forward")
    kind, _, value = kind.partition("=")
    mac = words.pop("mac", None)
    nic: Nic
    if kind == "user" and not value:
        forwards = tuple(_forward(one) for one in words.pop("forward", "").split() if one)
        nic = UserNetwork(forwards, mac=mac)
    elif kind == "tap" and value:
        nic = TapNetwork(value, mac=mac)
    elif kind == "bridge" and value:
        nic = BridgeNetwork(value, mac=mac)
    elif kind == "link" and value:
        end = words.pop("end", "")
        if end not in {"0", "1"}:
            raise UsageError(f"a link needs its end: --nic link={value},end=0 here, and end=1 at the other instance")
        nic = LinkNetwork(Path(value).absolute(), int(end), mac=mac)
    else:
        raise UsageError(f"no network card: {text!r}", hint="user, tap=DEVICE, bridge=BRIDGE or link=FOLDER,end=0|1")
    if words:
        raise UsageError(f"a card of the kind {kind} has no option {next(iter(words))!r}")
    return nic


def _forward(text: str) -> PortForward:
    from armvm.machine.devices import PortForward

    host, _, guest = text.partition(":")
    if not (host.isdigit() and guest.isdigit()):
        raise UsageError(f"no port forward: {text!r}", hint="HOST:GUEST, for example forward=2222:22")
    return PortForward(int(host), int(guest))


def _words(text: str, *, repeated: str | None = None) -> tuple[str, dict[str, str]]:
    """What stands before the first comma, and the options after it; two commas are one that is meant.

    The values of the option that can be ``repeated`` come joined by spaces.
    """
    mark = "\0"
    first, *rest = text.replace(",,", mark).split(",")
    words: dict[str, str] = {}
    for word in rest:
        key, _, value = word.replace(mark, ",").partition("=")
        if key in words and key != repeated:
            raise UsageError(f"the option {key} is given twice")
        words[key] = f"{words[key]} {value}" if key in words else value
    return first.replace(mark, ","), words


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"not a time in seconds: {text!r}")
    return seconds


ACTIONS = {
    "attach": Action(_ATTACH, _ATTACH_EXAMPLES, _attach_arguments, _attach),
    "detach": Action(_DETACH, _DETACH_EXAMPLES, _detach_arguments, _detach),
}
