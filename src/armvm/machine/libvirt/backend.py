"""libvirt as a backend: what its QEMU can be, asked of libvirt itself, and the start of a transient domain."""

from __future__ import annotations

import os
import secrets
import select
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from armvm.errors import MachineError, MissingError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import FirmwareKind
from armvm.machine import capabilities
from armvm.machine.accelerators import Accelerator, AcceleratorKind, survey
from armvm.machine.capabilities import ALL, Capabilities, Feature, NicKind
from armvm.machine.definition import (
    DiskDevice,
    DiskInterface,
    GicVersion,
    Machine,
    UserNetwork,
    VariablesFile,
    Writes,
    nic_names,
    problems,
    require_sound,
)
from armvm.machine.libvirt.domain_xml import ALIAS, Domain, domain_xml
from armvm.machine.libvirt.virsh import Virsh, connection, error_of
from armvm.machine.libvirt.xml_reader import parse_xml
from armvm.machine.lifecycle import Child
from armvm.process import run
from armvm.units import MIB

if TYPE_CHECKING:
    from armvm.machine.libvirt.session import LibvirtSession

_START_SECONDS = 60.0
_LONGEST_SOCKET = 100  # sockaddr_un has 108 bytes; the names in the folder need some
_ARCHITECTURES = {ExecutionState.AARCH64: "aarch64", ExecutionState.AARCH32: "armv7l"}
_WHY = {
    GicVersion.V4: "QEMU offers no GICv4 to a guest that starts at EL1",
    NicKind.LINK: "a cable between two instances is a pair of sockets that armvm makes, which libvirt does not know",
    DiskInterface.NVME: "libvirt's NVMe disks are the host's own controllers, never an image",
    Feature.TPM: "it needs swtpm, which libvirt does not find",
    Feature.SHARED_FOLDERS: "its QEMU was built without them",
    Feature.MORE_CONSOLES: "armvm carries only the first console of a domain",
    Feature.GUEST_AGENT: "armvm does not carry the agent's port of a domain",
    Feature.SNAPSHOTS: "armvm takes no snapshots of a libvirt domain",
    Feature.LIVE_SNAPSHOTS: "armvm takes no snapshots of a libvirt domain",
}


@dataclass(frozen=True, slots=True)
class Libvirt:
    """The libvirt behind ``virsh``, for machines of ``state``; ``can`` is what it answered when it was asked."""

    virsh: Virsh
    state: ExecutionState
    accelerator: AcceleratorKind
    emulator: str
    can: Capabilities
    cpu: str | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return f"libvirt ({self.virsh.uri}, {self.accelerator.value})"

    def capabilities(self) -> Capabilities:
        """What it can be, as libvirt says."""
        return self.can

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why this libvirt cannot be ``machine``, one sentence each."""
        return capabilities.problems(self.can, machine)

    def describe(self, machine: Machine) -> str:
        """The domain's XML, for ``virsh define``."""
        return domain_xml(machine, self._how(machine, "armvm")).rstrip("\n")

    def start(self, machine: Machine, *, hold: Sequence[int] = ()) -> LibvirtSession:
        """Start ``machine`` as a transient domain, which ends with this process.

        ``hold`` (locks) is kept open by the process that holds the domain, which the domain does not outlive.
        Raises UsageError for a machine that cannot be, MachineError with libvirt's words when it does not start.
        """
        from armvm.machine.libvirt.session import LibvirtSession

        require_sound(problems(machine) + self.problems(machine))
        name = f"armvm-{secrets.token_hex(4)}"
        # The folder goes as soon as QEMU has opened everything in it: nothing is left even when we are killed.
        with ExitStack() as stack:
            folder = Path(stack.enter_context(_runtime_folder()))
            machine = _prepared(machine, folder)
            listener = stack.enter_context(_listening(folder / "console"))
            xml = folder / "domain.xml"
            xml.write_text(domain_xml(machine, replace(self._how(machine, name), console=folder / "console")), "utf-8")
            script = [
                ("create", "--autodestroy", str(xml)),
                ("event", "--domain", name, "--all", "--loop"),
            ]
            child = Child(self.virsh.command(script), inherit=tuple(hold))
            try:
                session = LibvirtSession(self.virsh, name, child, _connected(listener, child, name))
            except BaseException:
                child.kill()
                raise
        try:
            self._forward(machine, name)
        except BaseException:
            session.end()
            raise
        return session

    def _how(self, machine: Machine, name: str) -> Domain:
        in_command = machine.variables is not None and (
            machine.variables.format != "raw" or machine.firmware.kind is FirmwareKind.BIOS
        )
        return Domain(
            name,
            self.accelerator,
            self.emulator,
            self.cpu,
            variables_by_command=in_command and machine.firmware.keeps_variables,
            passt=False,
        )

    def _forward(self, machine: Machine, domain: str) -> None:
        """Ask QEMU for the port forwards: the XML knows them only with passt, which not every libvirt has."""
        for name, nic in zip(nic_names(machine), machine.nics, strict=True):
            for pair in nic.forwards if isinstance(nic, UserNetwork) else ():
                rule = f"hostfwd_add host{ALIAS}{name} tcp:127.0.0.1:{pair.host_port}-:{pair.guest_port}"
                said = self.virsh.call("qemu-monitor-command", domain, "--hmp", rule).strip()
                if said:
                    raise MachineError(f"port {pair.host_port} of this host cannot be forwarded: {said}")


