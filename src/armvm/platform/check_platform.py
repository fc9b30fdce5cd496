"""The checks of the virtual hardware: enumeration, console, interrupt controller, timer, AArch32, PSCI."""

from __future__ import annotations

import re

from armvm.execution import ExecutionState
from armvm.firmware.device_path import format_device_path
from armvm.machine.definition import GICV2_MOST_VCPUS, Console, GicVersion
from armvm.platform.bindings import cpu_nodes, stdout_node
from armvm.platform.bindings_devices import GIC_V2, GIC_V3, PSCI, UARTS
from armvm.platform.complete import undescribed
from armvm.platform.fdt import DeviceTree
from armvm.platform.seen import Seen
from armvm.printable import printable
from armvm.probe.efi_facts import Counter, Gic, Timer
from armvm.probe.linux_run import Interrupts, LinuxRun
from armvm.spec.judgement import Judgement, failed, not_applicable, passed, unknown
from armvm.spec.verdict import Evidence, Verdict

_TOLERANCE = 0.05
"""How far counter and clock may drift apart: an emulated machine's do while its host is busy."""
_SLACK_SECONDS = 0.3
"""The samples are taken where the clock's second changes, which a machine on a busy host sees late."""
_VIRTIO_CONSOLES = frozenset({(0x1AF4, 0x1003), (0x1AF4, 0x1043)})
"""The console's PCI ids, transitional and modern (Virtio 1.2 §4.1.2)."""
_VIRTIO_CONSOLE = "3"
_MADE = {Console.PL011: "pl011", Console.VIRTIO: "virtio-console", Console.XEN: "Xen PV"}
_PSCI_VERSION = re.compile(r"PSCIv(\d+)\.(\d+)")


def check_enumerable(seen: Seen) -> Judgement:
    """platform.enumerable: what the VM has was found through the description or a bus, and by a guest."""
    tree = seen.tree
    if tree is None:
        if seen.has_table is False:
            return _enumerable_without_tree(seen)
        return unknown("The device tree did not come through.")
    missing = undescribed(seen, tree)
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        return failed(f"Not everything can be enumerated: {missing[0].message}{more}.", *(m.evidence for m in missing))
    return _found_by_guest(seen) or _found_by_firmware(seen)


def _enumerable_without_tree(seen: Seen) -> Judgement:
    if seen.profile == "vmspec-1.0":
        return not_applicable("description.fdt", "There is no device tree to enumerate by")
    return _found_by_guest(seen) or unknown("No guest was seen that enumerates the VM by its ACPI tables.")


def _found_by_guest(seen: Seen) -> Judgement | None:
    """What Linux found against what there is; None without a Linux that got ready."""
    run = next((run for run in seen.linux if run.ready), None)
    if run is None or run.cpus is None or run.cpus.online is None:
        return None
    lost = []
    machine = seen.machine
    wanted = (
        ("CPUs online", len(run.cpus.online), machine.vcpus if machine else None),
        # A disk without a driver would be found on its bus all the same; the VMs that we make have none such.
        ("disks", len(run.blocks), machine.disks if machine and not run.modules_missing else None),
    )
    for what, count, expected in wanted:
        if expected is not None and count < expected:
            lost.append(Evidence(f"Linux probe, {what}", str(count), f"{expected}, as the VM has"))
    if lost:
        return failed("A guest does not find everything that the VM has.", *lost)
    found = f"{len(run.cpus.online)} CPUs, {len(run.blocks)} disks, {len(run.networks)} network interfaces"
    return passed(
        "A guest finds everything that the VM has by its description and its buses.", Evidence("Linux probe", found)
    )


def _found_by_firmware(seen: Seen) -> Judgement:
    if not (
        seen.says(lambda run: run.memory is not None and run.memory.whole) and (seen.done("pci") or seen.done("block"))
    ):
        return unknown("Too little came through to say what the VM has.")
    return passed("Everything that the firmware knows of is described or stands on a bus.")


