"""The checks of the hardware description: the configuration tables, the device tree, ACPI, and a kernel that boots."""

from __future__ import annotations

from armvm.platform.bindings import check_bindings, cpu_nodes, described_memory
from armvm.platform.complete import undescribed
from armvm.platform.fdt import DeviceTree
from armvm.platform.seen import ACPI_TABLES, Seen
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, not_applicable, passed, unknown
from armvm.spec.verdict import Evidence, Verdict
from armvm.units import format_size

_ACPI_NEEDED = {
    "FACP": "the fixed hardware, and PSCI",
    "DSDT": "the devices",
    "APIC": "CPUs and interrupt controller",
    "GTDT": "the timer",
    "SPCR": "the console",
}
"""What a kernel needs to boot from ACPI alone (Linux, Documentation/arch/arm64/arm-acpi.rst; ARM BBR 1.0 §8.4)."""


def check_uefi_table(seen: Seen) -> Judgement:
    """description.uefi-table: there is one for a device tree or for ACPI."""
    acpi = _has_acpi(seen)
    found = [name for name, there in (("a device tree", seen.has_table), ("ACPI tables", acpi)) if there]
    if found:
        return passed(f"The configuration table points to {' and '.join(found)}.")
    if seen.has_table is None or not (seen.done("tables") or acpi is False):
        return seen.silent("tables", "Whether the configuration table points to a hardware description")
    guids = [str(guid) for entry in seen.efi for guid in entry.run.tables]
    evidence = Evidence("UEFI configuration tables", ", ".join(guids[:16]) or "none", "a device tree or ACPI")
    return failed("No configuration table points to a hardware description.", evidence)


def check_fdt(seen: Seen) -> Judgement:
    """description.fdt: the configuration table of a device tree, and a tree behind it."""
    if seen.has_table is None:
        return seen.silent("fdt", "Whether there is a device tree")
    if not seen.has_table:
        if not _has_acpi(seen):
            return not_applicable("description.uefi-table", "The firmware publishes no hardware description")
        evidence = Evidence("UEFI configuration tables", "ACPI only", "a device tree")
        return failed("The firmware publishes ACPI tables and no device tree.", evidence)
    if seen.tree is not None:
        size = seen.first(lambda run: run.fdt.size_bytes if run.fdt else None)
        found = f"{len(seen.tree.nodes)} nodes" + (f" in {format_size(size)}" if size else "")
        return passed("The firmware publishes a device tree.", Evidence("device tree", found))
    if seen.tree_error is not None:
        return failed(
            "What the configuration table points to is no device tree.",
            Evidence("device tree", printable(seen.tree_error), "a flattened device tree"),
        )
    if seen.says(lambda run: run.fdt is not None and run.fdt.header_ok is False):
        evidence = Evidence("device tree", "a wrong header", "a flattened device tree")
        return failed("What the configuration table points to is no device tree.", evidence)
    return unknown("There is a device tree, which did not come through whole.")


def check_fdt_complete(seen: Seen) -> Judgement:
    """description.fdt-complete: it keeps to the bindings, and nothing that the VM has is missing."""
    tree = seen.tree
    if tree is None:
        return _no_tree(seen)
    problems = check_bindings(tree)
    faults = [problem for problem in problems if problem.serious]
    missing = undescribed(seen, tree)
    notes = [problem.evidence for problem in problems if not problem.serious]
    notes += [Evidence("device tree, dt-validate", warning) for warning in seen.schema_warnings]
    evidence = [*(fault.evidence for fault in faults), *(entry.evidence for entry in missing), *notes]
    messages = [*(fault.message for fault in faults), *(entry.message for entry in missing)]
    if messages:
        more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
        return failed(f"The device tree is not complete: {messages[0]}{more}.", *evidence)
    evidence = [*_described(tree), *notes]
    uncompared = _uncompared(seen)
    if uncompared:
        return unknown(
            f"The device tree keeps to the bindings, and could not be compared with {' and '.join(uncompared)}.",
            *evidence,
        )
    if seen.linux and seen.machine:
        return passed("The device tree describes everything that UEFI, PCI, Linux and the host know of.", *evidence)
    return passed("The device tree describes everything that was found in the VM.", *evidence, _not_asked(seen))


def _no_tree(seen: Seen) -> Judgement:
    judgement = check_fdt(seen)
    if judgement.verdict in (Verdict.FAIL, Verdict.NOT_APPLICABLE):
        return not_applicable("description.fdt", "There is no device tree")
    return unknown("The device tree did not come through.")