def find(
    state: ExecutionState,
    *,
    accelerator: AcceleratorKind | None = None,
    cpu: str | None = None,
    uri: str | None = None,
) -> Libvirt:
    """The libvirt at ``uri`` (see ``virsh.connection``) for machines of ``state``.

    ``accelerator`` None takes KVM where libvirt has it. Raises MissingError when virsh, or the accelerator, is not
    there, MachineError when libvirt does not answer.
    """
    virsh = connection(uri)
    tried: list[str] = []
    for one in _accelerators(state, accelerator):
        if not one.available:
            tried.append(f"{one.kind.value}: {one.detail}")
            continue
        kind = "qemu" if one.kind is AcceleratorKind.TCG else one.kind.value
        try:
            said = virsh.call(
                "domcapabilities", "--virttype", kind, "--arch", _ARCHITECTURES[state], "--machine", "virt"
            )
        except MachineError as error:
            tried.append(error.message)
            continue
        root = parse_xml(said.encode(), subject=f"what libvirt ({virsh.uri}) can be")
        emulator = root.findtext("path", "")
        return Libvirt(virsh, state, one.kind, emulator, read_capabilities(root, state), cpu)
    raise MissingError(
        f"no libvirt for {state.label} machines: {'; '.join(tried)}",
        component="libvirt",
        hint=None if tried and "failed to connect" not in tried[-1].lower() else "is libvirtd running?",
    )


def version() -> str:
    """The version of virsh, and what it would connect to. Raises MissingError when it is not installed."""
    virsh = connection()
    return f"virsh {run('virsh', ['--version'], timeout_seconds=20).stdout.decode().strip()}, {virsh.uri}"


def _accelerators(state: ExecutionState, chosen: AcceleratorKind | None) -> tuple[Accelerator, ...]:
    """Those to be tried. An AArch32 guest on a 64-bit KVM is a word of QEMU's that libvirt does not have."""
    every = tuple(
        replace(one, available=False, detail="libvirt cannot narrow a 64-bit CPU") if one.narrows else one
        for one in survey(state)
    )
    return tuple(one for one in every if chosen is None or one.kind is chosen)


