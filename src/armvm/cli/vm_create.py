"""``armvm vm create``."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.cli.action import Action
from armvm.cli.machine_options import add_machine_arguments, chosen, defined_image, machine_of
from armvm.errors import InputError, UsageError
from armvm.units import parse_size

if TYPE_CHECKING:
    from armvm.disk.storage import BaseDisk
    from armvm.instance.cloud_init import CloudInit
    from armvm.instance.create import Progress, Storage
    from armvm.instance.definition import Definition
    from armvm.instance.store import Instance
    from armvm.machine.definition import Machine

_MOST_FILE_BYTES = 4 << 20


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the name of the instance")
    parser.add_argument(
        "image",
        metavar="IMAGE",
        nargs="?",
        help="the disk image; with --copy also a URL or a compressed one (default: the first disk of --define)",
    )
    disk = parser.add_argument_group("its disk")
    storage = disk.add_mutually_exclusive_group()
    storage.add_argument("--copy", action="store_true", help="a whole copy of the image, which is not needed any more")
    storage.add_argument("--in-place", action="store_true", help="the image itself, which the guest writes to")
    disk.add_argument("--disk-size", metavar="SIZE", help="its size, not less than the image's")
    disk.add_argument("--allow-backing-files", action="store_true", help="an image that itself stands on another one")
    disk.add_argument("--force", action="store_true", help="--in-place also where other instances stand on the image")
    add_machine_arguments(parser)
    reach = parser.add_argument_group("how it is reached")
    reach.add_argument(
        "--ssh-port",
        default="auto",
        metavar="PORT",
        help="the port of this host, on 127.0.0.1 only, that leads to its ssh server (default: auto, a free one); none",
    )
    reach.add_argument("--start", action="store_true", help="start it too")
    _cloud_arguments(parser.add_argument_group("what cloud-init sets up in it"))


def _cloud_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--user", metavar="NAME", help="an account that may use sudo; `armvm vm ssh` logs in as this one"
    )
    group.add_argument(
        "--ssh-key",
        action="append",
        default=[],
        metavar="FILE|KEY",
        help="a public key that lets --user in; repeatable (default: a key of the instance's own)",
    )
    password = group.add_mutually_exclusive_group()
    password.add_argument("--password", action="store_true", help="ask for a password for --user")
    password.add_argument("--password-file", type=Path, metavar="FILE", help="a file that holds the password")
    group.add_argument("--packages", action="append", default=[], metavar="A,B", help="packages to install; repeatable")
    group.add_argument("--hostname", metavar="NAME", help="its hostname (default: the instance's name)")
    group.add_argument("--run", action="append", default=[], metavar="CMD", help="a shell command to run; repeatable")
    group.add_argument("--user-data", type=Path, metavar="FILE", help="a whole user-data file in place of these")
    group.add_argument("--meta-data", type=Path, metavar="FILE", help="a meta-data file (default: id and hostname)")
    group.add_argument("--network-config", type=Path, metavar="FILE", help="a network-config file (default: DHCP)")


def _execute(options: argparse.Namespace) -> int:
    from armvm.cli.terminal import steps
    from armvm.instance.create import Wishes, create
    from armvm.instance.store import find

    instance = find(options.name)
    if options.image is None:
        options.image = defined_image(options)
        if options.image is None:
            raise UsageError("which image?", hint=f"armvm vm create {options.name} IMAGE")
    if instance.exists:
        raise UsageError(f"instance {instance.name} is there already", hint="armvm vm delete takes it away")
    wishes = Wishes(
        _storage(options),
        None if options.disk_size is None else parse_size(options.disk_size),
        _cloud_init(options),
        options.force,
    )
    firmware_file = None if options.firmware is None else options.firmware.absolute()
    with steps(quiet=options.quiet) as progress, ExitStack() as stack:
        disk = stack.enter_context(_open(options, progress))
        machine, ssh = _machine(options, disk)
        _require_possible(machine, instance)
        definition = create(
            instance, machine, disk, firmware_file=firmware_file, wishes=wishes, ssh=ssh, progress=progress
        )
    if not options.quiet:
        print(_made(options, definition))
    if options.start:
        from armvm.cli.main import main

        return main(["vm", "start", options.name, *(["-q"] if options.quiet else [])])
    return 0


def _storage(options: argparse.Namespace) -> Storage:
    from armvm.instance.create import Storage

    return Storage.COPY if options.copy else Storage.IN_PLACE if options.in_place else Storage.OVERLAY


def _open(options: argparse.Namespace, progress: Progress) -> BaseDisk:
    from armvm.disk.detect import open_disk

    return open_disk(
        options.image,
        sector_size=options.sector_size,
        allow_backing_files=options.allow_backing_files,
        in_place=not options.copy,
        progress=progress,
    )


def _machine(options: argparse.Namespace, disk: BaseDisk) -> tuple[Machine, bool]:
    """The machine that boots the image as the options have it, and whether a port is to be found for its ssh server."""
    from armvm.execution import ExecutionState
    from armvm.image.contents import bootable_state
    from armvm.instance.planning import lived_with
    from armvm.machine.definition import DiskDevice, Writes

    state = ExecutionState(options.arch) if options.arch else bootable_state(disk)
    boot_disk = DiskDevice(Path(options.image), disk.format, disk.sector_size, Writes.KEPT)
    machine = lived_with(machine_of(options, state, boot_disk), given=chosen(options))
    if options.ssh_port not in {"auto", "none"}:
        machine = _with_ssh_port(machine, _port(options.ssh_port))
    return machine, options.ssh_port == "auto"


def _require_possible(machine: Machine, instance: Instance) -> None:
    """Raise UsageError when the machine cannot be, or not on this host: nothing is made that could not be run."""
    from armvm.machine.definition import VariablesFile, problems, require_sound
    from armvm.machine.qemu.backend import find_qemu

    kept = replace(machine, variables=VariablesFile(instance.variables, "qcow2"))
    require_sound(problems(kept) + find_qemu(machine.state).problems(kept))


def _with_ssh_port(machine: Machine, port: int) -> Machine:
    """``machine``, with this port of the host leading to the guest's ssh server."""
    from armvm.machine.definition import PortForward, UserNetwork

    for index, nic in enumerate(machine.nics):
        if isinstance(nic, UserNetwork):
            reached = replace(nic, forwards=(*nic.forwards, PortForward(port, 22)))
            return replace(machine, nics=(*machine.nics[:index], reached, *machine.nics[index + 1 :]))
    raise UsageError("--ssh-port needs a user network")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UsageError(f"not a port: {text!r}", hint="--ssh-port auto, none, or a number from 1 to 65535")
    return int(text)


