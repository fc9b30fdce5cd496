"""The checks of hotplug: what the host added and removed, against what the guest saw happen and could use."""

from __future__ import annotations

from armvm.platform.host import HotplugAttempt, HotplugKind
from armvm.platform.seen import Seen
from armvm.printable import printable
from armvm.probe.linux_run import Action, HotplugEvent
from armvm.spec.judgement import Judgement, failed, passed, unknown
from armvm.spec.verdict import Evidence, Verdict

_SUBSYSTEMS = {HotplugKind.BLOCK: "block", HotplugKind.NETWORK: "net"}


def check_hotplug_block(seen: Seen) -> Judgement:
    """platform.hotplug-block: a disk that came, could be read, and went."""
    return _check(seen, HotplugKind.BLOCK)


def check_hotplug_network(seen: Seen) -> Judgement:
    """platform.hotplug-network: a network interface that came, had a link, and went."""
    return _check(seen, HotplugKind.NETWORK)


def _check(seen: Seen, kind: HotplugKind) -> Judgement:
    attempts = [attempt for attempt in (seen.hotplug.attempts if seen.hotplug else ()) if attempt.kind is kind]
    judgements = [_judge_attempt(seen, attempt) for attempt in attempts]
    for verdict in (Verdict.PASS, Verdict.FAIL):
        # One bus that takes devices is what is asked for; others may refuse them.
        decided = [judgement for judgement in judgements if judgement.verdict is verdict]
        if decided:
            return decided[0]
    if judgements:
        return judgements[0]
    return _judge_events(seen, kind)


def _judge_attempt(seen: Seen, attempt: HotplugAttempt) -> Judgement:
    what = attempt.kind.value
    where = f"hypervisor, {printable(attempt.bus)}"
    if attempt.added is False:
        evidence = Evidence(where, printable(attempt.error or "refused"), f"it takes a {what}")
        return failed(f"The hypervisor does not take a {what} while the VM runs.", evidence)
    if attempt.added is None:
        return unknown(f"No {what} was added.")
    if not any(run.ready for run in seen.linux):
        return unknown(f"The hypervisor took the {what}; the Linux probe was not ready to see it.")
    added = next((event for event in _events(seen, attempt.kind) if _is_it(event, attempt)), None)
    if added is None:
        return _never_seen(seen, attempt, where)
    fault = _use(added, attempt)
    if fault is not None:
        return failed(f"The guest saw the {what} come, and cannot use it.", fault)
    return _judge_removal(seen, attempt, added, where)


def _judge_removal(seen: Seen, attempt: HotplugAttempt, added: HotplugEvent, where: str) -> Judgement:
    what = attempt.kind.value
    came = Evidence("Linux probe", f"{printable(added.name)} came on {printable(attempt.bus)} and works")
    if attempt.removed is None:
        return unknown(f"A {what} was added and works; removing it was not tried.", came)
    if attempt.removed is False:
        refusal = Evidence(where, printable(attempt.error or "refused"), "it takes the device away")
        return failed(f"The {what} cannot be removed while the VM runs.", refusal, came)
    if _went(seen, added):
        gone = Evidence("Linux probe", f"{printable(added.name)} went")
        return passed(f"A {what} was added, worked, and was removed while the VM ran.", came, gone)
    if _cut(seen):
        return unknown(f"A {what} was added and works; the log ends before it was removed.", came)
    stayed = Evidence("Linux probe", f"{printable(added.name)} stayed", "it goes")
    return failed(f"The guest never saw the {what} go.", stayed, came)


def _never_seen(seen: Seen, attempt: HotplugAttempt, where: str) -> Judgement:
    what = attempt.kind.value
    answered = Evidence(where, "took the request")
    if seen.hotplug is not None and seen.hotplug.guest_lacks is not None:
        reason = printable(seen.hotplug.guest_lacks)
        return unknown(f"The hypervisor took the {what}; the guest cannot see it: {reason}.", answered)
    if _cut(seen):
        return unknown(f"The hypervisor took the {what}; the Linux probe's log ends before it could say so.", answered)
    missed = Evidence("Linux probe", f"no {what} came", "the guest's own event")
    return failed(f"The hypervisor took the {what}, and the guest never saw it.", missed, answered)


def _cut(seen: Seen) -> bool:
    return not any(run.complete for run in seen.linux)


def _events(seen: Seen, kind: HotplugKind) -> list[HotplugEvent]:
    return [
        event
        for run in seen.linux
        for event in run.hotplug
        if event.action is Action.ADD and event.subsystem == _SUBSYSTEMS[kind]
    ]


def _is_it(event: HotplugEvent, attempt: HotplugAttempt) -> bool:
    """Whether the event is of the device that the host added: by serial number, content or address."""
    if event.block is not None:
        if attempt.serial is not None and event.block.serial is not None:
            return event.block.serial.strip() == attempt.serial
        return attempt.sha256_hex is None or event.block.sha256_hex == attempt.sha256_hex
    mac = event.network.mac if event.network is not None else None
    return attempt.mac is None or (mac is not None and mac.lower() == attempt.mac.lower())


def _use(event: HotplugEvent, attempt: HotplugAttempt | None) -> Evidence | None:
    """What keeps the device from being used; None when it works."""
    where = f"Linux probe, {printable(event.name)}"
    if event.block is not None:
        if not event.block.read:
            return Evidence(where, "its first block cannot be read", "a disk that can be read")
        wanted = attempt.sha256_hex if attempt else None
        if wanted is not None and event.block.sha256_hex != wanted:
            return Evidence(where, f"SHA-256 {printable(str(event.block.sha256_hex))}", wanted)
        return None
    network = event.network
    if network is None or not network.driver:
        return Evidence(where, "no driver", "a driver")
    if network.carrier is False:
        return Evidence(where, "no link", "a link")
    return None


def _went(seen: Seen, added: HotplugEvent) -> bool:
    for run in seen.linux:
        if added in run.hotplug:
            after = run.hotplug[run.hotplug.index(added) + 1 :]
            return any(
                event.action is Action.REMOVE and event.subsystem == added.subsystem and event.name == added.name
                for event in after
            )
    return False


def _judge_events(seen: Seen, kind: HotplugKind) -> Judgement:
    """Where the host says nothing: what somebody plugged while the Linux probe listened."""
    what = kind.value
    for event in _events(seen, kind):
        fault = _use(event, None)
        if fault is not None:
            return failed(f"The guest saw a {what} come, and cannot use it.", fault)
        came = Evidence("Linux probe", f"{printable(event.name)} came and works")
        if _went(seen, event):
            return passed(f"A {what} was added, worked, and was removed while the VM ran.", came)
        return unknown(f"A {what} was added and works; it was not removed.", came)
    return unknown(f"No {what} was added while the Linux probe ran.")
