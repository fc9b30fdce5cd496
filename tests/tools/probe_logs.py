"""What the probes would say in a good virtual machine, as text that a console would show.

The wire format is written here from docs/probe-wire.md with nothing of ``armvm.probe.wire``.
"""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from armvm.execution import ExecutionState
from armvm.machine.definition import Bus, Console, GicVersion, HardwareDescription
from armvm.platform.check import check_platform
from armvm.platform.host import ExpectedMachine, HotplugAttempt, HotplugKind, HotplugRecord
from armvm.probe.report import After, PlatformObservation, Sitting, observe
from armvm.probe.wire import decode
from armvm.spec.verdict import Finding, Report
from tools import device_trees
from tools.device_trees import Node

Record = dict[str, Any]

FDT_TABLE = "b1b621d5-f19c-41a5-830b-d9152c69aae0"
ACPI_TABLE = "8868e871-e4f1-11d3-bc22-0080c73c8881"
UNSUPPORTED = "0x8000000000000003"
NOT_FOUND = "0x800000000000000e"
HOTPLUG_SERIAL = "HOTPLUG"
HOTPLUG_MAC = "52:54:00:00:00:99"
HOTPLUG_SHA256 = "ab" * 32
ECAM_DISK = "02010c00d041030a000000000101060000017fff0400"
SERIAL_PORT = "010414004b7d98d31a975f438caf4967eb627241030e13000000000000960000000000000801017fff0400"
TESTS = (
    "system cpu tables fdt acpi smbios memory console block network pci variables rtc counter gic timer".split()  # noqa: SIM905
)
_TEST_OF = {
    "table": "tables",
    "fdt-data": "fdt",
    "memory-range": "memory",
    "pci-function": "pci",
    "variable-boot": "variables",
    "variable-test": "variables",
    "variable-store": "variables",
}


def lines(records: Iterable[Record], speaker: str, *, newline: str = "\r\n") -> str:
    """The records of one run as a console shows them."""
    out = []
    sequence = 0
    for record in records:
        text = json.dumps(record)
        pieces = [text[start : start + 56] for start in range(0, len(text), 56)]
        for index, piece in enumerate(pieces):
            body = f"{speaker} {sequence % 65536:04x} {'.' if index == len(pieces) - 1 else '+'}"
            crc = zlib.crc32(f"{body} {piece}".encode())
            out.append(f"@A1 {body} {crc:08x} {piece}{newline}")
            sequence += 1
    return "".join(out)


@dataclass
class EfiStory:
    """One run of the EFI probe: its facts by type of record; a test that is in ``ends`` ends like that."""

    instance: str
    after: After | None
    begin: Record
    facts: list[Record]
    ends: dict[str, str] = field(default_factory=dict)
    next: str = "reset"

    def of(self, kind: str) -> list[Record]:
        return [record for record in self.facts if record["t"] == kind]

    def drop(self, *kinds: str) -> None:
        self.facts = [record for record in self.facts if record["t"] not in kinds]

    def records(self) -> list[Record]:
        found = [self.begin]
        for test in TESTS:
            found.append({"t": "test-begin", "id": test})
            found += [record for record in self.facts if _TEST_OF.get(record["t"], record["t"]) == test]
            found.append({"t": "test-end", "id": test, "result": self.ends.get(test, "done")})
        crashed = [test for test, end in self.ends.items() if end == "crashed"]
        found.append({"t": "runtime", "reset_supported": True, "next": self.next})
        complete = {"t": "complete", "run": self.begin["run"], "tests": len(TESTS), "crashed": crashed}
        return [*found, complete | {"next": self.next}]


