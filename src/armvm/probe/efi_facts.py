"""What the EFI probe sees, as values: one class for each kind of record (docs/probe-wire.md, "The EFI probe")."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from armvm.execution import ExecutionState
from armvm.probe.wire import Record


class TestResult(enum.Enum):
    """How a test of the probe ended."""

    __test__ = False  # no class of tests, whatever pytest thinks of its name

    DONE = "done"
    SKIPPED = "skipped"
    CRASHED = "crashed"
    """It took an earlier run down and was not tried again."""
    FAULT = "fault"
    """It ended in an exception, which the probe caught."""
    UNFINISHED = "unfinished"
    """It began, and the run was heard no more."""


@dataclass(frozen=True, slots=True)
class Begin:
    """How the run began. ``reason`` is ``first``, ``reset``, ``crash`` or ``again``."""

    version: str | None
    number: int | None
    state: ExecutionState | None
    reason: str | None
    file_on_esp: bool | None


@dataclass(frozen=True, slots=True)
class System:
    """The UEFI system table. ``revision`` is ``(major << 16) | minor * 10`` (UEFI 2.10 §4.3.1)."""

    revision: int | None
    vendor: str | None
    firmware_revision: int | None
    crc_ok: bool | None


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor that the probe ran on. ``exception_level`` in AArch64, ``mode`` in AArch32."""

    exception_level: int | None
    mode: int | None
    registers: Mapping[str, int]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FdtTable:
    """The device tree in the configuration table. ``data`` is None when it did not come through whole."""

    present: bool | None
    address: int | None
    size_bytes: int | None
    header_ok: bool | None
    data: bytes | None


@dataclass(frozen=True, slots=True)
class AcpiTable:
    """One ACPI table."""

    signature: str
    revision: int | None
    length_bytes: int | None
    checksum_ok: bool | None


@dataclass(frozen=True, slots=True)
class Acpi:
    """The ACPI tables that the root pointer leads to."""

    present: bool | None
    revision: int | None
    tables: tuple[AcpiTable, ...]


