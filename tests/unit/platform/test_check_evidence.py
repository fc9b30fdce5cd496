"""What did not come through is unknown, with the reason, and never a pass or a failure."""

from __future__ import annotations

import time

import pytest

from armvm.execution import ExecutionState
from armvm.platform.check import check_platform
from armvm.platform.host import HotplugRecord, expected_machine
from armvm.platform.seen import look
from armvm.probe.report import After, PlatformObservation, Sitting, observe
from armvm.probe.wire import decode
from armvm.spec.verdict import Level, Report, Verdict
from tools.broken_platforms import BROKEN
from tools.device_trees import Node
from tools.machines import machine_of
from tools.probe_logs import FDT_TABLE, Story, finding, good, good_v2, judge, lines, linux_story

VARIABLES = "firmware.variables-persist"
INSTANCES = "firmware.variables-per-instance"


def verdicts(report: Report) -> dict[str, Verdict]:
    return {entry.requirement: entry.verdict for entry in report.findings}


def without_linux(story: Story) -> Story:
    story.linux, story.hotplug = [], None
    return story


def test_nothing_at_all_is_unknown() -> None:
    report = check_platform(PlatformObservation("nothing", (), ()))
    assert set(verdicts(report).values()) == {Verdict.UNKNOWN}
    assert report.conforms is None
    assert all(entry.message for entry in report.findings)


@pytest.mark.parametrize("state", ["crashed", "skipped", "fault"])
@pytest.mark.parametrize("test", ["gic", "counter", "timer", "system", "memory", "fdt"])
def test_a_test_that_did_not_end_is_unknown_and_named(test: str, state: str) -> None:
    story = without_linux(good())
    kinds = {"memory": ("memory", "memory-range"), "fdt": ("fdt",)}.get(test, (test,))
    for run in story.runs:
        run.ends[test] = state
        run.drop(*kinds)
        if test == "fdt":
            run.facts = [record for record in run.facts if record.get("guid") != FDT_TABLE]
            run.ends["tables"] = state
    report = judge(story)
    assert not report.failed(Level)
    requirement = {
        "gic": "platform.gic",
        "counter": "platform.timer",
        "timer": "platform.timer",
        "system": "firmware.uefi-version",
        "memory": "description.fdt-complete",
        "fdt": "description.fdt",
    }[test]
    entry = finding(report, requirement)
    assert entry.verdict is Verdict.UNKNOWN
    if test != "memory":
        assert repr(test) in entry.message


