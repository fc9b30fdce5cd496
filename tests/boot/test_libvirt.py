"""Real machines by way of libvirt: a daemon of the tests' own, the same image, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import MachineError, UsageError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.machine.backend import DeviceGone, Ended, Ending, Event, Session
from armvm.machine.backends import find_backend
from armvm.machine.console import Conversation, Outcome
from armvm.machine.console_text import Pattern
from armvm.machine.definition import (
    DiskDevice,
    DiskInterface,
    GicVersion,
    HardwareDescription,
    LinkNetwork,
    Machine,
    PortForward,
    UserNetwork,
    Writes,
)
from armvm.units import GIB, MIB
from tools.boot_images import READY, guest_image
from tools.libvirt_daemon import domains, libvirt_daemon, virsh

Armvm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with libvirt_daemon() as found:
        yield found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest_image(tmp_path_factory.mktemp("libvirt") / "both, ü.img", "aarch64", "aarch32")


def machine_of(image: Path, state: ExecutionState = ExecutionState.AARCH64, **changes: object) -> Machine:
    machine = Machine(state, find_firmware(state), (DiskDevice(image, "raw"),), GIB // 2)
    return replace(machine, **changes)  # type: ignore[arg-type] # the fields of a Machine


def wait_ready(session: Session) -> str:
    conversation = Conversation(session, until=Pattern(READY), timeout_seconds=90)
    assert conversation.run() is Outcome.MATCHED, conversation.text.tail
    return conversation.text.window


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_boots_resets_takes_a_disk_and_powers_off(uri: str, image: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    port = free_port()
    machine = machine_of(image, nics=(UserNetwork((PortForward(port, 22),)),))
    backend = find_backend("libvirt", machine.state, uri=uri)
    with backend.start(machine) as session:
        assert "bits=64 gic=3 fdt=1 acpi=0 sector=512 boots=1 disk=1" in wait_ready(session)
        (domain,) = domains(uri)
        with pytest.raises(OSError), socket.socket() as second:
            second.bind(("127.0.0.1", port))  # QEMU listens there
        hot = tmp_path / "hot.img"
        hot.write_bytes(os.urandom(MIB))
        disk = DiskDevice(hot, "raw", writes=Writes.REFUSED, serial="armvm-hot", name="hot", port=1)
        session.attach(disk)
        assert "armvm-hot" in virsh(uri, "dumpxml", domain)
        assert "0x02" in virsh(uri, "dumpxml", domain)
        session.request_detach(disk)  # a guest without an operating system answers by a reset at the latest
        session.reset()
        assert "boots=2" in wait_ready(session)
        assert DeviceGone("hot") in [*session.poll(0)] or "armvm-hot" not in virsh(uri, "dumpxml", domain)
        with pytest.raises(MachineError, match="libvirt"):
            session.attach(replace(disk, path=tmp_path / "absent.img", name="absent", port=0))
        session.request_power_off()
        conversation = Conversation(session, timeout_seconds=30)
        assert conversation.run() is Outcome.POWERED_OFF
        assert "POWER-BUTTON" in conversation.text.window
    assert domains(uri) == []
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before
    assert [*Path("/tmp").glob(f"armvm-*/{image.name}")] == []


def test_aarch32_and_a_gicv2_and_kept_variables(uri: str, image: Path, armvm: Armvm) -> None:
    done = armvm(
        *("run", image, "--backend", "libvirt", "--connect", uri, "--arch", "aarch32", "--gic", "2"),
        *("--until", READY, "--timeout", "90", "--name", "web"),
        timeout_seconds=120,
    )
    assert done.returncode == 0, done.stderr
    assert "bits=32 gic=2 fdt=1 acpi=0 sector=512 boots=1 disk=1" in done.stdout
    assert domains(uri) == []
    direct = armvm("run", "--name", "web", "--until", READY, "--timeout", "90", timeout_seconds=120)
    assert "boots=2 disk=2" in direct.stdout, direct.stderr


def test_a_killed_armvm_takes_its_domain_along(uri: str, image: Path) -> None:
    command = [sys.executable, "-m", "armvm", "run", str(image), "--backend", "libvirt", "--connect", uri]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        (domain,) = domains(uri)
        assert domain.startswith("armvm-")
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while domains(uri):
        assert time.monotonic() < deadline, "the domain outlives the process that made it"
        time.sleep(0.1)


def test_somebody_else_may_end_the_domain(uri: str, image: Path) -> None:
    backend = find_backend("libvirt", ExecutionState.AARCH64, uri=uri)
    with backend.start(machine_of(image)) as session:
        virsh(uri, "destroy", *domains(uri))
        events: list[Event] = []
        deadline = time.monotonic() + 30
        while not any(isinstance(event, Ended) for event in events):
            assert time.monotonic() < deadline
            events += session.poll(1)
        assert events[-1] == Ended(Ending.STOPPED)
        assert session.poll(0) == []


def test_what_cannot_be_is_said_before_anything_is_started(uri: str, image: Path, tmp_path: Path) -> None:
    backend = find_backend("libvirt", ExecutionState.AARCH64, uri=uri)
    able = backend.capabilities()
    assert able.gics == {GicVersion.V2, GicVersion.V3}
    for change, reason in (
        ({"gic": GicVersion.V4}, "GICv4"),
        ({"nics": (LinkNetwork(tmp_path, 0),)}, "link"),
        ({"disks": (DiskDevice(image, "raw", interface=DiskInterface.NVME),)}, "nvme"),
        ({"more_consoles": 1}, "further consoles"),
        ({"state": ExecutionState.AARCH32}, "AArch32"),
    ):
        machine = machine_of(image, **change)
        (problem,) = backend.problems(machine)
        assert reason in problem
        with pytest.raises(UsageError, match=reason):
            backend.start(machine)
    assert domains(uri) == []


def test_the_qemu_command_that_libvirt_makes(uri: str, image: Path, tmp_path: Path) -> None:
    """Translated by libvirt itself, nothing is started: ACPI off by its element's absence, and on by its presence."""
    backend = find_backend("libvirt", ExecutionState.AARCH64, uri=uri)

    def translated(machine: Machine) -> str:
        path = tmp_path / "domain.xml"
        path.write_text(backend.describe(machine))
        return virsh(uri, "domxml-to-native", "qemu-argv", str(path)).replace("'", "")

    # Without a network card: libvirt 9.0 would open a tap device for what is only translated.
    plain = machine_of(image, nics=(), disks=(DiskDevice(image, "raw", 4096, Writes.KEPT, serial="s1"),))
    line = translated(plain)
    assert "-no-acpi" in line or "acpi=off" in line
    assert '"logical_block_size":4096' in line
    assert "menu=on,splash-time=0" in line
    line = translated(replace(plain, description=HardwareDescription.ACPI))
    assert "-no-acpi" not in line
    assert "acpi=off" not in line


def test_a_libvirt_that_is_not_there_is_said(armvm: Armvm, image: Path) -> None:
    gone = "qemu+unix:///session?socket=/nowhere/libvirt-sock"
    done = armvm("run", image, "--backend", "libvirt", "--connect", gone)
    assert done.returncode == 69
    assert "/nowhere/libvirt-sock" in done.stderr
    assert armvm("run", image, "--connect", gone).returncode == 2
    assert armvm("run", image, "--backend", "libvirt", "--connect", "qemu+ssh://else.where/system").returncode == 2