def check_console(seen: Seen) -> Judgement:
    """platform.console: which serial console there is, and who speaks on it."""
    spoken = list(_consoles(seen))
    good = (
        ("pl011", "SBSA UART") if seen.profile == "vmspec-2.0" else ("pl011", "SBSA UART", "virtio-console", "Xen PV")
    )
    right = [evidence for kind, evidence in spoken if kind in good]
    kinds = list(dict.fromkeys(kind for kind, _ in spoken if kind in good))
    if right:
        return passed(f"There is a serial console: {' and '.join(kinds)}.", *right)
    expected = (
        "a pl011 or SBSA UART" if seen.profile == "vmspec-2.0" else "a pl011, a virtio-console or a Xen PV console"
    )
    other = [Evidence(evidence.where, evidence.found, expected) for _, evidence in spoken]
    if seen.tree is not None and (seen.done("pci") or any(run.ready for run in seen.linux)):
        return failed(
            "There is no serial console of the kinds that the specification names.",
            *(other or [Evidence("device tree, PCI", "no console", expected)]),
        )
    return unknown("Which kind of serial console there is did not come through.", *other)


def _consoles(seen: Seen) -> list[tuple[str, Evidence]]:
    """Every console that somebody knows of: its kind and who says so."""
    tree = seen.tree
    found = _described_consoles(tree) if tree is not None else []
    if seen.machine is not None and seen.machine.console is not None:
        kind = _MADE[seen.machine.console]
        found.append((kind, Evidence("the VM's definition", kind)))
    domain = tree is not None and bool(tree.compatible_with("xen,xen"))
    xen = domain or any(run.devices.get("xen") for run in seen.linux)
    found += [
        ("virtio-console", Evidence(f"{where}, PCI {function.address}", "virtio-console"))
        for where, pci in seen.each(lambda run: run.pci)
        for function in pci.functions
        if (function.vendor_id, function.device_id) in _VIRTIO_CONSOLES
    ]
    for run in seen.linux:
        found += _linux_consoles(run, xen=xen)
    for where, consoles in seen.each(lambda run: run.consoles):
        if consoles.active:
            path = format_device_path(consoles.active)
            # A Xen domain without an emulated UART has one serial port only, which its firmware speaks on.
            pv = domain and tree is not None and not _described_consoles(tree) and "Uart(" in path
            found.append(("Xen PV" if pv else path, Evidence(f"{where}, ConOut", path)))
    return list(dict.fromkeys(found))


def _described_consoles(tree: DeviceTree) -> list[tuple[str, Evidence]]:
    found: list[tuple[str, Evidence]] = []
    said = stdout_node(tree)
    target = said[1] if said is not None else None
    for node in tree.compatible_with(*UARTS):
        if node.enabled:
            kind = "pl011" if "arm,pl011" in node.compatible else "SBSA UART"
            how = "stdout-path leads here" if target == node else "described"
            found.append((kind, Evidence(f"device tree, {tree.where(node)}", f"{kind}, {how}")))
    if target is not None and not set(target.compatible) & set(UARTS):
        kind = printable(", ".join(target.compatible[:2]) or "an unknown device")
        found.append((kind, Evidence(f"device tree, {tree.where(target)}", f"{kind}, stdout-path leads here")))
    return found


def _linux_consoles(run: LinuxRun, *, xen: bool) -> list[tuple[str, Evidence]]:
    names = [line.split()[0] for line in (run.consoles.consoles if run.consoles else ()) if line.split()]
    drivers = {device.driver for device in run.devices.get("amba", ())}
    found = []
    for name in names:
        if name.startswith("ttyAMA"):
            kind = "pl011" if "uart-pl011" in drivers else "SBSA UART"
        elif name.startswith("hvc"):
            kind = "Xen PV" if xen else "virtio-console"
        else:
            continue
        found.append((kind, Evidence(f"Linux probe, console {printable(name)}", kind)))
    if any(device.details.get("device") == _VIRTIO_CONSOLE for device in run.devices.get("virtio", ())):
        found.append(("virtio-console", Evidence("Linux probe, virtio", "virtio-console")))
    return found