def test_a_log_cut_anywhere_fails_nothing() -> None:
    story = good()
    text = "".join(text for instance, text, _ in story.logs() if instance != "second")
    before = time.process_time()
    for end in range(0, len(text), len(text) // 60):
        observation = observe([Sitting(decode(text[:end].encode()))])
        report = check_platform(observation, machine=story.machine, hotplug=story.hotplug)
        assert not report.failed(Level), end
    assert time.process_time() - before < 30


def test_a_log_with_damage_anywhere_fails_nothing() -> None:
    story = good()
    text = "".join(text for instance, text, _ in story.logs() if instance != "second")
    rows = text.split("\r\n")
    for start in range(0, len(rows), len(rows) // 40):
        damaged = "\r\n".join(rows[:start] + rows[start + 7 :])
        observation = observe([Sitting(decode(damaged.encode()))])
        report = check_platform(observation, machine=story.machine, hotplug=story.hotplug)
        assert not report.failed([Level.MUST]), start


def test_the_same_run_on_the_console_and_in_a_file_counts_once() -> None:
    run = good().runs[0]
    text = lines(run.records(), "E")
    observation = observe([Sitting(decode((text + lines(run.records(), "E", newline="\n")).encode()))])
    assert len(observation.efi) == 1


def test_how_a_run_came_about_by_its_own_words() -> None:
    story = good()
    story.runs[1].next = "shutdown"
    text = "".join(lines(run.records(), "E") for run in story.runs[:3])
    observation = observe([Sitting(decode(text.encode()))])
    assert [entry.after for entry in observation.efi_runs] == [None, After.RESET, After.POWER_CYCLE]


def test_variables_not_tried_are_said() -> None:
    story = good()
    story.runs = story.runs[:2]
    entry = finding(judge(story), VARIABLES)
    assert entry.verdict is Verdict.PASS
    assert entry.message == "A non-volatile variable survived a reset."
    assert ("not tried", "a power cycle, a kill of the VM's process") in [(e.where, e.found) for e in entry.evidence]
    assert finding(judge(story), INSTANCES).verdict is Verdict.UNKNOWN


def test_one_run_says_nothing_of_persistence() -> None:
    story = good()
    story.runs = story.runs[:1]
    assert finding(judge(story), VARIABLES).verdict is Verdict.UNKNOWN


def test_a_variable_of_an_earlier_probing_is_no_foreign_one() -> None:
    story = good()
    story.runs[0].of("variable-test")[0].update(found={"run": 9, "nonce_hex": "00"}, read_status="0x0")
    assert not judge(story).failed(Level)


def test_mainline_boots_needs_the_device_tree_alone() -> None:
    story = good()
    story.linux_says("boot", acpi=["FACP"])
    assert finding(judge(story), "description.mainline-boots").verdict is Verdict.UNKNOWN
    story = good()
    story.linux = [[record for record in linux_story() if record["t"] not in ("ready", "complete", "hotplug")]]
    assert finding(judge(story), "description.mainline-boots").verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("requirement", ["platform.hotplug-block", "platform.hotplug-network"])
def test_what_no_guest_can_show_is_unknown(requirement: str) -> None:
    story = good()
    for records in story.linux:
        records[:] = [record for record in records if record["t"] != "hotplug"]
    assert story.hotplug is not None
    story.hotplug = HotplugRecord(story.hotplug.attempts, guest_lacks="its kernel has no PCI hotplug")
    entry = finding(judge(story), requirement)
    assert entry.verdict is Verdict.UNKNOWN
    assert "its kernel has no PCI hotplug" in entry.message


@pytest.mark.parametrize("requirement", ["platform.hotplug-block", "platform.hotplug-network"])
def test_only_the_hypervisors_word_is_no_hotplug(requirement: str) -> None:
    story = good()
    story.linux = []
    assert finding(judge(story), requirement).verdict is Verdict.UNKNOWN
    story.linux = [[record for record in linux_story() if record["t"] not in ("hotplug", "complete")]]
    assert finding(judge(story), requirement).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("requirement", ["platform.hotplug-block", "platform.hotplug-network"])
def test_hotplug_by_somebody_else(requirement: str) -> None:
    story = good()
    story.hotplug = None
    assert finding(judge(story), requirement).verdict is Verdict.PASS
    subsystem = "block" if requirement.endswith("block") else "net"
    story.linux = [[r for r in linux_story() if r.get("subsystem") != subsystem or r["action"] == "add"]]
    assert finding(judge(story), requirement).verdict is Verdict.UNKNOWN


def test_aarch32_at_el1() -> None:
    story = good()
    story.every("cpu", registers={"ID_AA64PFR0_EL1": "0x1000022", "MPIDR_EL1": "0x80000000"})
    assert finding(judge(story), "platform.aarch32-el1").verdict is Verdict.UNKNOWN
    narrow = good().runs[0]
    narrow.instance = "narrow"
    narrow.begin["state"] = "aarch32"
    narrow.facts = [record for record in narrow.facts if record["t"] != "variable-test"]
    story.runs.append(narrow)
    report = judge(story)
    assert finding(report, "platform.aarch32-el1").verdict is Verdict.PASS
    assert not report.failed(Level)


def test_one_measurement_on_a_busy_host_is_no_wrong_frequency() -> None:
    story = good()
    story.runs[0].of("counter")[0].update(samples=[["0x9459e30", 1795493708, 0], ["0x9459e30", 1795493709, 0]])
    assert finding(judge(story), "platform.timer").verdict is Verdict.PASS


def test_both_versions_of_the_gic() -> None:
    story = good_v2()
    assert finding(judge(story), "platform.gic").verdict is Verdict.UNKNOWN
    story.runs[-1].of("gic")[0].update(description="v2", pidr2="0x2b", arch=2)
    assert finding(judge(story), "platform.gic").verdict is Verdict.PASS


def test_a_gic_that_only_a_guest_could_see() -> None:
    story = good()
    story.every("gic", arch=None, pidr2=None, fault=True)
    entry = finding(judge(story), "platform.gic")
    assert entry.verdict is Verdict.PASS
    assert "GICv3" in entry.message
    assert finding(judge(without_linux(story)), "platform.gic").verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("lines_", "xen", "kind"),
    [
        (["hvc0 -W- (EC p) 229:0"], [], "virtio-console"),
        (["hvc0 -W- (EC p) 229:0"], [{"name": "vbd-51712", "type": "vbd", "driver": "vbd"}], "Xen PV"),
    ],
)
def test_consoles_of_other_kinds(lines_: list[str], xen: list[dict[str, str]], kind: str) -> None:
    story = good()
    story.machine = None
    tree = story.tree
    assert isinstance(tree, Node)
    tree.remove("pl011@9000000")
    del tree.at("chosen").properties["stdout-path"]
    story.linux_says("consoles", lines=lines_)
    story.linux_says("devices", xen=xen, amba=[])
    report = judge(story)
    entry = finding(report, "platform.console")
    assert entry.verdict is Verdict.PASS
    assert kind in entry.message
    assert not report.failed(Level)
    story.profile = "vmspec-2.0"
    assert finding(judge(story), "platform.console").verdict is Verdict.FAIL


def xen_domain() -> Story:
    """What a domain looks like from its firmware: no UART, a node that says Xen, EDK2's SerialDxe on the PV console."""
    story = without_linux(good())
    story.machine = None
    tree = story.tree
    assert isinstance(tree, Node)
    tree.remove("pl011@9000000")
    del tree.at("chosen").properties["stdout-path"]
    tree.children["hypervisor"] = Node({"compatible": ("xen,xen-4.17", "xen,xen")})
    vendor = "010414004b7d98d31a975f438caf4967eb627241"
    story.every("console", active_out_hex=f"{vendor}030e13000000000000c2010000000000080101" + "7fff0400")
    return story


def test_the_console_of_a_xen_domain_by_its_firmware() -> None:
    entry = finding(judge(xen_domain()), "platform.console")
    assert entry.verdict is Verdict.PASS
    assert "Xen PV" in entry.message
    story = xen_domain()
    assert isinstance(story.tree, Node)
    story.tree.remove("hypervisor")
    assert finding(judge(story), "platform.console").verdict is not Verdict.PASS


def test_a_clock_that_stands_still_is_not_the_counters_fault() -> None:
    story = without_linux(good())
    clock = 1421770011  # what EDK2 says in a Xen domain, always
    story.every("counter", samples=[["0x9459e30", clock, 0], ["0x129459e30", clock, 0]])
    assert finding(judge(story), "platform.timer").verdict is Verdict.PASS
    story.every("counter", samples=[["0x9459e30", clock, 0], ["0x9459e30", clock + 2, 0]])
    assert finding(judge(story), "platform.timer").verdict is Verdict.FAIL


def test_without_a_machine_the_definition_is_not_compared() -> None:
    story = good()
    story.machine = None
    report = judge(story)
    entry = finding(report, "description.fdt-complete")
    assert entry.verdict is Verdict.PASS
    assert ("not compared with", "the VM's definition") in [(e.where, e.found) for e in entry.evidence]
    assert finding(report, "firmware.first-software").verdict is Verdict.UNKNOWN


def test_the_machine_that_the_host_made() -> None:
    machine = machine_of()
    expected = expected_machine(machine)
    assert expected.state is machine.state
    assert expected.vcpus == machine.vcpus
    assert expected.memory_bytes == machine.memory_bytes
    assert expected.firmware == machine.firmware.name


def test_messages_are_sentences_and_printable() -> None:
    stories = [good()]
    for _, mutate in BROKEN.values():
        stories.append(good())
        mutate(stories[-1])
    for story in stories:
        for entry in judge(story).findings:
            assert entry.message.endswith((".", ")"))
            assert entry.message.isprintable()
            assert all(e.where.isprintable() and e.found.isprintable() for e in entry.evidence)


def test_hostile_texts_are_made_printable() -> None:
    evil = "\x1b[2J\u202e\ud800"
    story = good()
    story.every("system", vendor=evil)
    story.every("gic", description=evil)
    story.linux_says("begin", kernel=evil)
    story.linux_says("consoles", lines=[f"hvc0{evil} x"])
    story.linux_says("cpus", psci=f"PSCIv1.1 {evil}")
    for profile in ("vmspec-1.0", "vmspec-2.0"):
        story.profile = profile
        for entry in judge(story).findings:
            assert entry.message.isprintable()
            assert all(e.where.isprintable() and e.found.isprintable() for e in entry.evidence)


def test_seen_judges_the_machines_state() -> None:
    story = good()
    narrow = good().runs[0]
    narrow.begin["state"] = "aarch32"
    story.runs.insert(0, narrow)
    seen = look(story.observation(), "vmspec-1.0", story.machine, None)
    assert {entry.run.begin.state for entry in seen.efi} == {ExecutionState.AARCH64}
