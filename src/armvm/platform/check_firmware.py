"""The checks of the virtual firmware: UEFI, its variables, its clock."""

from __future__ import annotations

from armvm.execution import ExecutionState
from armvm.platform.seen import Seen
from armvm.printable import printable
from armvm.probe.efi_facts import ClockTime, EfiRun, Rtc, VariableTest
from armvm.probe.report import After, InstanceRun
from armvm.spec.judgement import Judgement, failed, passed, unknown
from armvm.spec.verdict import Evidence, Verdict

_LEAST_REVISION = {"vmspec-1.0": 0x00020028, "vmspec-2.0": 0x0002003C}
"""UEFI 2.4 (its errata A has no number of its own) and 2.6, as the system table writes them (UEFI 2.10 §4.3.1)."""
_UNSET_BEFORE_YEAR = 1980
"""A clock that nobody set starts in 1970 or earlier."""
_CLOCK_STEP_SECONDS = 1.0
"""Most clocks count whole seconds."""
_CLOCK_TOLERANCE = 0.25
"""An emulated machine's clock and counter drift apart while its host is busy."""
_SET_AHEAD_SECONDS = 3600
_SET_TOLERANCE_SECONDS = 10
_HYP_MODE = 0x1A
_WORDS = {After.RESET: "a reset", After.POWER_CYCLE: "a power cycle", After.KILL: "a kill of the VM's process"}


def check_uefi(seen: Seen) -> Judgement:
    """firmware.uefi: the probe ran, and nothing but UEFI firmware starts it."""
    begun = [entry for entry in seen.efi if entry.run.begin.number is not None or entry.run.tests]
    if begun:
        state = begun[0].run.begin.state
        path = state.removable_path if state else "the removable path"
        vendor = seen.first(lambda run: run.system.vendor if run.system else None)
        return passed(
            f"The firmware started the probe from {path}.",
            Evidence(seen.label(begun[0]), f"firmware of {printable(vendor)}" if vendor else "it ran"),
        )
    if seen.observation.efi_failure is not None:
        evidence = Evidence("the VM", printable(seen.observation.efi_failure), "the probe speaks")
        return failed("The probe was not started from the removable path.", evidence)
    if any(run.boot is not None and run.boot.efi for run in seen.linux):
        return unknown("Linux was started by UEFI firmware; whether from the removable path is not known.")
    return unknown("Nothing of the EFI probe came through.")


def check_uefi_version(seen: Seen) -> Judgement:
    """firmware.uefi-version: the revision in the system table."""
    found = next(seen.each(lambda run: run.system.revision if run.system else None), None)
    if found is None:
        return seen.silent("system", "The UEFI revision")
    where, revision = found
    least = _LEAST_REVISION[seen.profile]
    evidence = Evidence(where, f"UEFI {_revision(revision)}", f"UEFI {_revision(least)} or later")
    if revision < least:
        return failed(f"The firmware follows UEFI {_revision(revision)}.", evidence)
    return passed(f"The firmware follows UEFI {_revision(revision)}.", Evidence(evidence.where, evidence.found))


def check_first_software(seen: Seen) -> Judgement:
    """firmware.first-software: only who made the VM knows what it starts with."""
    if not seen.efi:
        return unknown("Nothing of the EFI probe came through.")
    if seen.machine is not None and seen.machine.firmware is not None:
        return passed(
            "The firmware is what the VM starts with.",
            Evidence("the VM's definition", f"firmware {printable(seen.machine.firmware)}, and nothing before it"),
        )
    return unknown("What ran before the firmware cannot be seen from inside the VM.")


def check_not_in_image(seen: Seen) -> Judgement:
    """firmware.not-in-image: the probe's image brings no firmware, and still it was started by one."""
    if not seen.efi:
        return unknown("Nothing of the EFI probe came through.")
    return passed("The firmware came with the VM: the probe's image carries none.")


def check_el1(seen: Seen) -> Judgement:
    """firmware.el1: the level, or the mode in AArch32, that the probe was started in."""
    found = next(seen.each(_level), None)
    if found is None:
        return seen.silent("cpu", "The exception level")
    where, level = found
    if level == 1:
        return passed("The firmware runs at EL1.", Evidence(where, "EL1"))
    return failed(f"The firmware runs at EL{level}.", Evidence(where, f"EL{level}", "EL1"))


def _level(run: EfiRun) -> int | None:
    if run.cpu is None:
        return None
    if run.begin.state is ExecutionState.AARCH32:
        mode = run.cpu.mode
        return None if mode is None else 2 if mode & 0x1F == _HYP_MODE else 1
    if run.cpu.exception_level is not None:
        return run.cpu.exception_level
    register = run.cpu.registers.get("CurrentEL")
    return None if register is None else register >> 2 & 3