def check_gic(seen: Seen) -> Judgement:
    """platform.gic: a GICv2 or newer, as described, that serves all CPUs."""
    cpus = _cpu_count(seen)
    said = list(seen.each(lambda run: run.gic))
    judgements = [_gic(where, gic, cpus) for where, gic in said]
    wrong = next((judgement for judgement in judgements if judgement.verdict is Verdict.FAIL), None)
    if wrong is not None:
        return wrong
    described = _described_gic(seen)
    if described == 2 and cpus > GICV2_MOST_VCPUS:
        return _too_many(Evidence("device tree", f"GICv2 and {cpus} CPUs", f"at most {GICV2_MOST_VCPUS}"))
    good = next((judgement for judgement in judgements if judgement.verdict is Verdict.PASS), None) or _linux_gic(seen)
    if good is None:
        if not said and seen.tree is not None and described is None:
            return failed(
                "No interrupt controller is described.", Evidence("device tree", "no GIC", "a GICv2 or newer")
            )
        return judgements[0] if judgements else seen.silent("gic", "Which interrupt controller there is")
    if seen.profile == "vmspec-2.0":
        return _both_versions(seen, good)
    return good


def _gic(where: str, gic: Gic, cpus: int) -> Judgement:
    """What one run says: the description against PIDR2 (GIC architecture, GICD_PIDR2.ArchRev)."""
    described = printable(gic.description or "nothing")
    if gic.architecture is None:
        how = "reading its registers ended in an exception" if gic.fault else "its registers were not read"
        evidence = Evidence(where, f"described as {described}; {how}")
        return unknown("The interrupt controller could not be asked for its version.", evidence)
    found = Evidence(where, f"PIDR2 {gic.pidr2 or 0:#x}: GICv{gic.architecture}; described as {described}")
    if gic.architecture < 2:
        return failed("The interrupt controller is older than a GICv2.", Evidence(where, found.found, "GICv2 or newer"))
    old = gic.architecture == 2
    if gic.description is not None and (gic.description == "v2") != old:
        expected = Evidence(found.where, found.found, "one version in both")
        return failed("The interrupt controller is not the one that is described.", expected)
    if old and cpus > GICV2_MOST_VCPUS:
        return _too_many(Evidence(where, f"GICv2 and {cpus} CPUs", f"at most {GICV2_MOST_VCPUS}"))
    return passed(f"The interrupt controller is a GICv{gic.architecture}, as described.", found)


def _too_many(evidence: Evidence) -> Judgement:
    return failed(f"A GICv2 serves at most {GICV2_MOST_VCPUS} CPUs.", evidence)


def _described_gic(seen: Seen) -> int | None:
    """The version by the tree, or by what the host made."""
    if seen.tree is not None:
        for version, kinds in ((3, GIC_V3), (2, GIC_V2)):
            if any(node.enabled for node in seen.tree.compatible_with(*kinds)):
                return version
        return None
    if seen.machine is not None and seen.machine.gic is not None:
        return 2 if seen.machine.gic is GicVersion.V2 else 3
    return None


def _linux_gic(seen: Seen) -> Judgement | None:
    """A guest that takes interrupts from it is evidence where the EFI probe could not look."""
    for run in seen.linux:
        for name, count in run.interrupts.controllers.items() if run.interrupts else ():
            if name.startswith("GIC") and count:
                # Linux calls a GICv2 by its number: GIC-0 (drivers/irqchip/irq-gic.c).
                version = "GICv2" if name.startswith("GIC-") else printable(name)
                evidence = Evidence("Linux probe, /proc/interrupts", f"{printable(name)}, {count} interrupts in use")
                return passed(f"The interrupt controller is a {version}.", evidence)
    return None


def _both_versions(seen: Seen, good: Judgement) -> Judgement:
    """v2.0: hypervisors support GICv2 and GICv3 alike, of which one VM shows one."""
    versions = {
        "GICv2" if gic.architecture == 2 else "GICv3"
        for entry in seen.observation.efi
        if (gic := entry.gic) is not None and gic.architecture is not None
    }
    if len(versions) > 1:
        return passed("The hypervisor offers both GICv2 and GICv3.", *good.evidence)
    return unknown(
        "One version of the GIC was seen; v2.0 asks for GICv2 and GICv3, where the host can offer both.", *good.evidence
    )


