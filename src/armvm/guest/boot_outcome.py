"""What following a boot program comes to, and how a menu of several ways is judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from armvm.disk.storage import Disk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.facts import BootEntry, PlacedFile
from armvm.guest.trouble import Trouble, TroubleKind
from armvm.guest.volume_source import BootVolume
from armvm.image.bootprogram import BootProgram
from armvm.image.pe import PeImage
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, passed, unknown
from armvm.spec.verdict import Evidence, Verdict

_MOST_EVIDENCE = 12


@dataclass(frozen=True, slots=True)
class Started:
    """An EFI program that something starts. ``program`` is None when it is none, and ``error`` says why."""

    place: PlacedFile
    volume: BootVolume
    content: Disk | None
    pe: PeImage | None = None
    program: BootProgram | None = None
    error: InputError | None = None

    @property
    def folder(self) -> str:
        """The folder that it stands in, without a ``/`` at its end."""
        return self.place.path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program or menu entry comes to: a judgement, and the kernels that it leads to."""

    judgement: Judgement
    entries: tuple[BootEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of a menu. ``default`` starts untouched, ``fallback`` when that fails; see ``GrubEntry``."""

    title: str
    outcome: Outcome
    default: bool = False
    fallback: bool = False
    certain: bool = True


class Follower(Protocol):
    """What the boot loaders' own modules need of ``bootchain``."""

    state: ExecutionState

    def start(self, place: PlacedFile, volume: BootVolume) -> Started:
        """Read an EFI program's head."""
        ...

    def follow(
        self, started: Started, steps: tuple[Evidence, ...], *, title: str = "", arguments: str | None = None
    ) -> Outcome:
        """Say what a started program comes to; ``arguments`` are handed to it."""
        ...


def evidence_of(troubles: Iterable[Trouble], *, remarks: bool = False) -> tuple[Evidence, ...]:
    """The troubles as evidence, what is missing first; remarks only when asked for."""
    kinds = (TroubleKind.MISSING, TroubleKind.UNTOLD, *((TroubleKind.REMARK,) if remarks else ()))
    everything = tuple(troubles)
    found = [trouble.evidence for kind in kinds for trouble in everything if trouble.kind is kind]
    return tuple(dict.fromkeys(found))[:_MOST_EVIDENCE]


def stopped(message: str, troubles: Sequence[Trouble], *, remedy: str | None = None, remarks: bool = False) -> Outcome:
    """A way that ends: a failure by what is missing, or unknown where something on it cannot be told."""
    evidence = evidence_of(troubles, remarks=remarks)
    if any(trouble.kind is TroubleKind.UNTOLD for trouble in troubles):
        reason = next(trouble.evidence.found for trouble in troubles if trouble.kind is TroubleKind.UNTOLD)
        return Outcome(unknown(f"What boots cannot be told at rest: {reason}.", *evidence))
    return Outcome(failed(message, *evidence, remedy=remedy))


def judge_menu(loader: str, choices: Sequence[Choice]) -> Outcome:
    """A menu of at least one choice: what starts untouched has to boot."""
    entries = tuple(
        replace(entry, default=entry.default and choice.default)
        for choice in choices
        for entry in choice.outcome.entries
    )
    defaults = [choice for choice in choices if choice.default]
    if len(defaults) == 1 and defaults[0].certain:
        return Outcome(_judge_default(loader, defaults[0], choices), entries)
    verdicts = {choice.outcome.judgement.verdict for choice in choices if choice.outcome.entries or choice.default}
    verdicts |= {choice.outcome.judgement.verdict for choice in choices} if not verdicts else set()
    if verdicts == {Verdict.PASS}:
        evidence = [item for choice in choices for item in choice.outcome.judgement.evidence]
        return Outcome(passed(f"{loader} starts a kernel, whichever entry it takes.", *evidence[:4]), entries)
    if verdicts == {Verdict.FAIL}:
        evidence = [item for choice in choices for item in choice.outcome.judgement.evidence]
        return Outcome(failed(f"No entry of {loader} boots.", *evidence[:_MOST_EVIDENCE]), entries)
    evidence = [
        item
        for choice in choices
        if choice.outcome.judgement.verdict is not Verdict.PASS
        for item in choice.outcome.judgement.evidence
    ]
    message = f"Which entry {loader} starts cannot be told at rest, and not every one is known to boot."
    return Outcome(unknown(message, *evidence[:_MOST_EVIDENCE]), entries)


def _judge_default(loader: str, default: Choice, choices: Sequence[Choice]) -> Judgement:
    judgement = default.outcome.judgement
    title = printable(default.title)
    if judgement.verdict is Verdict.PASS:
        return passed(f"{loader} starts {title}.", *judgement.evidence)
    good = [c for c in choices if c is not default and c.outcome.judgement.verdict is Verdict.PASS]
    rescue = next((choice for choice in good if choice.fallback), None)
    if rescue is not None and judgement.verdict is Verdict.FAIL:
        message = f"{loader}'s default entry, {title}, does not boot; its fallback, {printable(rescue.title)}, does."
        return passed(message, *judgement.evidence, *rescue.outcome.judgement.evidence)
    others = f" (others would: {printable(good[0].title)})" if good else ""
    if judgement.verdict is Verdict.FAIL:
        message = f"The default entry of {loader}, {title}, does not boot{others}: {_lower(judgement.message)}"
        return failed(message, *judgement.evidence, remedy=judgement.remedy)
    message = f"Whether the default entry of {loader}, {title}, boots is not known. {judgement.message}"
    return unknown(message, *judgement.evidence)


def _lower(message: str) -> str:
    """A sentence put behind a colon."""
    first = message.split(" ", 1)[0]
    return message[:1].lower() + message[1:] if first[1:].islower() or len(first) == 1 else message
