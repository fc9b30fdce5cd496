"""What runs beside QEMU: swtpm, virtiofsd, the helper that opens a tap device on a bridge. And what this host lacks.

Every one of them is reached by a descriptor that QEMU inherits: there is no socket that a stranger could connect to.
They end with the machine, and die with the process that started them.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from armvm.errors import MachineError, MissingError, OutputError
from armvm.machine.definition import Machine
from armvm.machine.devices import BridgeNetwork, Graphics, LinkNetwork, SharedFolder, ShareDriver, TapNetwork
from armvm.machine.lifecycle import Child
from armvm.machine.qemu.bridges import BRIDGE_HELPER, open_tap
from armvm.machine.qemu.extras import PASSWORD, TPM, screen_socket, share_name
from armvm.packages import install_command
from armvm.printable import printable
from armvm.process import find_program, require_program, run

_VSOCK = Path("/dev/vhost-vsock")
_INTERFACES = Path("/sys/class/net")
_HELP_SECONDS = 10.0
_END_SECONDS = 2.0
_PASSWORD_BYTES = 8
"""VNC's own authentication takes no more (RFC 6143 §7.2.2)."""


@dataclass(frozen=True, slots=True)
class Virtiofsd:
    """The virtiofsd of this host. The one in C came with QEMU before 8.0 and runs as root only; then one in Rust."""

    program: str
    in_rust: bool
    read_only: bool

    @property
    def usable(self) -> bool:
        """Whether this user can run it."""
        return self.in_rust or os.geteuid() == 0


@cache
def find_virtiofsd() -> Virtiofsd | None:
    """The virtiofsd of this host, told by what its ``--help`` says; None when there is none."""
    found = find_program("virtiofsd")
    if found is None:
        return None
    said = run(found, ["--help"], timeout_seconds=_HELP_SECONDS, check=False)
    words = said.stdout.decode(errors="replace") + said.stderr
    return Virtiofsd(found, "--shared-dir" in words, "--readonly" in words)


def _no_virtiofsd() -> MissingError:
    return MissingError("virtiofsd is not installed", component="virtiofsd", install=install_command("virtiofsd"))


def resolved(machine: Machine) -> Machine:
    """``machine`` with its shares' drivers chosen: virtiofs where this host has one that serves, else 9p."""
    if not any(share.driver is ShareDriver.AUTO for share in machine.shares):
        return machine
    on_pci = machine.bus.value == "pci"
    return replace(machine, shares=tuple(_resolved(share, on_pci=on_pci) for share in machine.shares))


def _resolved(share: SharedFolder, *, on_pci: bool) -> SharedFolder:
    if share.driver is not ShareDriver.AUTO:
        return share
    daemon = find_virtiofsd() if on_pci and hasattr(os, "memfd_create") else None
    serves = daemon is not None and daemon.usable and (daemon.read_only or not share.read_only)
    return replace(share, driver=ShareDriver.VIRTIOFS if serves else ShareDriver.NINE_P)


def host_problems(machine: Machine) -> Iterator[str]:
    """Why this host cannot run ``machine``, one sentence each.

    Raises MissingError, with the command that installs it, when a program that runs beside QEMU is not there.
    """
    if machine.tpm:
        require_program("swtpm")
    yield from _share_problems(machine)
    if machine.vsock_cid is not None and not _VSOCK.exists():
        yield f"vsock_cid needs {_VSOCK}, and this host has none; load its driver (modprobe vhost_vsock)"
    yield from _network_problems(machine)
    graphics = machine.graphics
    if graphics is not None and graphics.port is None and graphics.socket is None and machine.variables is None:
        yield "graphics: a machine that is not kept has no folder for the screen's socket; name a socket or a port"


def _network_problems(machine: Machine) -> Iterator[str]:
    for nic in machine.nics:
        if isinstance(nic, BridgeNetwork):
            require_program(BRIDGE_HELPER)
            kind, where = "bridge", nic.bridge
        elif isinstance(nic, TapNetwork):
            kind, where = "tap device", nic.interface
        else:
            continue
        if _INTERFACES.is_dir() and not (_INTERFACES / where).exists():
            yield f"this host has no {kind} {printable(where)}: make it first (ip link), or take the user network"


def _share_problems(machine: Machine) -> Iterator[str]:
    for share in machine.shares:
        shown = printable(str(share.path))
        if not share.path.is_dir():
            yield f"shared folder {share.tag}: {shown} is no folder"
        if share.driver is not ShareDriver.VIRTIOFS:
            continue
        daemon = find_virtiofsd()
        if daemon is None:
            raise _no_virtiofsd()
        if not daemon.usable:
            yield f"shared folder {share.tag}: {daemon.program} runs as root only; take the driver 9p"
        elif share.read_only and not daemon.read_only:
            yield f"shared folder {share.tag}: {daemon.program} shares nothing read-only; take the driver 9p"


