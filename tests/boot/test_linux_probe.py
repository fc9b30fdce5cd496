"""The Linux probe on real kernels under plain QEMU: what it says is held against what QEMU says the machine has."""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from armvm.disk.raw import RawDisk
from armvm.efi import EfiProgram, read_program
from armvm.execution import ExecutionState
from armvm.image.uki import build_uki
from armvm.machine.qmp import Qmp
from armvm.probe.initramfs import WANTED_MODULES, build_initramfs
from armvm.probe.modules import ModuleFile, find_kernel_modules
from armvm.probe.wire import Record, Run, decode
from tools.boot_images import esp_image
from tools.kernels import debian_kernel

pytestmark = pytest.mark.boot

MIB = 1 << 20
DEADLINE_SECONDS = 90
AARCH64, AARCH32 = ExecutionState
WIDE = ("qemu-system-aarch64", "-cpu", "cortex-a72", "-M")
NARROW = ("qemu-system-arm", "-cpu", "cortex-a15", "-M")
DISK_MAC, HOT_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
PORTS = ("-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", "pcie-root-port,id=rp2,chassis=2,slot=2")


class Guest:
    """A machine that the probe runs in: what it says, and QEMU's own view of it."""

    def __init__(self, process: subprocess.Popen[bytes], qmp: Qmp) -> None:
        self.qmp = qmp
        self.said = b""
        self.deleted: list[str] = []
        self._process = process
        self._deadline = time.monotonic() + DEADLINE_SECONDS
        qmp.greet(30)

    @property
    def run(self) -> Run:
        (run,) = decode(self.said)
        return run

    def records(self, kind: str) -> list[Mapping[str, Any]]:
        return [record.fields for run in decode(self.said) for record in run.records if record.type == kind]

    def one(self, kind: str) -> Mapping[str, Any]:
        (record,) = self.records(kind)
        return record

    def hotplug(self, action: str, subsystem: str) -> list[Mapping[str, Any]]:
        events = self.records("hotplug")
        return [event for event in events if (event["action"], event["subsystem"]) == (action, subsystem)]

    def wait(self, what: str, reached: Callable[[], object]) -> None:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not reached():
                if time.monotonic() > self._deadline:
                    pytest.fail(f"{what} never came: {self.said[-3000:].decode(errors='replace')}")
                for _ in selector.select(0.2):
                    self.said += os.read(self._process.stdout.fileno(), 65536)
                self.deleted += [
                    event.data.get("device", "") for event in self.qmp.receive() if event.name == "DEVICE_DELETED"
                ]

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None
        self.said += self._process.communicate(timeout=max(self._deadline - time.monotonic(), 1))[0]
        assert self._process.returncode == 0