@dataclass
class Story:
    """Everything that happens to a platform while it is probed."""

    tree: Node | bytes | None
    runs: list[EfiStory]
    linux: list[list[Record]]
    machine: ExpectedMachine | None
    hotplug: HotplugRecord | None
    image_unchanged: bool | None = True
    efi_failure: str | None = None
    linux_failure: str | None = None
    profile: str = "vmspec-1.0"

    def every(self, kind: str, **changes: Any) -> None:
        """Change the records of that type in every run of the EFI probe."""
        for run in self.runs:
            for record in run.of(kind):
                record.update(changes)

    def linux_says(self, kind: str, **changes: Any) -> None:
        for records in self.linux:
            for record in records:
                if record["t"] == kind:
                    record.update(changes)

    def fdt(self) -> bytes | None:
        return device_trees.flatten(self.tree) if isinstance(self.tree, Node) else self.tree

    def logs(self) -> list[tuple[str, str, After | None]]:
        """Instance, text, and what ended the sitting before, for every sitting."""
        data = self.fdt()
        found = []
        for run in self.runs:
            told = copy.deepcopy(run)
            if data is not None and told.of("fdt"):
                told.facts += parts(data)
            found.append((run.instance, lines(told.records(), "E"), run.after))
        return found + [("linux", lines(records, "L"), None) for records in self.linux]

    def observation(self) -> PlatformObservation:
        sittings = [Sitting(decode(text.encode()), instance, after) for instance, text, after in self.logs()]
        return observe(
            sittings,
            name="a VM",
            image_unchanged=self.image_unchanged,
            efi_failure=self.efi_failure,
            linux_failure=self.linux_failure,
        )


def parts(data: bytes, size: int = 1536) -> list[Record]:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [
        {"t": "fdt-data", "part": index, "parts": len(pieces), "data_b64": base64.b64encode(piece).decode()}
        for index, piece in enumerate(pieces)
    ]


def efi_story(instance: str, number: int, after: After | None, *, found: str | None) -> EfiStory:
    """A run in which all is well; ``found`` is the nonce that it finds. Its own is ``nonce(instance, number)``."""
    mark = {"run": number - 1, "nonce_hex": found} if found else None
    reason = "first" if number == 1 else "reset" if after is After.RESET else "again"
    facts: list[Record] = [
        {"t": "system", "uefi_revision": 131142, "vendor": "EDK II", "firmware_revision": "0x10000", "crc_ok": True},
        {
            "t": "cpu",
            "el": 1,
            "registers": {"CurrentEL": "0x4", "MPIDR_EL1": "0x80000000", "ID_AA64PFR0_EL1": "0x11"},
            "faults": [],
        },
        {"t": "table", "guid": "eb9d2d31-2d88-11d3-9a16-0090273fc14d", "address": "0x7ffee000"},
        {"t": "table", "guid": FDT_TABLE, "address": "0x47ef3000"},
        {"t": "fdt", "present": True, "address": "0x47ef3000", "size": 1052672, "header_ok": True},
        {"t": "acpi", "present": False},
        {"t": "smbios", "present": True, "version": "3.0", "strings": {"manufacturer": "QEMU"}},
        {
            "t": "memory-range",
            "ranges": [[7, "0x40000000", 245760, "0x8"], [6, "0x7c000000", 16384, "0x8000000000000008"]],
        },
        {"t": "memory-range", "ranges": [[11, "0x4000000", 16384, "0x8000000000000002"]]},
        {"t": "memory", "key": "0x4a0", "descriptor_size": 48, "count": 3},
        {
            "t": "console",
            "out": [SERIAL_PORT],
            "serial": [{"path_hex": SERIAL_PORT, "baud": 38400}],
            "active_out_hex": SERIAL_PORT,
        },
        {
            "t": "block",
            "path_hex": ECAM_DISK,
            "present": True,
            "partition": False,
            "block_size": 512,
            "last_block": 102399,
            "own": True,
        },
        {"t": "network", "path_hex": ECAM_DISK, "mac_hex": "525400123456", "media_present": True},
        {
            "t": "pci-function",
            "functions": [
                ["0000:00:00.0", 0x1B36, 8, 0x60000, 0, ["0x0"] * 6],
                ["0000:00:01.0", 0x1AF4, 0x1001, 0x10000, 0, ["0x81", "0x10008000", "0x0", "0x0", "0x400c", "0x80"]],
            ],
        },
        {"t": "pci", "root_bridges": 1, "count": 2, "method": "pci-io"},
        {"t": "variable-boot", "name": "BootCurrent", "attributes": 6, "data_hex": "0100", "size": 2},
        {
            "t": "variable-test",
            "name": "ArmvmProbe",
            "read_status": "0x0" if mark else NOT_FOUND,
            "found": mark,
            "write_status": "0x0",
            "written": {"run": number, "nonce_hex": nonce(instance, number)},
            "read_back_ok": True,
        },
        {"t": "variable-store", "status": "0x0", "maximum": 262044, "remaining": 259928, "file_store": False},
        {
            "t": "rtc",
            "get_status": "0x0",
            "time": [2026, 3, 1, 23, 59, 59, 0, 2047, 0],
            "later": [2026, 3, 2, 0, 0, 1, 0, 2047, 0],
            "elapsed_ms": 1706,
            "set_status": "0x0",
            "set_read": [2026, 3, 2, 1, 0, 1, 0, 2047, 0],
            "restore_status": "0x0",
        },
        {
            "t": "counter",
            "frequency": 62500000,
            "samples": [["0x9459e30", 1795493708, 0], ["0xcfe612b", 1795493709, 0]],
            "stall_us": 100000,
            "stall_ticks": 6259344,
            "monotonic": True,
        },
        {"t": "gic", "description": "v3", "distributor": "0x8000000", "pidr2": "0x3b", "arch": 3, "fault": False},
        {
            "t": "timer",
            "istatus": True,
            "pending": True,
            "method": "gicr-ispendr",
            "hppir": 27,
            "event": {"armed_ms": 50, "fired": True, "elapsed_ms": 50},
        },
    ]
    begin = {
        "t": "begin",
        "wire": 1,
        "version": "0.1.0",
        "run": number,
        "state": "aarch64",
        "reason": reason,
        "media": {"file": True, "status": "0x0"},
    }
    return EfiStory(instance, after, begin, facts)