def check_variables_persist(seen: Seen) -> Judgement:
    """firmware.variables-persist: each run finds what the one before it on that instance wrote."""
    if seen.crashed("variables"):
        results = seen.results("variables")
        ended = (Evidence(f"{run}, test variables", f"it ended as {end.value}", "done") for run, end in results)
        return failed("The variable services do not work.", *ended)
    if not seen.says(lambda run: run.variable_test):
        return seen.silent("variables", "Whether variables persist")
    refused = [
        Evidence(where, _status("SetVariable", test.write_status), "0x0 (success), and the value reads back")
        for where, test in seen.each(lambda run: run.variable_test)
        if test.write_status or test.read_back_ok is False
    ]
    if refused:
        return failed("A non-volatile variable could not be written.", *refused)
    kept: list[Evidence] = []
    lost: list[Evidence] = []
    survived: set[After] = set()
    for before, entry in _consecutive(seen):
        evidence = _survival(seen, before, entry)
        if evidence is None:
            continue
        if evidence.expected is None:
            kept.append(evidence)
            survived |= {entry.after} if entry.after else set()
        else:
            lost.append(evidence)
    if lost:
        return failed("A non-volatile variable was lost.", *lost, *kept)
    if not kept:
        return unknown("Only one run wrote a variable; whether it persists takes a second one.")
    untried = [_WORDS[after] for after in After if after not in survived]
    if untried:
        kept.append(Evidence("not tried", ", ".join(untried), "the variable survives"))
    ways = [_WORDS[after] for after in After if after in survived] or ["a restart"]
    return passed(f"A non-volatile variable survived {_listed(ways)}.", *kept)


def _consecutive(seen: Seen) -> list[tuple[InstanceRun, InstanceRun]]:
    """Each two runs that follow each other on one instance and both came to the test of variables."""
    latest: dict[str, InstanceRun] = {}
    pairs = []
    for entry in seen.efi:
        if entry.run.variable_test is None:
            continue
        if entry.instance in latest:
            pairs.append((latest[entry.instance], entry))
        latest[entry.instance] = entry
    return pairs


def _survival(seen: Seen, before: InstanceRun, entry: InstanceRun) -> Evidence | None:
    """What became of the variable between two runs; ``expected`` is set where it was lost."""
    wrote, found = _test(before.run).written, _test(entry.run).found
    if wrote is None:
        return None
    between = _WORDS[entry.after] if entry.after else "a restart"
    where = f"{seen.label(entry)}, after {between}"
    if found is None:
        status = _test(entry.run).read_status
        return Evidence(where, _status("no such variable: GetVariable", status), f"what {seen.label(before)} wrote")
    if found.nonce != wrote.nonce:
        return Evidence(where, f"nonce {printable(found.nonce)}", f"nonce {printable(wrote.nonce)}")
    return Evidence(where, f"what {seen.label(before)} wrote")


def _test(run: EfiRun) -> VariableTest:
    return run.variable_test or VariableTest(None, None, None, None, None)


def check_variables_per_instance(seen: Seen) -> Judgement:
    """firmware.variables-per-instance: not in the image, and not seen by another instance."""
    if not seen.efi:
        return unknown("Nothing of the EFI probe came through.")
    on_esp = [where for where, store in seen.each(lambda run: run.variable_store) if store.file_on_esp]
    if on_esp:
        return failed(
            "The firmware keeps its variables on the disk's EFI System Partition.",
            *(
                Evidence(f"{where}, EFI System Partition", "ubootefi.var", "no variables on the disk")
                for where in on_esp
            ),
            remedy="Use a firmware that keeps its variables in a flash device of the VM.",
        )
    if seen.observation.image_unchanged is False:
        evidence = Evidence("the probe's image", "its content has changed", "the image as it was")
        return failed("The image was changed by the VM.", evidence)
    owners = {
        test.written.nonce: entry.instance
        for entry in seen.efi
        if (test := entry.run.variable_test) is not None and test.written is not None
    }
    foreign = [
        Evidence(
            seen.label(entry),
            f"the variable of instance {printable(owners[test.found.nonce])}",
            "its own or none",
        )
        for entry in seen.efi
        if (test := entry.run.variable_test) is not None
        and test.found is not None
        and owners.get(test.found.nonce, entry.instance) != entry.instance
    ]
    if foreign:
        return failed("An instance sees another one's variables.", *foreign)
    instances = dict.fromkeys(owners.values())
    if len(instances) < 2:
        return unknown("One instance of the VM was seen; whether two keep their variables apart takes a second one.")
    apart = [Evidence(f"instance {printable(name)}", "saw no variable of another instance") for name in instances]
    if seen.observation.image_unchanged:
        apart.append(Evidence("the probe's image", "unchanged"))
    return passed(f"{len(instances)} instances of one image keep their variables apart.", *apart)


