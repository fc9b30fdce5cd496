"""The check of guest.no-assumptions: nothing in the image assumes one variation of a device."""

from __future__ import annotations

from collections.abc import Sequence

from armvm.guest.assumptions import Assumptions
from armvm.guest.facts import Assumption, BootEntry
from armvm.guest.system import GuestSystem
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, passed, unknown
from armvm.spec.verdict import Evidence

_MOST_SHOWN = 50
_MOST_TEXT = 200


def check_no_assumptions(
    system: GuestSystem | None, entries: Sequence[BootEntry], assumptions: Assumptions
) -> Judgement:
    """guest.no-assumptions: a failure with every serious assumption, else what of it could be told."""
    serious = assumptions.serious
    mentions = [_evidence(each) for each in assumptions.found if not each.serious]
    if serious:
        shown = [_evidence(each) for each in serious]
        first = f"{printable(serious[0].why)} ({serious[0].where})"
        message = f"{first}." if len(serious) == 1 else f"{len(serious)} assumptions, the first: {first}."
        remedy = " ".join(dict.fromkeys(each.remedy for each in serious[:5]))
        return failed(message[:1].upper() + message[1:], *(shown + mentions)[:_MOST_SHOWN], remedy=remedy)
    told = [entry for entry in entries if entry.command_line is not None]
    if system is None and not told:
        return unknown("Neither the root file system nor a kernel's command line could be read.", *assumptions.unread)
    if system is None:
        why = "".join(f" ({each.where}: {each.found})" for each in assumptions.unread[:1])
        message = f"The root file system could not be read{why}; the command lines assume nothing."
        return unknown(message, *assumptions.unread)
    if not told:
        return unknown("No kernel's command line could be told; the root file system assumes nothing.")
    if assumptions.unread:
        return unknown("Some of the guest could not be read; the rest assumes nothing.", *assumptions.unread)
    return passed(
        "Root, mounts, consoles and network name no device that is another one in another VM.", *mentions[:_MOST_SHOWN]
    )


def _evidence(each: Assumption) -> Evidence:
    return Evidence(each.where, f"{printable(each.found[:_MOST_TEXT])} ({printable(each.why)})", _expected(each))


def _expected(each: Assumption) -> str | None:
    """What would stand there: the words of the replacement that are new, as whole command lines are long."""
    if each.line is None or each.replacement is None:
        return None
    if not each.replacement:
        return "no such line"
    before = each.line.text.split()
    new = [word for word in each.replacement.split() if word not in before]
    gone = [word for word in before if word not in each.replacement.split()]
    if not new:
        return f"without {printable(' '.join(gone)[:_MOST_TEXT])}" if gone else None
    shown = " ".join(new)[:_MOST_TEXT]
    return printable(shown[:-1] if shown[-1:] in "\"'" and shown.count(shown[-1]) % 2 else shown)
