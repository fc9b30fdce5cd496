"""What stands in a boot loader's way: something is not there, or nobody can tell."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from armvm.spec.verdict import Evidence


class TroubleKind(enum.Enum):
    """How bad a trouble is."""

    MISSING = "missing"
    """What is looked for is not on the image: the boot stops here."""
    UNTOLD = "untold"
    """Whether it is there, or what it comes to, cannot be told at rest."""
    REMARK = "remark"
    """Worth a mention: skipped, or not understood, and probably without consequence."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing in the way, with the place that asks for it."""

    kind: TroubleKind
    evidence: Evidence


def missing(where: str, found: str, expected: str | None = None) -> Trouble:
    """Something is not on the image."""
    return Trouble(TroubleKind.MISSING, Evidence(where, found, expected))


def untold(where: str, found: str, expected: str | None = None) -> Trouble:
    """Something cannot be told at rest."""
    return Trouble(TroubleKind.UNTOLD, Evidence(where, found, expected))


def remark(where: str, found: str, expected: str | None = None) -> Trouble:
    """Something deserves a mention."""
    return Trouble(TroubleKind.REMARK, Evidence(where, found, expected))