def _cpu_count(seen: Seen) -> int:
    counts = [len(cpu_nodes(seen.tree)) if seen.tree is not None else 0]
    counts += [len(run.cpus.online) for run in seen.linux if run.cpus is not None and run.cpus.online is not None]
    if seen.machine is not None and seen.machine.vcpus is not None:
        counts.append(seen.machine.vcpus)
    return max(counts)


def check_timer(seen: Seen) -> Judgement:
    """platform.timer: the counter keeps its frequency, and the timer's interrupts arrive."""
    counters = [_counter(where, counter) for where, counter in seen.each(lambda run: run.counter)]
    timers = [_timer(where, timer) for where, timer in seen.each(lambda run: run.timer)]
    guests = [_guest_timer(run.interrupts) for run in seen.linux if run.interrupts and run.interrupts.timer_later]
    # A busy host spoils one measurement; a wrong frequency spoils them all.
    if counters and all(judgement.verdict is Verdict.FAIL for judgement in counters):
        return counters[0]
    for judgement in guests:
        if judgement.verdict is Verdict.FAIL:
            return judgement
    arrived = [*_passes(timers)[:1], *_passes(guests)[:1]]
    lost = [judgement for judgement in timers if judgement.verdict is Verdict.FAIL]
    if lost and not arrived:
        return lost[0]
    counted = _passes(counters)
    if not counted:
        return counters[0] if counters else seen.silent("counter", "Whether the counter keeps its frequency")
    if not arrived:
        return timers[0] if timers else seen.silent("timer", "Whether interrupts of the virtual timer arrive")
    evidence = [*counted[0].evidence, *(entry for judgement in arrived for entry in judgement.evidence)]
    return passed("The counter keeps its frequency, and interrupts of the virtual timer arrive.", *evidence)


def _passes(judgements: list[Judgement]) -> list[Judgement]:
    return [judgement for judgement in judgements if judgement.verdict is Verdict.PASS]


def _counter(where: str, counter: Counter) -> Judgement:
    if not counter.frequency_hz:
        return failed("The counter has no frequency.", Evidence(f"{where}, CNTFRQ", str(counter.frequency_hz), "in Hz"))
    if counter.monotonic is False:
        return failed(
            "The counter runs backwards.", Evidence(f"{where}, CNTVCT", "smaller than before", "never smaller")
        )
    measured = []
    if len(counter.samples) > 1:
        first, last = counter.samples[0], counter.samples[-1]
        ticks, seconds = last.ticks - first.ticks, last.clock_seconds - first.clock_seconds
        # A clock that stands still while the counter does not (EDK2 on Xen) says nothing about the counter.
        if seconds > 0 or ticks <= 0:
            measured.append(("GetTime", ticks / counter.frequency_hz, seconds))
    if counter.stall_us and counter.stall_ticks is not None:
        measured.append(("Stall", counter.stall_ticks / counter.frequency_hz, counter.stall_us / 1e6))
    if not measured:
        return unknown("How fast the counter runs did not come through.")
    evidence = []
    for name, counted, elapsed in measured:
        tolerance = _TOLERANCE * elapsed + _SLACK_SECONDS
        found = f"the counter counted {counted:.3f} s in {elapsed:.3f} s by {name}"
        wrong = counted <= 0 or abs(counted - elapsed) > tolerance or (name == "Stall" and counted < elapsed * 0.95)
        if wrong:
            what = "The counter stands still." if counted <= 0 else "The counter does not keep its frequency."
            expected = f"{elapsed:.3f} s at {counter.frequency_hz} Hz"
            return failed(what, Evidence(f"{where}, CNTVCT", found, expected))
        evidence.append(Evidence(f"{where}, CNTVCT at {counter.frequency_hz} Hz", found))
    return passed("The counter keeps its frequency.", *evidence)


def _timer(where: str, timer: Timer) -> Judgement:
    fired = timer.event is not None and timer.event.fired
    if timer.pending or fired:
        how = [
            name
            for name, there in (("it became pending at the GIC", timer.pending), ("an event fired", fired))
            if there
        ]
        return passed("Interrupts arrive.", Evidence(f"{where}, virtual timer", " and ".join(how)))
    if timer.condition_met is False:
        evidence = Evidence(f"{where}, CNTV_CTL", "the condition was not met", "ISTATUS when the time is over")
        return failed("The virtual timer does not expire.", evidence)
    if timer.pending is False or (timer.event is not None and timer.event.fired is False):
        evidence = Evidence(f"{where}, virtual timer", "no interrupt became pending", "PPI 27")
        return failed("The virtual timer expires, and its interrupt does not arrive.", evidence)
    return unknown("Whether interrupts of the virtual timer arrive did not come through.")