@dataclass(frozen=True, slots=True)
class Smbios:
    """What SMBIOS calls the machine."""

    present: bool | None
    version: str | None
    strings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """One descriptor of the UEFI memory map (UEFI 2.10 §7.2.3). ``kind`` is the EFI memory type."""

    kind: int
    start: int
    pages: int
    attributes: int

    @property
    def size_bytes(self) -> int:
        """EFI pages have 4096 bytes."""
        return self.pages * 4096


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """The UEFI memory map; ``whole`` when as many descriptors came through as the probe counted."""

    ranges: tuple[MemoryRange, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Gic:
    """The interrupt controller: what describes it, and what its registers say."""

    description: str | None
    distributor: int | None
    architecture: int | None
    pidr2: int | None
    typer: int | None
    fault: bool | None


@dataclass(frozen=True, slots=True)
class CounterSample:
    """The counter, and what GetTime said at the same moment."""

    ticks: int
    clock_seconds: float


@dataclass(frozen=True, slots=True)
class Counter:
    """The virtual counter. ``stall_us`` microseconds of gBS->Stall took ``stall_ticks``."""

    frequency_hz: int | None
    samples: tuple[CounterSample, ...]
    monotonic: bool | None
    stall_us: int | None
    stall_ticks: int | None


@dataclass(frozen=True, slots=True)
class TimerEvent:
    """An event of the firmware's own timer tick."""

    armed_ms: float | None
    fired: bool | None
    elapsed_ms: float | None


@dataclass(frozen=True, slots=True)
class Timer:
    """The virtual timer: its condition, and whether its interrupt became pending at the controller."""

    condition_met: bool | None
    pending: bool | None
    ticks_late: int | None
    method: str | None
    highest_pending: int | None
    event: TimerEvent | None


@dataclass(frozen=True, slots=True)
class ClockTime:
    """An EFI_TIME (UEFI 2.10 §8.3.1)."""

    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int
    nanosecond: int

    @property
    def seconds(self) -> float | None:
        """Seconds since 1970, the time zone left aside; None when it is no date."""
        from datetime import UTC, datetime

        try:
            moment = datetime(self.year, self.month, self.day, self.hour, self.minute, self.second, tzinfo=UTC)
        except ValueError:
            return None
        return moment.timestamp() + self.nanosecond / 1e9

    def __str__(self) -> str:
        """As ISO 8601 without a zone."""
        date = f"{self.year:04}-{self.month:02}-{self.day:02}"
        return f"{date}T{self.hour:02}:{self.minute:02}:{self.second:02}"


@dataclass(frozen=True, slots=True)
class Rtc:
    """GetTime and SetTime. ``later`` is what GetTime said ``elapsed_ms`` after ``time``."""

    get_status: int | None
    time: ClockTime | None
    later: ClockTime | None
    elapsed_ms: float | None
    set_status: int | None
    set_read: ClockTime | None
    restore_status: int | None


@dataclass(frozen=True, slots=True)
class Consoles:
    """Device paths of the consoles, binary."""

    outputs: tuple[bytes, ...]
    serial_ports: tuple[bytes, ...]
    active: bytes | None


@dataclass(frozen=True, slots=True)
class BlockHandle:
    """A block device that the firmware knows."""

    path: bytes
    present: bool | None
    partition: bool | None
    block_size: int | None
    last_block: int | None
    own: bool | None


@dataclass(frozen=True, slots=True)
class NetworkHandle:
    """A network interface that the firmware knows."""

    path: bytes
    mac: bytes | None


@dataclass(frozen=True, slots=True)
class PciFunction:
    """A PCI function: its address, ids, and base address registers."""

    segment: int
    bus: int
    device: int
    function: int
    vendor_id: int
    device_id: int
    class_code: int
    header_type: int
    bars: tuple[int, ...]

    @property
    def address(self) -> str:
        """As Linux and lspci write it."""
        return f"{self.segment:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


@dataclass(frozen=True, slots=True)
class Pci:
    """What stands behind PCI root bridges."""

    root_bridges: int | None
    functions: tuple[PciFunction, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """What the probe leaves in its variable: its run and a number that nobody else has."""

    run: int | None
    nonce: str


@dataclass(frozen=True, slots=True)
class VariableTest:
    """The probe's own non-volatile variable: what it found there and what it wrote."""

    read_status: int | None
    found: Mark | None
    write_status: int | None
    written: Mark | None
    read_back_ok: bool | None


@dataclass(frozen=True, slots=True)
class VariableStore:
    """What the firmware says of its variable store; ``file_on_esp`` when it keeps it in a file there."""

    status: int | None
    remaining_bytes: int | None
    file_on_esp: bool | None


@dataclass(frozen=True, slots=True)
class EfiRun:
    """One run of the EFI probe; what was not said, or did not come through, is None or empty."""

    begin: Begin
    complete: bool
    next: str | None
    reset_supported: bool | None
    tests: Mapping[str, TestResult]
    system: System | None
    cpu: Cpu | None
    tables: Mapping[UUID, int]
    fdt: FdtTable | None
    acpi: Acpi | None
    smbios: Smbios | None
    memory: MemoryMap | None
    gic: Gic | None
    counter: Counter | None
    timer: Timer | None
    rtc: Rtc | None
    consoles: Consoles | None
    blocks: tuple[BlockHandle, ...]
    networks: tuple[NetworkHandle, ...]
    pci: Pci | None
    boot_variables: Mapping[str, bytes]
    variable_store: VariableStore | None
    variable_test: VariableTest | None
    notes: tuple[str, ...]
    unknown: tuple[Record, ...]

    def went_through(self, test: str) -> bool:
        """Whether a test was done to its end, so that what it did not report is not there."""
        return self.tests.get(test) is TestResult.DONE
