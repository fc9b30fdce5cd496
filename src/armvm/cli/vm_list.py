"""``armvm vm list`` and ``show``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armvm.cli.action import Action
from armvm.instance.summary import Summary, summaries, summarise, used_bytes
from armvm.printable import printable
from armvm.units import format_size

if TYPE_CHECKING:
    from armvm.instance.definition import Definition
    from armvm.instance.store import Instance

SCHEMA = "armvm.instances/1"
_EVENTS_SHOWN = 5
_COLUMNS = ("name", "status", "arch", "vcpus", "memory", "ssh", "disk", "image")


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, metavar="IMAGE", help="only those that stand on this image, or are it")
    parser.add_argument("--json", action="store_true", help=f"as JSON (schema {SCHEMA})")


def _list(options: argparse.Namespace) -> int:
    from armvm.instance.beside import sweep
    from armvm.instance.store import instances_folder

    sweep(instances_folder())
    found = summaries()
    if options.image is not None:
        from armvm.instance import dependants

        names = dependants.of(options.image)
        found = tuple(summary for summary in found if summary.instance.name in names)
    if options.json:
        import json

        print(json.dumps({"schema": SCHEMA, "instances": [_fields(summary) for summary in found]}, indent=2))
    elif found:
        _print_table(found)
    elif not options.quiet:
        print("no instances" if options.image is None else f"no instance stands on {printable(str(options.image))}")
    return 0


def _fields(summary: Summary) -> dict[str, Any]:
    return {
        "name": summary.instance.name,
        "status": summary.status.value,
        "arch": summary.state,
        "vcpus": summary.vcpus,
        "memory_bytes": summary.memory_bytes,
        "image": None if summary.image is None else _json_path(summary.image),
        "ssh_port": summary.ssh_port,
        "disk_bytes": used_bytes(summary.instance.folder),
        "folder": _json_path(summary.instance.folder),
        "problem": summary.problem,
    }


def _json_path(path: Path) -> str:
    """A path as JSON can have it: what is no text in it is escaped."""
    return str(path).encode(errors="backslashreplace").decode()


def _print_table(found: tuple[Summary, ...]) -> None:
    rows = [_COLUMNS, *(_row(summary) for summary in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for summary in found:
        if summary.problem:
            print(f"{summary.instance.name}: {printable(summary.problem)}")


def _row(summary: Summary) -> tuple[str, ...]:
    return (
        summary.instance.name,
        summary.status.value,
        printable(summary.state or "-"),
        str(summary.vcpus or "-"),
        format_size(summary.memory_bytes) if summary.memory_bytes else "-",
        str(summary.ssh_port or "-"),
        format_size(used_bytes(summary.instance.folder)),
        printable(str(summary.image)) if summary.image is not None else "-",
    )


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance")
    parser.add_argument("--json", action="store_true", help="as JSON (schema armvm.instance/1)")


def _show(options: argparse.Namespace) -> int:
    from armvm.instance.store import find

    instance = find(options.name)
    instance.require()
    facts = _facts(instance)
    if options.json:
        import json

        print(json.dumps({"schema": "armvm.instance/1", **facts}, indent=2))
    else:
        _print_facts(facts)
    return 0


def _facts(instance: Instance) -> dict[str, Any]:
    """Everything about ``instance``, as far as it can be read."""
    from armvm.errors import ArmvmError
    from armvm.instance import events

    summary = summarise(instance)
    facts = _fields(summary)
    holder, held = instance.holder
    facts["process"] = holder.pid if held and holder is not None else None
    try:
        definition = instance.definition()
    except ArmvmError as error:
        facts["problem"] = error.message
    else:
        facts |= _defined(instance, definition)
    facts["snapshots"] = _snapshots(instance)
    facts["events"] = [
        {str(key): value for key, value in event.items()} for event in events.read(instance.events)[-_EVENTS_SHOWN:]
    ]
    return facts


def _snapshots(instance: Instance) -> list[str]:
    try:
        found = (path for path in instance.snapshots.iterdir() if path.is_dir() and not path.name.startswith("."))
        return sorted(path.name for path in found)
    except OSError:
        return []


def _defined(instance: Instance, definition: Definition) -> dict[str, Any]:
    """What machine.toml says."""
    from armvm.machine.definition import disk_names, nic_names

    machine = definition.machine
    return {
        "firmware": _json_path(machine.firmware.code),
        "gic": None if machine.gic is None else machine.gic.value,
        "hardware_description": machine.description.value,
        "console": machine.console.value,
        "bus": machine.bus.value,
        "disks": [
            {
                "name": name,
                "path": _json_path(disk.path),
                "format": disk.format,
                "sector_size": disk.sector_size,
                "writes": disk.writes.value,
                "interface": disk.interface.value,
                "state": "there" if disk.path.exists() else "gone",
                "image": _image(definition, name),
            }
            for name, disk in zip(disk_names(machine), machine.disks, strict=True)
        ],
        "nics": [{"name": name, **_nic(nic)} for name, nic in zip(nic_names(machine), machine.nics, strict=True)],
        "variables": None if machine.variables is None else _json_path(machine.variables.path),
        "hotplug_ports": machine.hotplug_ports,
        "devices": [
            name
            for name, there in (
                ("rng", machine.rng),
                ("balloon", machine.balloon),
                ("guest-agent", machine.guest_agent),
                ("tpm", machine.tpm),
                ("usb-keyboard", machine.usb_keyboard),
                ("scsi-controller", machine.scsi_controller),
                ("watchdog", machine.watchdog is not None),
                ("graphics", machine.graphics is not None),
                ("vsock", machine.vsock_cid is not None),
            )
            if there
        ],
        "secure_boot": machine.secure_boot,
        "user": definition.user,
        "instance_id": definition.instance_id,
        "log": _json_path(instance.log),
    }


def _image(definition: Definition, disk: str) -> dict[str, Any] | None:
    from armvm.errors import InputError
    from armvm.instance.store import require_unchanged

    image = definition.image(disk)
    if image is None:
        return None
    try:
        require_unchanged("", image)
        state = "unchanged"
    except InputError:
        state = "changed" if image.path.exists() else "gone"
    return {"path": _json_path(image.path), "format": image.format, "state": state}


def _nic(nic: Any) -> dict[str, Any]:
    from armvm.machine.definition import UserNetwork

    facts: dict[str, Any] = {"kind": type(nic).__name__.removesuffix("Network").lower(), "mac": nic.mac}
    if isinstance(nic, UserNetwork):
        facts["forwards"] = [[forward.host_port, forward.guest_port] for forward in nic.forwards]
    else:
        more = {"interface", "bridge", "folder", "end"}
        facts |= {name: str(getattr(nic, name)) for name in more if hasattr(nic, name)}
    return facts


def _print_facts(facts: dict[str, Any]) -> None:
    process = f", process {facts['process']}" if facts["process"] else ""
    _line("name", facts["name"])
    _line("status", facts["status"] + process)
    if facts["problem"]:
        _line("problem", facts["problem"])
    _line("folder", f"{facts['folder']}, {format_size(facts['disk_bytes'])} on disk")
    if "disks" in facts:
        _print_machine(facts)
    _line("snapshots", ", ".join(facts["snapshots"]) or "none")
    for event in facts["events"]:
        more = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"time", "event"})
        _line("event", f"{event.get('time')} {event.get('event')} {more}".rstrip())


def _print_machine(facts: dict[str, Any]) -> None:
    memory = format_size(facts["memory_bytes"] or 0)
    gic = f"a GICv{facts['gic']}" if facts["gic"] else "a GIC that suits the host"
    _line("machine", f"{facts['arch']}, {facts['vcpus']} vCPUs, {memory}, {gic}, {facts['bus']}, {facts['console']}")
    _line("firmware", facts["firmware"])
    for disk in facts["disks"]:
        gone = "" if disk["state"] == "there" else ", GONE"
        _line("disk", f"{disk['name']}: {disk['path']} ({disk['format']}, writes {disk['writes']}{gone})")
        if disk["image"]:
            image = disk["image"]
            state = "" if image["state"] == "unchanged" else f", {image['state'].upper()}"
            _line("", f"over {image['path']} ({image['format']}{state})")
    for nic in facts["nics"]:
        ports = ", ".join(f"127.0.0.1:{host} leads to {guest}" for host, guest in nic.get("forwards", []))
        _line("network", f"{nic['name']}: {nic['kind']} {nic['mac'] or ''} {ports}".rstrip())
    if facts["devices"]:
        _line("devices", ", ".join(facts["devices"]))
    if facts["ssh_port"]:
        user = f"{facts['user']}@" if facts["user"] else ""
        _line("ssh", f"armvm vm ssh {facts['name']} (ssh -p {facts['ssh_port']} {user}127.0.0.1)")


def _line(what: str, text: str) -> None:
    print(f"{what:<10} {printable(text)}")


ACTIONS = {
    "list": Action(
        "List the instances. The status is running, stopped, busy (a command is at work on it), crashed (its process\n"
        "was killed: the next command cleans up) or broken (its machine.toml cannot be read).",
        "  armvm vm list\n  armvm vm list --image disk.qcow2\n  armvm vm list --json",
        _list_arguments,
        _list,
    ),
    "show": Action(
        "Say everything about an instance: what it is, where its files are, whether its images are still there and as\n"
        "they were, its snapshots, what happened to it last, and how to log in.",
        "  armvm vm show web\n  armvm vm show web --json",
        _show_arguments,
        _show,
    ),
}
