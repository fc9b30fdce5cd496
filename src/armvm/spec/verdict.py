"""What every room shares about a judgement: Level, Verdict, Evidence, Problem, Finding, Subject, Report. Data only."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.Enum):
    """How strongly the specification asks for something."""

    MUST = "must"
    SHOULD = "should"
    MAY = "may"


class Verdict(enum.Enum):
    """What a check came to. Absence of evidence is UNKNOWN, never PASS."""

    PASS = "pass"  # noqa: S105 - a verdict, no password
    FAIL = "fail"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was seen: where, what stood there, and what should have."""

    where: str
    found: str
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a structure that could otherwise be read: what a parser hands to the check that judges it.

    ``code`` is a short stable word (``backup-header-crc``), ``message`` one sentence. A problem that is not
    ``serious`` deserves a mention and breaks no requirement.
    """

    code: str
    message: str
    evidence: Evidence
    serious: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one requirement, with its evidence and its remedy."""

    requirement: str
    level: Level
    verdict: Verdict
    message: str
    evidence: tuple[Evidence, ...] = ()
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What was judged. ``kind`` is ``image`` or ``platform``; ``size_bytes`` is the size that a VM would see."""

    kind: str
    name: str
    format: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about one subject under one profile."""

    subject: Subject
    profile: str
    findings: tuple[Finding, ...]

    @property
    def conforms(self) -> bool | None:
        """False when a must failed, True when every must that applies passed, None when some are unknown."""
        verdicts = [finding.verdict for finding in self.findings if finding.level is Level.MUST]
        if Verdict.FAIL in verdicts:
            return False
        return None if Verdict.UNKNOWN in verdicts else True

    def count(self, verdict: Verdict) -> int:
        """How many findings came to ``verdict``."""
        return sum(finding.verdict is verdict for finding in self.findings)

    def failed(self, levels: Iterable[Level]) -> tuple[Finding, ...]:
        """The findings of ``levels`` that failed."""
        wanted = frozenset(levels)
        return tuple(f for f in self.findings if f.verdict is Verdict.FAIL and f.level in wanted)