@contextmanager
def booted(
    folder: Path,
    machine: Sequence[str],
    devices: Sequence[str] = (),
    *,
    cmdline: str = "quiet",
    modules: Sequence[ModuleFile] | None = None,
    serial: str = "stdio",
) -> Iterator[Guest]:
    state = AARCH64 if machine[0] == WIDE[0] else AARCH32
    kernel = debian_kernel(state)
    if modules is None:
        modules = find_kernel_modules(kernel.modules, WANTED_MODULES)
    initrd = build_initramfs(state, modules=modules)
    with RawDisk(kernel.image) as linux:
        uki = build_uki(read_program(EfiProgram.STUB, state), linux=linux, initrd=[initrd], cmdline=cmdline)
        program = uki.read(0, uki.size_bytes)
    image = esp_image(
        folder / "disk.img",
        {f"EFI/BOOT/{state.boot_file}": program},
        size_bytes=max(48, len(program) // MIB + 16) * MIB,
    )
    firmware = "/usr/share/AAVMF/AAVMF_CODE.fd" if state is AARCH64 else "/usr/share/AAVMF/AAVMF32_CODE.fd"
    ours, theirs = socket.socketpair()
    argv = [*machine, "-m", "1024", "-smp", "2", "-display", "none", "-monitor", "none", "-serial", serial]
    argv += ["-no-reboot", "-boot", "menu=on,splash-time=0", "-nic", "none"]
    argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={firmware}"]
    argv += ["-drive", f"if=none,id=disk,format=raw,readonly=on,file={image}"]
    argv += ["-device", "virtio-blk-pci,drive=disk,bootindex=0,serial=BOOTDISK", *devices]
    argv += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
    with (
        ours,
        theirs,
        subprocess.Popen(
            argv,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield Guest(process, Qmp(ours))
        finally:
            process.kill()


def network(mac: str) -> tuple[str, ...]:
    return ("-netdev", "user,id=net0", "-device", f"virtio-net-pci,netdev=net0,romfile=,mac={mac}")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(4096)).hexdigest()


def on(records: Sequence[Mapping[str, Any]], bus: str) -> list[Mapping[str, Any]]:
    return [device for record in records for device in record.get(bus, ())]


def qemu_functions(qmp: Qmp) -> list[tuple[int, int]]:
    """Vendor and device of every PCI function that QEMU has."""
    found: list[tuple[int, int]] = []
    waiting = [device for bus in qmp.execute("query-pci") for device in bus["devices"]]
    while waiting:
        device = waiting.pop()
        found.append((device["id"]["vendor"], device["id"]["device"]))
        waiting += device.get("pci_bridge", {}).get("devices", [])
    return sorted(found)


def check_machine(guest: Guest, state: ExecutionState, boot_disk: Path) -> None:
    """What holds on every machine of these tests: two CPUs, 1 GiB, the boot disk and a NIC on PCI."""
    assert not guest.run.drops
    begin = guest.one("begin")
    assert (begin["wire"], begin["state"], begin["cmdline"]) == (1, state.value, "quiet")
    cpus = guest.one("cpus")
    assert (cpus["present"], cpus["online"]) == ("0-1", "0-1")
    assert "PSCIv1" in cpus["psci"]
    memory = guest.one("memory-total")
    assert 900 * 1024 < memory["kib"] < 1024 * 1024
    ranges = [(int(first, 16), int(last, 16)) for first, last in memory["ranges"]]
    assert all(0x40000000 <= first < last < 0x80000000 for first, last in ranges)
    assert sum(last + 1 - first for first, last in ranges) > memory["kib"] * 1024
    interrupts = guest.one("interrupts")
    assert len(interrupts["timer"]) == len(interrupts["timer_later"]) == 2
    assert sum(interrupts["timer_later"]) > sum(interrupts["timer"])
    assert any(" 27 " in line for line in interrupts["timer_lines"]), "the virtual timer's interrupt"
    clock = guest.one("clock")
    assert clock["clocksource"] == "arch_sys_counter"
    assert [abs(entry["time"] - time.time()) < 60 for entry in clock["rtc"] if entry["driver"] == "rtc-efi"] == [True]
    assert any(line.startswith("ttyAMA0") for line in guest.one("consoles")["lines"])

    devices = guest.records("devices")
    assert [record["part"] for record in devices] == list(range(devices[0]["parts"]))
    assert sorted((one["vendor"], one["device"]) for one in on(devices, "pci")) == qemu_functions(guest.qmp)
    virtio = {one["driver"]: one for one in on(devices, "virtio")}
    assert (virtio["virtio_blk"]["device"], virtio["virtio_blk"]["transport"]) == (2, "pci")
    assert virtio["virtio_net"]["device"] == 1
    (disk,) = guest.records("block")
    assert (disk["size_bytes"], disk["serial"], disk["driver"]) == (boot_disk.stat().st_size, "BOOTDISK", "virtio_blk")
    assert (disk["read"], disk["sha256_hex"]) == (True, digest(boot_disk))
    (nic,) = guest.records("net")
    assert (nic["mac"], nic["carrier"], nic["driver"], nic["operstate"]) == (DISK_MAC, True, "virtio_net", "up")


def check_device_tree(guest: Guest, folder: Path) -> None:
    """The tree that the probe hands on is one for dtc, and describes this very machine."""
    import base64

    records = guest.records("fdt-data")
    assert [record["part"] for record in records] == list(range(records[0]["parts"]))
    path = folder / "guest.dtb"
    path.write_bytes(b"".join(base64.b64decode(record["data_b64"]) for record in records))
    done = subprocess.run(
        ["dtc", "-q", "-I", "dtb", "-O", "dts", path], capture_output=True, text=True, timeout=30, check=True
    )
    assert "cpu@1 {" in done.stdout
    assert "cpu@2 {" not in done.stdout
    assert "linux,uefi-system-table" in done.stdout
    assert guest.one("consoles")["stdout_path"] in done.stdout
    assert guest.one("cpus")["enable"] == {"cpu0": "psci", "cpu1": "psci"}


def add_disk(guest: Guest, path: Path, driver: str, bus: str) -> None:
    path.write_bytes(hashlib.shake_128(b"a disk").digest(8 * MIB))
    guest.qmp.execute(
        "blockdev-add", {"node-name": "hot", "driver": "raw", "file": {"driver": "file", "filename": str(path)}}
    )
    guest.qmp.execute("device_add", {"driver": driver, "id": "hotdisk", "bus": bus, "drive": "hot", "serial": "HOT-1"})


def check_added_disk(guest: Guest, path: Path, driver: str) -> None:
    (disk,) = guest.hotplug("add", "block")
    assert (disk["size_bytes"], disk["serial"], disk["driver"]) == (8 * MIB, "HOT-1", driver)
    assert (disk["read"], disk["sha256_hex"]) == (True, digest(path))


@pytest.mark.parametrize("description", ["dt", "acpi"])
def test_aarch64(description: str, tmp_path: Path) -> None:
    by_tree = description == "dt"
    machine = "virt,acpi=off,gic-version=3" if by_tree else "virt,acpi=on,gic-version=2"
    with booted(tmp_path, [*WIDE, machine], [*network(DISK_MAC), *PORTS]) as guest:
        guest.wait("ready", lambda: guest.records("ready"))
        check_machine(guest, AARCH64, tmp_path / "disk.img")
        boot = guest.one("boot")
        assert (boot["efi"], boot["fdt"], bool(boot["acpi"])) == (True, by_tree, not by_tree)
        controllers = guest.one("interrupts")["controllers"]
        assert ("GICv3" in controllers, "GIC-0" in controllers) == (by_tree, not by_tree)
        if by_tree:
            check_device_tree(guest, tmp_path)
        else:
            assert {"APIC", "DSDT", "FACP", "GTDT", "MCFG", "SPCR"} <= set(boot["acpi"])
            assert not guest.records("fdt-data")

        add_disk(guest, tmp_path / "hot.img", "virtio-blk-pci", "rp1")
        guest.qmp.execute("netdev_add", {"type": "user", "id": "net1"})
        nic = {"driver": "virtio-net-pci", "id": "hotnic", "bus": "rp2", "netdev": "net1", "mac": HOT_MAC}
        guest.qmp.execute("device_add", {**nic, "romfile": ""})
        guest.wait("both devices", lambda: guest.hotplug("add", "block") and guest.hotplug("add", "net"))
        check_added_disk(guest, tmp_path / "hot.img", "virtio_blk")
        (added,) = guest.hotplug("add", "net")
        assert (added["mac"], added["carrier"], added["driver"]) == (HOT_MAC, True, "virtio_net")
        assert len(guest.hotplug("add", "pci")) == 2

        for device in ("hotdisk", "hotnic"):
            guest.qmp.execute("device_del", {"id": device})
        guest.wait("both gone", lambda: guest.hotplug("remove", "block") and guest.hotplug("remove", "net"))
        guest.wait("QEMU's word", lambda: {"hotdisk", "hotnic"} <= set(guest.deleted))
        assert guest.hotplug("remove", "block")[0]["name"] == guest.hotplug("add", "block")[0]["name"]
        assert guest.hotplug("remove", "net")[0]["name"] == added["name"]

        before = len(on(guest.records("devices"), "pci"))
        guest.tell("armvm:report")
        guest.wait("the report again", lambda: len(guest.records("net")) == 2)
        assert len(on(guest.records("devices"), "pci")) == 2 * before
        guest.tell("armvm:end")
        guest.finish()
        assert guest.run.complete
        assert guest.one("complete")["next"] == "poweroff"


def test_aarch32(tmp_path: Path) -> None:
    """Debian's armhf kernels have no PCI hotplug: QEMU says that all went well, the guest says nothing."""
    controller = ("-device", "virtio-scsi-pci,id=scsi0")
    with booted(tmp_path, [*NARROW, "virt,acpi=off"], [*network(DISK_MAC), *controller, *PORTS]) as guest:
        guest.wait("ready", lambda: guest.records("ready"))
        check_machine(guest, AARCH32, tmp_path / "disk.img")
        check_device_tree(guest, tmp_path)
        assert guest.one("interrupts")["controllers"]["GIC-0"] > 0

        guest.qmp.execute("netdev_add", {"type": "user", "id": "net1"})
        nic = {"driver": "virtio-net-pci", "id": "hotnic", "bus": "rp2", "netdev": "net1", "mac": HOT_MAC}
        guest.qmp.execute("device_add", {**nic, "romfile": ""})
        add_disk(guest, tmp_path / "hot.img", "scsi-hd", "scsi0.0")
        guest.wait("the disk", lambda: guest.hotplug("add", "block"))
        check_added_disk(guest, tmp_path / "hot.img", "sd")
        guest.qmp.execute("device_del", {"id": "hotdisk"})
        guest.wait("the disk's end", lambda: guest.hotplug("remove", "block"))
        guest.wait("QEMU's word", lambda: "hotdisk" in guest.deleted)
        assert not [event for event in guest.records("hotplug") if event["subsystem"] in {"pci", "net"}]
        guest.tell("armvm:end")
        guest.finish()
        assert guest.run.complete


def test_modules_that_are_not_there(tmp_path: Path) -> None:
    missing = [ModuleFile("virtio_blk", None)]
    cmdline = 'quiet armvm.wait=0 word="a\\b\N{LATIN SMALL LETTER O WITH DIAERESIS}"'
    with booted(tmp_path, [*WIDE, "virt,acpi=off"], modules=missing, cmdline=cmdline) as guest:
        guest.finish()
        assert guest.said.split(b"@A1", 1)[1].isascii()
        assert guest.one("begin")["cmdline"].encode("latin-1").decode() == cmdline
        error = "the kernel does not have it"
        assert guest.one("module") == {"name": "virtio_blk", "loaded": False, "error": error}
        assert not guest.records("block")
        assert guest.run.complete


def test_a_crash_is_said_and_the_machine_powered_off(tmp_path: Path) -> None:
    with booted(tmp_path, [*WIDE, "virt,acpi=off"], modules=[], cmdline="quiet armvm.crash=2") as guest:
        guest.finish()
        assert guest.said.count(b"@A1") > 2
        assert guest.run.records[-1] == Record("error", {"what": "the probe was ended by signal 6"})
        assert not guest.run.complete
        assert len(guest.run.drops) == 1, "the record that it was in the midst of"


def test_a_virtio_console_is_spoken_on_once_its_driver_is_there(tmp_path: Path) -> None:
    console = ("-device", "virtio-serial-pci", "-chardev", "stdio,id=c", "-device", "virtconsole,chardev=c")
    cmdline = "quiet console=hvc0 armvm.wait=0"
    with booted(tmp_path, [*WIDE, "virt,acpi=off"], console, serial="none", cmdline=cmdline) as guest:
        guest.finish()
        assert guest.run.complete
        assert guest.one("consoles")["active"].endswith("hvc0")
