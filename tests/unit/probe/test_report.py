"""Records become values; what is of the wrong kind is missing, with a note, and nothing raises."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from armvm.execution import ExecutionState
from armvm.probe.efi_facts import EfiRun, TestResult
from armvm.probe.efi_run import read_efi_run
from armvm.probe.linux_run import Action, LinuxRun, read_linux_run
from armvm.probe.report import After, Sitting, observe
from armvm.probe.wire import Record, Run, Speaker, decode
from tools import device_trees
from tools.probe_logs import efi_story, good, lines, linux_story, parts

WRONG: list[Any] = [
    None,
    True,
    -1,
    1 << 70,
    1.5,
    1e999,
    "",
    "0xzz",
    "text",
    [],
    [[]],
    [None],
    [[1, 2]],
    {},
    {"a": {}},
    [{}],
]


def run_of(records: list[dict[str, Any]], speaker: Speaker) -> Run:
    said = tuple(Record(str(r["t"]), {k: v for k, v in r.items() if k != "t"}) for r in records)
    return Run(speaker, said, begun=True, complete=True)


def efi(records: list[dict[str, Any]]) -> EfiRun:
    return read_efi_run(run_of(records, Speaker.EFI))


def linux(records: list[dict[str, Any]]) -> LinuxRun:
    return read_linux_run(run_of(records, Speaker.LINUX))


def test_a_run_of_the_efi_probe() -> None:
    story = efi_story("vm", 2, After.RESET, found="aa")
    data = device_trees.flatten(device_trees.virt())
    story.facts += parts(data, size=100)
    run = efi(story.records())
    assert run.notes == ()
    assert run.unknown == ()
    assert run.begin.number == 2
    assert run.begin.state is ExecutionState.AARCH64
    assert run.complete
    assert set(run.tests.values()) == {TestResult.DONE}
    assert run.fdt is not None
    assert run.fdt.data == data
    assert run.memory is not None
    assert run.memory.whole
    assert run.memory.ranges[0].size_bytes == 245760 * 4096
    assert run.pci is not None
    assert run.pci.functions[1].address == "0000:00:01.0"
    assert run.pci.functions[1].bars == (0x81, 0x10008000, 0, 0, 0x400C, 0x80)
    assert run.rtc is not None
    assert run.rtc.time is not None
    assert str(run.rtc.time) == "2026-03-01T23:59:59"
    assert run.variable_test is not None
    assert run.variable_test.found is not None
    assert run.variable_test.found.nonce == "aa"
    assert run.timer is not None
    assert run.timer.event is not None
    assert run.timer.event.fired


def test_a_run_of_the_linux_probe() -> None:
    run = linux(linux_story())
    assert run.notes == ()
    assert run.unknown == ()
    assert run.ready
    assert run.cpus is not None
    assert run.cpus.online == frozenset({0, 1})
    assert run.memory is not None
    assert run.memory.ranges == ((0x40000000, 0x80000000),)
    assert [(event.action, event.name) for event in run.hotplug] == [
        (Action.ADD, "vdb"),
        (Action.REMOVE, "vdb"),
        (Action.ADD, "eth1"),
        (Action.REMOVE, "eth1"),
    ]
    assert {device.driver for device in run.devices["amba"]} == {"uart-pl011"}


def test_a_second_report_does_not_count_twice() -> None:
    again = {"t": "block", "name": "vda", "read": False}
    run = linux([*linux_story(), again])
    assert [(block.name, block.read) for block in run.blocks] == [("vda", True)]


@pytest.mark.parametrize("text", ["x", "0-", "1,,2", "0-99999", "5-3-1", "4096"])
def test_cpu_lists_that_are_none(text: str) -> None:
    run = linux([{"t": "cpus", "online": text}])
    assert run.cpus is not None
    assert run.cpus.online is None
    assert "online" in run.notes[0]


def test_cpu_lists() -> None:
    run = linux([{"t": "cpus", "online": "0-2,5\n", "present": ""}])
    assert run.cpus is not None
    assert run.cpus.online == frozenset({0, 1, 2, 5})
    assert run.cpus.present == frozenset()


def test_what_is_unknown_is_kept() -> None:
    run = efi([{"t": "begin", "run": 1, "colour": "blue"}, {"t": "weather", "rain": True}])
    assert run.unknown == (Record("weather", {"rain": True}),)
    run = efi([{"t": "overflow", "of": "console"}])
    assert run.notes == ("a record of type console was too long for the probe",)
    assert linux([{"t": "error", "what": "no /dev\x1b"}]).notes == ("the probe says: no /dev\\x1b",)


def test_a_test_without_an_end_is_unfinished() -> None:
    run = efi(
        [
            {"t": "test-begin", "id": "gic"},
            {"t": "test-begin", "id": "rtc"},
            {"t": "test-end", "id": "rtc", "result": "?"},
        ]
    )
    assert run.tests == {"gic": TestResult.UNFINISHED, "rtc": TestResult.UNFINISHED}


def test_a_device_tree_with_a_part_missing_is_none() -> None:
    records = parts(bytes(1000), size=100)
    run = efi([{"t": "fdt", "present": True}, *records[:3], *records[4:]])
    assert run.fdt is not None
    assert run.fdt.present
    assert run.fdt.data is None
    assert run.notes == ("the device tree: 1 of 10 parts are missing, the first is part 3",)


@pytest.mark.parametrize(("part", "parts_"), [(0, 0), (-1, 1), (5, 2), (0, 1 << 40), ("a", 1), (None, None)])
def test_parts_that_are_none(part: Any, parts_: Any) -> None:
    run = efi([{"t": "fdt-data", "part": part, "parts": parts_, "data_b64": "AAAA"}])
    assert run.fdt is None
    assert run.notes


@pytest.mark.parametrize("data", ["*", "AAA", 5, "\ud800", "é"])
def test_base64_that_is_none(data: Any) -> None:
    assert efi([{"t": "fdt-data", "part": 0, "parts": 1, "data_b64": data}]).fdt is None


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_any_field_may_be_anything(wrong: Any) -> None:
    """Each field of each record in turn, and every element of a list."""
    for read, story in ((efi, efi_story("vm", 1, None, found="aa").records()), (linux, linux_story())):
        for index, record in enumerate(story):
            for name, value in record.items():
                if name == "t":
                    continue
                changed: list[dict[str, Any]] = [*story]
                changed[index] = record | {name: wrong}
                check(read(changed))
                if isinstance(value, list) and value:
                    changed[index] = record | {name: [wrong, *value[1:]]}
                    check(read(changed))
                if isinstance(value, dict):
                    changed[index] = record | {name: dict.fromkeys(value, wrong)}
                    check(read(changed))


def check(run: EfiRun | LinuxRun) -> None:
    assert all(note.isprintable() for note in run.notes)
    assert len(run.notes) <= 50


def test_an_observation_has_everything_in_order() -> None:
    story = good()
    observation = story.observation()
    assert [(entry.instance, entry.run.begin.number) for entry in observation.efi_runs] == [
        *(("first", number) for number in (1, 2, 3, 4)),
        *(("second", number) for number in (1, 2)),
    ]
    assert observation.state is ExecutionState.AARCH64
    assert observation.fdt == story.fdt()
    assert len(observation.linux) == 1


def test_an_observation_of_linux_alone() -> None:
    story = linux_story()
    story[3:3] = parts(b"\xd0\x0d\xfe\xed")
    observation = observe([Sitting(decode(lines(story, "L").encode()))])
    assert observation.efi == ()
    assert observation.fdt == b"\xd0\x0d\xfe\xed"
    assert observation.state is ExecutionState.AARCH64


def test_a_story_is_not_changed_by_being_told() -> None:
    story = good()
    before = copy.deepcopy(story.runs)
    story.observation()
    assert story.runs == before
