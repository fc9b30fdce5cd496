"""Reading a run of the EFI probe: records to values, with a note for everything that cannot be understood."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from uuid import UUID

from armvm.execution import ExecutionState
from armvm.printable import printable
from armvm.probe.efi_facts import (
    Acpi,
    AcpiTable,
    Begin,
    BlockHandle,
    ClockTime,
    Consoles,
    Counter,
    CounterSample,
    Cpu,
    EfiRun,
    FdtTable,
    Gic,
    Mark,
    MemoryMap,
    MemoryRange,
    NetworkHandle,
    Pci,
    PciFunction,
    Rtc,
    Smbios,
    System,
    TestResult,
    Timer,
    TimerEvent,
    VariableStore,
    VariableTest,
)
from armvm.probe.fields import Fields, Notes, Said, as_data, as_number, join_parts
from armvm.probe.wire import Record, Run

_T = TypeVar("_T")
_SLOT = re.compile(r"([0-9a-f]{1,8}):([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])")
_MOST_DEVICES = 1024
_MOST_RANGES = 4096
_KNOWN = frozenset(
    {
        *("begin", "test-begin", "test-end", "complete", "runtime", "system", "cpu", "table", "fdt", "fdt-data"),
        *("acpi", "smbios", "memory", "memory-range", "gic", "counter", "timer", "rtc", "console", "block", "network"),
        *("overflow", "pci", "pci-function", "variable-boot", "variable-store", "variable-test"),
    }
)


def read_efi_run(run: Run) -> EfiRun:
    """The values that ``run`` carries. What cannot be understood is missing, with a note."""
    said = Said(run)
    notes, last = said.notes, said.last
    for fields in said.all("overflow"):
        notes.add(f"a record of type {printable(fields.text('of') or '?')} was too long for the probe")
    nothing = Fields({}, "", notes)
    complete, runtime = last("complete") or nothing, last("runtime") or nothing
    return EfiRun(
        begin=_begin(last("begin") or nothing),
        complete=run.complete,
        next=complete.text("next") or runtime.text("next"),
        reset_supported=runtime.flag("reset_supported"),
        tests=_tests(run.records, notes),
        system=_made(_system, last("system")),
        cpu=_made(_cpu, last("cpu")),
        tables=_tables(said.all("table")),
        fdt=_fdt(last("fdt"), said.all("fdt-data"), notes),
        acpi=_made(_acpi, last("acpi")),
        smbios=_made(_smbios, last("smbios")),
        memory=_memory(last("memory"), said.all("memory-range")),
        gic=_made(_gic, last("gic")),
        counter=_made(_counter, last("counter")),
        timer=_made(_timer, last("timer")),
        rtc=_made(_rtc, last("rtc")),
        consoles=_made(_consoles, last("console")),
        blocks=tuple(block for block in map(_block, said.all("block")[:_MOST_DEVICES]) if block),
        networks=tuple(network for network in map(_network, said.all("network")[:_MOST_DEVICES]) if network),
        pci=_pci(last("pci"), said.all("pci-function")),
        boot_variables=_boot_variables(said.all("variable-boot")),
        variable_store=_made(_variable_store, last("variable-store")),
        variable_test=_made(_variable_test, last("variable-test")),
        notes=notes.all(),
        unknown=tuple(record for record in run.records if record.type not in _KNOWN),
    )


def _made(make: Callable[[Fields], _T], fields: Fields | None) -> _T | None:
    return None if fields is None else make(fields)


def _begin(fields: Fields) -> Begin:
    state = fields.text("state")
    media = fields.object("media")
    return Begin(
        version=fields.text("version"),
        number=fields.number("run"),
        state=next((known for known in ExecutionState if known.value == state), None),
        reason=fields.text("reason"),
        file_on_esp=media.flag("file") if media else None,
    )


def _tests(records: Iterable[Record], notes: Notes) -> dict[str, TestResult]:
    results: dict[str, TestResult] = {}
    known = {result.value: result for result in TestResult}
    for record in records:
        fields = Fields(record.fields, record.type, notes)
        name = fields.text("id") if record.type in ("test-begin", "test-end") else None
        if name is None:
            continue
        if record.type == "test-begin":
            results[name] = TestResult.UNFINISHED
        else:
            results[name] = known.get(fields.text("result") or "", TestResult.UNFINISHED)
    return results


def _system(fields: Fields) -> System:
    return System(
        revision=fields.number("uefi_revision"),
        vendor=fields.text("vendor"),
        firmware_revision=fields.number("firmware_revision"),
        crc_ok=fields.flag("crc_ok"),
    )


def _cpu(fields: Fields) -> Cpu:
    return Cpu(fields.number("el"), fields.number("mode"), fields.table("registers"), fields.texts("faults"))


def _tables(said: Iterable[Fields]) -> dict[UUID, int]:
    tables: dict[UUID, int] = {}
    for fields in said:
        guid, address = fields.guid("guid"), fields.number("address")
        if guid is not None:
            tables[guid] = address or 0
    return tables


def _fdt(fields: Fields | None, parts: Iterable[Fields], notes: Notes) -> FdtTable | None:
    data = join_parts(parts, "data_b64", notes, "the device tree")
    if fields is None:
        return None if data is None else FdtTable(True, None, None, None, data)
    return FdtTable(
        present=fields.flag("present"),
        address=fields.number("address"),
        size_bytes=fields.number("size"),
        header_ok=fields.flag("header_ok"),
        data=data,
    )


def _acpi(fields: Fields) -> Acpi:
    tables = tuple(
        AcpiTable(
            entry.text("signature") or "", entry.number("revision"), entry.number("length"), entry.flag("checksum_ok")
        )
        for entry in fields.objects("tables")
    )
    return Acpi(fields.flag("present"), fields.number("revision"), tables)


def _smbios(fields: Fields) -> Smbios:
    return Smbios(fields.flag("present"), fields.text("version"), fields.strings("strings"))


def _memory(fields: Fields | None, said: Iterable[Fields]) -> MemoryMap | None:
    ranges = tuple(
        found for part in said for found in part.items("ranges", _memory_range, "type, start, pages, attributes")
    )
    if fields is None and not ranges:
        return None
    return MemoryMap(ranges[:_MOST_RANGES], whole=fields is not None and fields.number("count") == len(ranges))


def _memory_range(value: Any) -> MemoryRange | None:
    numbers = [as_number(entry) for entry in value] if isinstance(value, list) and len(value) == 4 else []
    kind, start, pages, attributes = numbers or (None,) * 4
    if kind is None or start is None or pages is None or attributes is None or min(start, pages) < 0:
        return None
    return MemoryRange(kind, start, pages, attributes)


def _gic(fields: Fields) -> Gic:
    return Gic(
        description=fields.text("description"),
        distributor=fields.number("distributor"),
        architecture=fields.number("arch"),
        pidr2=fields.number("pidr2"),
        typer=fields.number("typer"),
        fault=fields.flag("fault"),
    )


def _counter(fields: Fields) -> Counter:
    return Counter(
        frequency_hz=fields.number("frequency"),
        samples=fields.items("samples", _sample, "counter, seconds, nanoseconds"),
        monotonic=fields.flag("monotonic"),
        stall_us=fields.number("stall_us"),
        stall_ticks=fields.number("stall_ticks"),
    )


def _sample(value: Any) -> CounterSample | None:
    numbers = [as_number(entry) for entry in value] if isinstance(value, list) and len(value) == 3 else []
    ticks, seconds, nanoseconds = numbers or (None,) * 3
    if ticks is None or seconds is None or nanoseconds is None:
        return None
    return CounterSample(ticks, seconds + nanoseconds / 1e9)


def _timer(fields: Fields) -> Timer:
    event = fields.object("event")
    return Timer(
        condition_met=fields.flag("istatus"),
        pending=fields.flag("pending"),
        ticks_late=fields.number("ticks_late"),
        method=fields.text("method"),
        highest_pending=fields.number("hppir"),
        event=TimerEvent(event.real("armed_ms"), event.flag("fired"), event.real("elapsed_ms")) if event else None,
    )


def _rtc(fields: Fields) -> Rtc:
    return Rtc(
        get_status=fields.number("get_status"),
        time=_time(fields, "time"),
        later=_time(fields, "later"),
        elapsed_ms=fields.real("elapsed_ms"),
        set_status=fields.number("set_status"),
        set_read=_time(fields, "set_read"),
        restore_status=fields.number("restore_status"),
    )


def _time(fields: Fields, name: str) -> ClockTime | None:
    numbers = fields.numbers(name)
    return ClockTime(*numbers[:7]) if len(numbers) >= 7 else None


def _consoles(fields: Fields) -> Consoles:
    return Consoles(
        outputs=fields.items("out", as_data, "device paths"),
        serial_ports=tuple(path for path in (port.data("path_hex") for port in fields.objects("serial")) if path),
        active=fields.data("active_out_hex"),
    )


def _block(fields: Fields) -> BlockHandle | None:
    path = fields.data("path_hex")
    if path is None:
        return None
    return BlockHandle(
        path=path,
        present=fields.flag("present"),
        partition=fields.flag("partition"),
        block_size=fields.number("block_size"),
        last_block=fields.number("last_block"),
        own=fields.flag("own"),
    )


def _network(fields: Fields) -> NetworkHandle | None:
    path = fields.data("path_hex")
    return None if path is None else NetworkHandle(path, fields.data("mac_hex"))


def _pci(fields: Fields | None, said: Iterable[Fields]) -> Pci | None:
    functions = tuple(found for part in said for found in part.items("functions", _pci_function, "PCI functions"))
    if fields is None and not functions:
        return None
    return Pci(fields.number("root_bridges") if fields else None, functions[:_MOST_DEVICES])


def _pci_function(value: Any) -> PciFunction | None:
    if not isinstance(value, list) or len(value) < 5:
        return None
    place = _slot(value[0])
    numbers = [as_number(entry) for entry in value[1:5]]
    bars = [as_number(entry) for entry in value[5]] if len(value) > 5 and isinstance(value[5], list) else []
    vendor, device, class_code, header = numbers
    if place is None or vendor is None or device is None or class_code is None or header is None:
        return None
    return PciFunction(*place, vendor, device, class_code, header, tuple(bar for bar in bars if bar is not None))


def _slot(value: Any) -> tuple[int, int, int, int] | None:
    match = _SLOT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    segment, bus, device, function = (int(part, 16) for part in match.groups())
    return segment, bus, device, function


def _boot_variables(said: Iterable[Fields]) -> dict[str, bytes]:
    pairs = ((fields.text("name"), fields.data("data_hex")) for fields in said)
    return {name: data for name, data in pairs if name is not None and data is not None}


def _variable_store(fields: Fields) -> VariableStore:
    return VariableStore(fields.number("status"), fields.number("remaining"), fields.flag("file_store"))


def _variable_test(fields: Fields) -> VariableTest:
    return VariableTest(
        read_status=fields.number("read_status"),
        found=_mark(fields.object("found")),
        write_status=fields.number("write_status"),
        written=_mark(fields.object("written")),
        read_back_ok=fields.flag("read_back_ok"),
    )


def _mark(fields: Fields | None) -> Mark | None:
    nonce = fields.text("nonce_hex") if fields else None
    return Mark(fields.number("run"), nonce) if fields and nonce else None