def _cloud_init(options: argparse.Namespace) -> CloudInit | None:
    """What is wished of cloud-init; None when nothing is."""
    from armvm.instance.cloud_init import CloudInit, hostname_of

    given = (options.user, options.ssh_key, options.password, options.password_file, options.packages, options.run)
    files = (options.user_data, options.meta_data, options.network_config)
    if not any(given) and options.hostname is None and not any(files):
        return None
    return CloudInit(
        hostname=options.hostname or hostname_of(options.name),
        user=options.user,
        ssh_keys=tuple(key for text in options.ssh_key for key in _ssh_keys(text)),
        password_hash=_password_hash(options),
        packages=tuple(name for text in options.packages for name in text.split(",") if name),
        commands=tuple(options.run),
        user_data=_content(options.user_data),
        meta_data=_content(options.meta_data),
        network_config=_content(options.network_config),
    )


def _ssh_keys(text: str) -> tuple[str, ...]:
    """The public keys in a file, or the one that ``text`` itself is."""
    from armvm.distribution.recipe import read_ssh_keys

    if text.startswith(("ssh-", "ecdsa-", "sk-")) and " " in text:
        return (text.strip(),)
    return read_ssh_keys(Path(text).expanduser())


def _password_hash(options: argparse.Namespace) -> str | None:
    """The hash of the password, which is asked for or read from a file, and never shown (crypt(5), sha512crypt)."""
    from armvm.process import run

    if options.password:
        password = _asked()
    elif options.password_file is not None:
        password = (_content(options.password_file) or b"").decode(errors="surrogateescape").split("\n")[0].rstrip("\r")
    else:
        return None
    if not password or "\0" in password or len(password) > 512:
        raise UsageError("an empty password, or one that is too long")
    hashed = run(
        "openssl",
        ["passwd", "-6", "-stdin"],
        timeout_seconds=60,
        stdin=password.encode(errors="surrogateescape") + b"\n",
    )
    return hashed.stdout.decode(errors="replace").strip()


def _asked() -> str:
    import getpass

    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked for a password", hint="--password-file FILE reads it from a file")
    first = getpass.getpass("password: ")
    if first != getpass.getpass("once more: "):
        raise UsageError("the two passwords differ")
    return first


def _content(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    if len(content) > _MOST_FILE_BYTES:
        raise InputError("is too large", subject=str(path), expected=f"at most {_MOST_FILE_BYTES} bytes")
    return content


def _made(options: argparse.Namespace, definition: Definition) -> str:
    from armvm.instance.addresses import ssh_port
    from armvm.printable import printable

    machine = definition.machine
    where = {"overlay": "on", "copy": "a copy of", "in-place": "writing to"}[_storage(options).value]
    text = f"{options.name}: {machine.state.label}, {machine.vcpus} vCPUs, {where} {printable(str(options.image))}"
    port = ssh_port(machine)
    return f"{text}; port {port} of this host leads to its ssh server" if port else text


ACTIONS = {
    "create": Action(
        "Make an instance of a disk image.\n\n"
        "The guest writes to a disk of the instance's own over the image, which must stay where and as it is; --copy\n"
        "makes a whole copy, --in-place lets the guest write to the image itself.\n\n"
        "With --user and the like, a seed for cloud-init (NoCloud) is attached as a further disk; the image has to\n"
        "have cloud-init in it. Without --ssh-key the instance gets a key of its own, which `armvm vm ssh` uses.",
        "  armvm vm create web disk.qcow2\n"
        "  armvm vm create web debian.qcow2 --user ada --ssh-key ~/.ssh/id_ed25519.pub --disk-size 20G --start\n"
        "  armvm vm create db debian.qcow2 --user ada --packages postgresql --run 'systemctl enable postgresql'\n"
        "  armvm vm create fixed https://example.org/disk.raw.xz --copy",
        _arguments,
        _execute,
    )
}