def _guest_timer(interrupts: Interrupts) -> Judgement:
    """Every CPU has taken timer interrupts, and more of them one second later (an idle CPU may sleep that long)."""
    before, later = interrupts.timer, interrupts.timer_later
    shown = " ".join(map(str, later[:16]))
    if not all(later) or sum(later) <= sum(before):
        evidence = Evidence("Linux probe, arch_timer", f"{shown} interrupts by CPU", "more every second, on every CPU")
        return failed("Interrupts of the timer do not arrive on every CPU.", evidence)
    return passed("Interrupts arrive.", Evidence("Linux probe, arch_timer", f"{shown} interrupts by CPU"))


def check_aarch32_el1(seen: Seen) -> Judgement:
    """platform.aarch32-el1: it was booted in AArch32, or its CPUs cannot be."""
    observation = seen.observation
    narrow = [run for run in observation.efi if run.begin.state is ExecutionState.AARCH32]
    if narrow or any(run.state is ExecutionState.AARCH32 for run in observation.linux):
        return passed("The VM boots in AArch32.", Evidence("probes", "a run in AArch32"))
    register = seen.first(lambda run: run.cpu.registers.get("ID_AA64PFR0_EL1") if run.cpu else None)
    if register is None:
        return seen.silent("cpu", "Whether the CPU can run AArch32 at EL1")
    where = "ID_AA64PFR0_EL1"
    # Arm ARM D19.2.64: EL1, bits 7:4, is 1 for AArch64 only and 2 for either state.
    if register >> 4 & 0xF == 1:
        evidence = (Evidence(where, f"{register:#x}: AArch64 only at EL1"),)
        return Judgement(Verdict.NOT_APPLICABLE, "The CPU cannot run AArch32 at EL1.", evidence)
    if observation.aarch32_failure is not None:
        seen_instead = Evidence("a VM in AArch32", printable(observation.aarch32_failure), "the probe speaks")
        return failed("The CPU can run AArch32 at EL1, and the VM does not boot in it.", seen_instead)
    evidence_either = Evidence(where, f"{register:#x}: EL1 can run AArch32")
    return unknown("The CPU can run AArch32 at EL1; that was not tried.", evidence_either)


def check_psci(seen: Seen) -> Judgement:
    """platform.psci: described, at least 0.2, and used to start the other CPUs."""
    nodes = seen.tree.compatible_with(*PSCI) if seen.tree is not None else ()
    newer = any({"arm,psci-0.2", "arm,psci-1.0"} & set(node.compatible) for node in nodes)
    if seen.tree is not None and not newer:
        found = "PSCI 0.1" if nodes else "no PSCI node"
        return failed("PSCI 0.2 is not described.", Evidence("device tree", found, 'compatible with "arm,psci-0.2"'))
    for run in seen.linux:
        line = run.cpus.psci if run.cpus is not None else None
        version = _PSCI_VERSION.search(line) if line is not None else None
        if version is None or line is None or run.cpus is None:
            continue
        evidence = [Evidence("Linux probe", printable(line))]
        if (int(version[1]), int(version[2])) < (0, 2):
            return failed("PSCI is older than 0.2.", Evidence("Linux probe", printable(line), "0.2 or newer"))
        if run.cpus.online is not None and run.cpus.present is not None and run.cpus.online < run.cpus.present:
            found = f"{len(run.cpus.online)} of {len(run.cpus.present)} CPUs online"
            return failed("PSCI did not start every CPU.", Evidence("Linux probe", found, "all of them"))
        evidence.append(Evidence("Linux probe", f"{len(run.cpus.online or ())} CPUs online"))
        return passed("PSCI 0.2 or newer is there, and every CPU was started.", *evidence)
    if seen.tree is None:
        return unknown("No guest was seen that uses PSCI.")
    return unknown("PSCI is described; no guest was seen that uses it.")