def _uncompared(seen: Seen) -> list[str]:
    """The sources without which nothing says what the VM has."""
    found = []
    if not any(memory.whole for _, memory in seen.each(lambda run: run.memory)):
        found.append("UEFI's memory map")
    if not seen.done("pci") and not seen.done("block"):
        found.append("UEFI's devices")
    return found


def _described(tree: DeviceTree) -> list[Evidence]:
    memory = described_memory(tree).size_bytes
    return [
        Evidence(
            "device tree", f"{len(cpu_nodes(tree))} CPUs, {format_size(memory)} of memory, {len(tree.nodes)} nodes"
        )
    ]


def _not_asked(seen: Seen) -> Evidence:
    sources = [name for name, there in (("Linux", seen.linux), ("the VM's definition", seen.machine)) if not there]
    return Evidence("not compared with", " and ".join(sources))


def check_mainline_boots(seen: Seen) -> Judgement:
    """description.mainline-boots: the Linux probe got ready, with a device tree and without ACPI."""
    if seen.has_table is False:
        return not_applicable("description.fdt", "There is no device tree")
    by_tree = [run for run in seen.linux if run.boot is not None and run.boot.fdt and not run.boot.acpi_tables]
    for run in by_tree:
        if run.ready or run.complete:
            kernel = printable(run.kernel or "unknown")
            return passed(
                "A mainline kernel boots from the device tree alone.",
                Evidence("Linux probe", f"kernel {kernel}, no ACPI"),
            )
    if by_tree:
        return unknown("The kernel booted from the device tree; the Linux probe was cut off before it was ready.")
    if seen.linux:
        return unknown("Linux was not booted from the device tree alone.")
    if seen.observation.linux_failure is not None:
        evidence = Evidence("Linux probe", printable(seen.observation.linux_failure), "it says that it is ready")
        return failed("The kernel did not boot.", evidence)
    return unknown("The Linux probe did not run.")


def check_acpi(seen: Seen) -> Judgement:
    """description.acpi: the tables that a kernel needs to boot without a device tree."""
    if not seen.efi and _booted_by_acpi(seen):
        return passed("A mainline kernel boots from the ACPI tables.")
    if seen.has_table is None and _has_acpi(seen) is None:
        return seen.silent("acpi", "Whether there are ACPI tables")
    if not _has_acpi(seen):
        if seen.has_table is False:
            return not_applicable("description.uefi-table", "The firmware publishes no hardware description")
        if not seen.done("acpi"):
            return seen.silent("acpi", "Whether there are ACPI tables")
        evidence = Evidence("UEFI configuration tables", "a device tree only", "ACPI tables")
        return failed("The firmware publishes a device tree and no ACPI tables.", evidence)
    return _tables_complete(seen)


def _tables_complete(seen: Seen) -> Judgement:
    acpi = seen.first(lambda run: run.acpi if run.acpi is not None and run.acpi.tables else None)
    if acpi is None:
        return seen.silent("acpi", "Which ACPI tables there are")
    there = {table.signature for table in acpi.tables}
    evidence_found = Evidence("ACPI tables", printable(", ".join(sorted(there))))
    wrong = [
        Evidence(f"ACPI table {printable(table.signature)}", "a wrong checksum", "bytes that add up to zero")
        for table in acpi.tables
        if table.checksum_ok is False
    ]
    lacking = [Evidence("ACPI tables", f"no {name}", what) for name, what in _ACPI_NEEDED.items() if name not in there]
    if wrong or lacking:
        return failed("The ACPI tables are not complete by themselves.", *wrong, *lacking, evidence_found)
    if _booted_by_acpi(seen):
        return passed("A mainline kernel boots from the ACPI tables.", evidence_found)
    return unknown("The ACPI tables that a kernel needs are there; none was seen to boot from them.", evidence_found)


def _booted_by_acpi(seen: Seen) -> bool:
    return any(run.ready and run.boot is not None and run.boot.acpi_tables for run in seen.linux)


def _has_acpi(seen: Seen) -> bool | None:
    if any(guid in entry.run.tables for entry in seen.efi for guid in ACPI_TABLES):
        return True
    said = [acpi.present for _, acpi in seen.each(lambda run: run.acpi) if acpi.present is not None]
    return any(said) if said else False if seen.done("tables") else None