def nonce(instance: str, number: int) -> str:
    return f"{instance}{number}".encode().hex()


def linux_story() -> list[Record]:
    """A run of the Linux probe in which a disk and a network interface come and go."""
    disk = {
        "name": "vda",
        "size_bytes": 52428800,
        "serial": "PROBE",
        "driver": "virtio_blk",
        "read": True,
        "sha256_hex": "cd" * 32,
    }
    nic = {"name": "eth0", "mac": "52:54:00:12:34:56", "carrier": True, "driver": "virtio_net", "operstate": "up"}
    came = {"t": "hotplug", "action": "add"}
    went = {"t": "hotplug", "action": "remove"}
    new_disk = {"subsystem": "block", "name": "vdb", "devpath": "/devices/pci/vdb"}
    new_nic = {"subsystem": "net", "name": "eth1", "devpath": "/devices/pci/eth1"}
    return [
        {
            "t": "begin",
            "wire": 1,
            "version": "0.1.0",
            "run": 1,
            "state": "aarch64",
            "kernel": "6.1.0-56-cloud-arm64",
            "machine": "aarch64",
            "cmdline": "console=ttyAMA0",
        },
        {"t": "module", "name": "virtio_blk", "loaded": True, "error": None},
        {"t": "boot", "efi": True, "fdt": True, "acpi": [], "dmesg": ["psci: PSCIv1.1 detected in firmware."]},
        {
            "t": "cpus",
            "present": "0-1",
            "online": "0-1",
            "possible": "0-1",
            "psci": "psci: PSCIv1.1 detected in firmware.",
            "enable": {"cpu0": "psci", "cpu1": "psci"},
        },
        {"t": "memory-total", "kib": 994932, "ranges": [["0x40000000", "0x7fffffff"]]},
        {
            "t": "clock",
            "clocksource": "arch_sys_counter",
            "rtc": [{"name": "rtc-efi", "driver": "rtc-efi", "time": 1795493526}],
            "wall": 1795493526,
        },
        {
            "t": "consoles",
            "lines": ["ttyAMA0              -W- (EC p a)  204:64"],
            "active": "ttyAMA0",
            "tty": ["ttyAMA0"],
            "stdout_path": "serial0:115200n8",
        },
        {
            "t": "devices",
            "part": 0,
            "parts": 2,
            "pci": [{"slot": "0000:00:01.0", "vendor": 6900, "device": 4097, "class": 65536, "driver": "virtio-pci"}],
        },
        {
            "t": "devices",
            "part": 1,
            "parts": 2,
            "amba": [{"name": "9000000.pl011", "driver": "uart-pl011", "of_node": "/pl011@9000000"}],
        },
        {"t": "block", **disk},
        {"t": "net", **nic},
        {
            "t": "interrupts",
            "controllers": {"GICv3": 3, "ITS-MSI": 6},
            "timer": [285, 285],
            "timer_later": [351, 328],
            "elapsed_ms": 1001,
        },
        {"t": "ready"},
        {
            **came,
            **new_disk,
            "serial": HOTPLUG_SERIAL,
            "driver": "virtio_blk",
            "read": True,
            "sha256_hex": HOTPLUG_SHA256,
            "size_bytes": 1048576,
        },
        {**went, **new_disk},
        {**came, **new_nic, "mac": HOTPLUG_MAC, "carrier": True, "driver": "virtio_net", "operstate": "up"},
        {**went, **new_nic},
        {"t": "complete", "next": "poweroff"},
    ]


