"""What a check comes to before the catalogue adds level and remedy, and the small words to say it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from armvm.spec.catalogue import Requirement
from armvm.spec.verdict import Evidence, Finding, Problem, Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its message and evidence. ``remedy`` replaces the catalogue's where a better one is known."""

    verdict: Verdict
    message: str
    evidence: tuple[Evidence, ...] = ()
    remedy: str | None = None


def passed(message: str, *evidence: Evidence) -> Judgement:
    """It holds."""
    return Judgement(Verdict.PASS, message, evidence)


def failed(message: str, *evidence: Evidence, remedy: str | None = None) -> Judgement:
    """It does not hold."""
    return Judgement(Verdict.FAIL, message, evidence, remedy)


def unknown(message: str, *evidence: Evidence) -> Judgement:
    """It could not be determined, and why."""
    return Judgement(Verdict.UNKNOWN, message, evidence)


def not_applicable(stands_on: str, reason: str) -> Judgement:
    """The ground is missing: ``stands_on`` is the requirement that it would have stood on."""
    return Judgement(Verdict.NOT_APPLICABLE, f"{reason} (stands on {stands_on})")


def finding(entry: Requirement, profile: str, judgement: Judgement) -> Finding:
    """What a report says of a requirement: the judgement with the catalogue's level and remedy."""
    return Finding(
        requirement=entry.id,
        level=entry.clauses[profile].level,
        verdict=judgement.verdict,
        message=judgement.message,
        evidence=judgement.evidence,
        remedy=(judgement.remedy or entry.remedy) if judgement.verdict is Verdict.FAIL else None,
    )


def worst(judgements: Sequence[Judgement], summary: Callable[[Sequence[Judgement]], str]) -> Judgement:
    """The first failure, else the first unknown, else one pass with everybody's evidence."""
    for verdict in (Verdict.FAIL, Verdict.UNKNOWN, Verdict.NOT_APPLICABLE):
        for judgement in judgements:
            if judgement.verdict is verdict:
                return judgement
    evidence = [evidence for judgement in judgements for evidence in judgement.evidence]
    return passed(summary(judgements), *evidence)


def judged_by_problems(problems: Iterable[Problem], *, good: str, bad: str, where: str = "") -> Judgement:
    """A pass when no problem is serious, else a failure; all of them are evidence. ``where`` goes before each place."""
    found = tuple(problems)
    serious = [problem for problem in found if problem.serious]
    if not serious:
        return passed(good, *(_placed(problem, where) for problem in found))
    message = serious[0].message if len(serious) == 1 else f"{bad}: {len(serious)} faults, first: {serious[0].message}"
    return failed(message, *(_placed(problem, where) for problem in (*serious, *(p for p in found if not p.serious))))


def _placed(problem: Problem, where: str) -> Evidence:
    evidence = problem.evidence
    return replace(evidence, where=f"{where}, {evidence.where}") if where else evidence