def check_rtc(seen: Seen) -> Judgement:
    """firmware.rtc: GetTime answers, the time is one, moves at the counter's pace, and can be set."""
    if seen.crashed("rtc"):
        ended = (Evidence(f"{run}, test rtc", f"it ended as {end.value}", "done") for run, end in seen.results("rtc"))
        return failed("The UEFI time services do not work.", *ended)
    said = list(seen.each(lambda run: run.rtc))
    if not said:
        return seen.silent("rtc", "Whether the clock works")
    judgements = [_clock(where, rtc) for where, rtc in said]
    return next((judgement for judgement in judgements if judgement.verdict is Verdict.FAIL), judgements[0])


def _clock(where: str, rtc: Rtc) -> Judgement:
    if rtc.get_status:
        return failed(
            "The firmware does not tell the time.", Evidence(where, _status("GetTime", rtc.get_status), "0x0")
        )
    if rtc.time is None:
        return unknown("What GetTime said did not come through.")
    start = rtc.time.seconds
    if start is None or rtc.time.year < _UNSET_BEFORE_YEAR:
        return failed("The time is none.", Evidence(where, f"GetTime: {rtc.time}", "a date, by a clock that is set"))
    seen_time = Evidence(where, f"GetTime: {rtc.time}")
    pace = _pace(where, start, rtc)
    if pace is not None and pace.expected is not None:
        return failed("The clock does not keep time.", pace)
    if rtc.set_status:
        return failed("The clock cannot be set.", Evidence(where, _status("SetTime", rtc.set_status), "0x0"), seen_time)
    set_read = _set_read(where, rtc.later or rtc.time, rtc.set_read)
    if set_read is not None and set_read.expected is not None:
        return failed("The clock does not take the time that it is set to.", set_read)
    missing = [
        what
        for what, there in (
            ("that the clock moves", pace),
            ("that it can be set", set_read if rtc.set_status == 0 else None),
        )
        if there is None
    ]
    evidence = tuple(entry for entry in (seen_time, pace, set_read) if entry is not None)
    if missing:
        return unknown(f"The firmware tells the time; {' and '.join(missing)} did not come through.", *evidence)
    return passed("GetTime and SetTime work, and the clock moves.", *evidence)


def _pace(where: str, start: float, rtc: Rtc) -> Evidence | None:
    """How far the clock moved against the counter; ``expected`` is set where that is wrong."""
    later = rtc.later.seconds if rtc.later else None
    if later is None or rtc.elapsed_ms is None:
        return None
    moved, elapsed = later - start, rtc.elapsed_ms / 1000
    tolerance = _CLOCK_STEP_SECONDS + _CLOCK_TOLERANCE * elapsed
    stopped = moved <= 0 and elapsed > _CLOCK_STEP_SECONDS
    found = f"the clock moved by {moved:.1f} s while the counter counted {elapsed:.1f} s"
    wrong = stopped or abs(moved - elapsed) > tolerance
    return Evidence(where, found, f"{elapsed:.1f} s, within {tolerance:.1f} s" if wrong else None)


def _set_read(where: str, before: ClockTime, after: ClockTime | None) -> Evidence | None:
    start, read = before.seconds, after.seconds if after else None
    if start is None or read is None:
        return None
    ahead = read - start
    wrong = not 0 <= ahead - _SET_AHEAD_SECONDS <= _SET_TOLERANCE_SECONDS
    expected = f"{_SET_AHEAD_SECONDS} to {_SET_AHEAD_SECONDS + _SET_TOLERANCE_SECONDS} s" if wrong else None
    return Evidence(where, f"set one hour ahead, the clock read {ahead:.0f} s ahead", expected)


def _status(call: str, status: int | None) -> str:
    return f"{call}: {'no answer came through' if status is None else f'{status:#x}'}"


def _revision(revision: int) -> str:
    """As the UEFI specification's title writes it (UEFI 2.10 §4.3.1): 2.10, 2.7, 2.3.1."""
    major, minor = revision >> 16, revision & 0xFFFF
    return f"{major}.{minor // 10}" + (f".{minor % 10}" if minor % 10 else "")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