def read_capabilities(root: Element, state: ExecutionState) -> Capabilities:
    """What libvirt's answer (docs/formatdomaincaps.rst) says of machines of ``state``."""
    features = set(ALL - {Feature.MORE_CONSOLES, Feature.GUEST_AGENT, Feature.SNAPSHOTS, Feature.LIVE_SNAPSHOTS})
    if "emulator" not in _values(root, "devices/tpm", "backendModel"):
        features.discard(Feature.TPM)
    if not _values(root, "devices/filesystem", "driverType"):
        features.discard(Feature.SHARED_FOLDERS)
    if "virtio" not in _values(root, "devices/rng", "model"):
        features.discard(Feature.RNG)
    if "vnc" not in _values(root, "devices/graphics", "type"):
        features.discard(Feature.GRAPHICS)
    known = {str(version.value): version for version in GicVersion}
    return Capabilities(
        hypervisor="libvirt",
        states=frozenset({state}),
        gics=frozenset(known[value] for value in _values(root, "features/gic", "version") if value in known),
        disk_interfaces=frozenset({DiskInterface.VIRTIO_BLK, DiskInterface.VIRTIO_SCSI}),
        nics=frozenset(NicKind) - {NicKind.LINK},
        features=frozenset(features),
        most_memory_bytes={ExecutionState.AARCH32: 3071 * MIB},
        why=_WHY,
    )


def _values(root: Element, place: str, name: str) -> frozenset[str]:
    found = root.find(place)
    if found is None or found.get("supported") != "yes":
        return frozenset()
    return frozenset(value.text or "" for value in found.findall(f"enum[@name='{name}']/value"))


def _prepared(machine: Machine, folder: Path) -> Machine:
    """The machine with what it needs in ``folder``: overlays in which writes vanish, a variable store likewise."""
    from armvm.firmware.variables import FLASH_SIZE_BYTES
    from armvm.firmware.varstore import new_instance_store

    disks = [_overlaid(disk, folder / f"disk{index}.qcow2") for index, disk in enumerate(machine.disks)]
    variables = machine.variables
    if variables is None and machine.firmware.keeps_variables:
        variables = VariablesFile(folder / "variables.fd", "raw")
        with variables.path.open("xb") as file:
            file.write(new_instance_store())
            file.truncate(FLASH_SIZE_BYTES)
    return replace(machine, disks=tuple(disks), variables=variables)


def _overlaid(disk: DiskDevice, path: Path) -> DiskDevice:
    if disk.writes is not Writes.DISCARDED:
        return disk
    from armvm.disk.qcow2_write import write_overlay
    from armvm.machine.disk_size import size_bytes

    size = size_bytes(disk)
    with path.open("xb") as file:
        write_overlay(file, backing_path=str(disk.path.absolute()), backing_format=disk.format, size_bytes=size)
    return replace(disk, path=path, format="qcow2", writes=Writes.KEPT)


def _runtime_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of ours alone, for as long as a domain takes to start; its path is short enough for a socket."""
    parent = tempfile.gettempdir()
    return tempfile.TemporaryDirectory(prefix="armvm-", dir=parent if len(parent) < _LONGEST_SOCKET - 30 else "/tmp")  # noqa: S108


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def _connected(listener: socket.socket, child: Child, name: str) -> socket.socket:
    """The console, once QEMU has connected it and libvirt has said that the domain is there."""
    deadline = time.monotonic() + _START_SECONDS
    console: socket.socket | None = None
    said = b""
    with ExitStack() as stack:
        while console is None or f"'{name}' created".encode() not in said:
            left = max(deadline - time.monotonic(), 0.0)
            waiting = [child.output.fileno(), *([] if console else [listener.fileno()])]
            ready, _, _ = select.select(waiting, [], [], left)
            if listener.fileno() in ready:
                console = stack.enter_context(listener.accept()[0])
            data = os.read(child.output.fileno(), 4096) if child.output.fileno() in ready else b""
            said += data
            if not ready or (child.output.fileno() in ready and not data):
                raise _not_started(child, in_time=bool(ready))
        stack.pop_all()
    return console


def _not_started(child: Child, *, in_time: bool) -> MachineError:
    if not in_time:
        return MachineError(f"libvirt did not start the machine within {_START_SECONDS:g} s")
    child.wait(5.0)
    return MachineError(
        f"libvirt did not start the machine: {error_of(child.errors) or 'it said nothing'}",
        output_tail=child.errors,
        hint=_hint(child.errors),
    )


def _hint(said: str) -> str | None:
    if "Permission denied" in said:
        return "the system's libvirt runs QEMU as another user, who cannot reach your files: take qemu:///session"
    return None