@dataclass(slots=True)
class Companions:
    """The programs that run beside one QEMU. ``given`` are the descriptors for it, open until ``hand_over``."""

    given: dict[str, int] = field(default_factory=dict)
    _children: dict[str, Child] = field(default_factory=dict)
    _folders: list[Path] = field(default_factory=list)
    _sockets: list[Path] = field(default_factory=list)

    def hand_over(self) -> None:
        """QEMU has inherited the descriptors: close our own."""
        for descriptor in self.given.values():
            os.close(descriptor)
        self.given.clear()

    def take_errors(self) -> None:
        """Read what they say, so that none of them blocks on saying it. Never waits."""
        for child in self._children.values():
            child.take_errors()

    @property
    def trouble(self) -> str:
        """What the first that is over has said, None of them: nothing."""
        for name, child in self._children.items():
            if child.wait(0) is not None:
                lines = child.errors.splitlines()
                return f"{name} ended: {printable(lines[-1]) if lines else 'it said nothing'}"
        return ""

    def end(self) -> None:
        """End them, QEMU being over. Doing so twice is no error."""
        self.hand_over()
        for child in self._children.values():
            child.wait(_END_SECONDS)  # it ends by itself when QEMU has, having written what it keeps
            child.kill()
        self._children.clear()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders.clear()
        for path in self._sockets:
            with suppress(OSError):
                path.unlink()
        self._sockets.clear()

    def start(self, name: str, argv: list[str], inherit: int) -> None:
        """Start one, which inherits the one descriptor."""
        self._children[name] = Child(argv, inherit=[inherit])

    def leave_no(self, path: Path) -> None:
        """Take away, in the end, the socket at ``path`` that QEMU makes."""
        self._sockets.append(path)

    def temporary_folder(self) -> Path:
        """A folder of one's own that goes with the machine."""
        folder = Path(tempfile.mkdtemp(prefix="armvm-"))
        self._folders.append(folder)
        return folder


def start_companions(machine: Machine, names: tuple[str, ...]) -> Companions:
    """Start what ``machine`` needs beside QEMU. ``names`` are those of its network cards.

    Raises MachineError, with nothing left running, when one of them does not start; OutputError for a folder that
    cannot be made.
    """
    beside = Companions()
    with ExitStack() as undo:
        undo.callback(beside.end)
        try:
            if machine.tpm:
                _start_swtpm(machine, beside)
            for index, share in enumerate(machine.shares):
                if share.driver is ShareDriver.VIRTIOFS:
                    _start_virtiofsd(share, share_name(index), beside)
            for name, nic in zip(names, machine.nics, strict=True):
                if isinstance(nic, BridgeNetwork):
                    beside.given[name] = open_tap(nic.bridge)
                elif isinstance(nic, LinkNetwork):
                    prepare_link(nic)
            _prepare_screen(machine, beside)
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            raise OutputError(f"cannot prepare the machine:{where} {error.strerror}") from error
        undo.pop_all()
    return beside


def tpm_folder(machine: Machine) -> Path | None:
    """Where the TPM keeps its state: beside the UEFI variables; None for a machine that keeps none."""
    return None if machine.variables is None else machine.variables.path.absolute().parent / "tpm"


def _start_swtpm(machine: Machine, beside: Companions) -> None:
    folder = tpm_folder(machine)
    if folder is None:
        folder = beside.temporary_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    ours, theirs = socket.socketpair()
    with theirs:
        beside.given[TPM] = ours.detach()
        # swtpm takes commas in an option's value for its end: the folder is its current one.
        argv = [require_program("swtpm"), "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600"]
        argv += ["--ctrl", f"type=unixio,clientfd={theirs.fileno()}", "--terminate"]
        beside.start("swtpm", _in_folder(folder, argv), theirs.fileno())


def _in_folder(folder: Path, argv: list[str]) -> list[str]:
    return ["/bin/sh", "-c", 'cd -- "$0" && exec "$@"', str(folder), *argv]


def _start_virtiofsd(share: SharedFolder, name: str, beside: Companions) -> None:
    """Let it accept one connection on a socket that it inherits. Ours waits there already, and no name is left."""
    daemon = find_virtiofsd()
    if daemon is None:
        raise _no_virtiofsd()
    folder = tempfile.mkdtemp(prefix="armvm-")
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(f"{folder}/s")
            listening.listen(1)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{folder}/s")
                beside.given[name] = client.detach()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        argv = [daemon.program, f"--fd={listening.fileno()}"]
        path = str(share.path.absolute())
        if daemon.in_rust:
            argv += ["--shared-dir", path, *(["--readonly"] if share.read_only else [])]
        else:
            argv += ["-f", "-o", "log_level=warn", "-o", f"source={_fuse_value(path)}"]
        beside.start("virtiofsd", argv, listening.fileno())


def _fuse_value(path: str) -> str:
    r"""A value in FUSE's option syntax (libfuse, fuse_opt.c): a backslash before commas and backslashes."""
    return path.replace("\\", "\\\\").replace(",", "\\,")


def prepare_link(nic: LinkNetwork) -> None:
    """The link's folder, and nobody at our end of it: QEMU would take the place of another one silently."""
    nic.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = nic.folder / str(nic.end)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller, suppress(OSError):
        caller.connect(str(end))
        raise MachineError(
            f"end {nic.end} of the link {printable(str(nic.folder))} is plugged into another machine",
            hint=f"take end {1 - nic.end}, or a link of another name",
        )


def _prepare_screen(machine: Machine, beside: Companions) -> None:
    where = screen_socket(machine)
    if where is not None:
        where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.leave_no(where)
    graphics = machine.graphics
    if graphics is not None and graphics.port is not None:
        beside.given[PASSWORD] = _password(graphics)


def _password(graphics: Graphics) -> int:
    """A file without a name that holds the password, without the end of its line; QEMU reads it by descriptor."""
    if graphics.password_file is None:
        raise MachineError("a screen on a TCP port without a password")  # ``problems`` has said so
    shown = printable(str(graphics.password_file))
    with open(graphics.password_file, "rb") as file:
        password = file.read(4096).rstrip(b"\r\n")
    if not 0 < len(password) <= _PASSWORD_BYTES:
        raise MachineError(
            f"{shown}: a password for VNC has 1 to {_PASSWORD_BYTES} bytes, and this one {len(password)}",
            hint="the protocol takes no more; show the screen on a unix socket instead",
        )
    with tempfile.TemporaryFile() as kept:
        kept.write(password)
        kept.flush()
        kept.seek(0)
        return os.dup(kept.fileno())