def good() -> Story:
    """A VM that meets every requirement of v1.0 that can be seen."""
    ways = (None, After.RESET, After.POWER_CYCLE, After.KILL)
    first = [
        efi_story("first", number, after, found=nonce("first", number - 1) if after else None)
        for number, after in enumerate(ways, start=1)
    ]
    second = [
        efi_story("second", 1, None, found=None),
        efi_story("second", 2, After.RESET, found=nonce("second", 1)),
    ]
    return Story(
        tree=device_trees.virt(),
        runs=[*first, *second],
        linux=[linux_story()],
        machine=ExpectedMachine(
            state=ExecutionState.AARCH64,
            vcpus=2,
            memory_bytes=1 << 30,
            gic=GicVersion.V3,
            description=HardwareDescription.DT,
            console=Console.PL011,
            bus=Bus.PCI,
            disks=1,
            nics=1,
            firmware="EDK2",
        ),
        hotplug=HotplugRecord(
            (
                HotplugAttempt(HotplugKind.BLOCK, "PCIe root port", True, True, None, HOTPLUG_SERIAL, HOTPLUG_SHA256),
                HotplugAttempt(HotplugKind.NETWORK, "PCIe root port", True, True, None, mac=HOTPLUG_MAC),
            )
        ),
    )


def good_v2() -> Story:
    """A VM that meets every requirement of v2.0 that can be seen, of a hypervisor that has either GIC."""
    story = good()
    story.profile = "vmspec-2.0"
    story.every("system", uefi_revision=131152)
    tables = [{"signature": name, "revision": 2, "checksum_ok": True} for name in "FACP DSDT APIC GTDT SPCR".split()]  # noqa: SIM905
    story.every("acpi", present=True, revision=2, tables=tables)
    for run in story.runs:
        run.facts.append({"t": "table", "guid": ACPI_TABLE, "address": "0x7fff0000"})
    by_acpi = [record for record in linux_story() if record["t"] != "hotplug"]
    by_acpi[0] = by_acpi[0] | {"cmdline": "acpi=force"}
    by_acpi[2] = by_acpi[2] | {"fdt": False, "acpi": ["FACP", "APIC"]}
    story.linux.append(by_acpi)
    return story


def judge(story: Story) -> Report:
    return check_platform(story.observation(), profile=story.profile, machine=story.machine, hotplug=story.hotplug)


def finding(report: Report, requirement: str) -> Finding:
    return next(entry for entry in report.findings if entry.requirement == requirement)
