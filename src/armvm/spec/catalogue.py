"""The specification as data: every requirement of every profile, read from requirements.toml."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from armvm.errors import UsageError
from armvm.spec.verdict import Level

DEFAULT_PROFILE = "vmspec-1.0"
PROFILES: Mapping[str, str] = {
    "vmspec-1.0": "VM System Specification for ARM Processors, v1.0 (2014)",
    "vmspec-2.0": "VM System Specification for ARM Processors, v2.0 (2016)",
}
"""Profile to the title of the document behind it."""


class Topic(enum.Enum):
    """What a requirement speaks of. The first two are judged on an image, the others on a platform."""

    IMAGE = "image"
    GUEST = "guest"
    FIRMWARE = "firmware"
    DESCRIPTION = "description"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class Clause:
    """Where a profile asks for a requirement, and how strongly."""

    level: Level
    section: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that the specification asks for.

    ``stands_on`` is the id of the requirement without which this one cannot be judged; ``unchecked`` is the reason
    why no check exists yet (None: a check exists).
    """

    id: str
    topic: Topic
    title: str
    explanation: str
    remedy: str
    clauses: Mapping[str, Clause]
    stands_on: str | None = None
    unchecked: str | None = None

    def clause(self, profile: str) -> Clause | None:
        """How ``profile`` asks for it, or None where it does not."""
        return self.clauses.get(profile)


@cache
def requirements() -> Mapping[str, Requirement]:
    """Every requirement of every profile by its id, in the catalogue's order."""
    import tomllib

    data = tomllib.loads(Path(__file__).with_name("requirements.toml").read_text(encoding="utf-8"))
    catalogue: dict[str, Requirement] = {}
    for topic_name, entries in data.items():
        for name, entry in entries.items():
            identifier = f"{topic_name}.{name}"
            catalogue[identifier] = Requirement(
                id=identifier,
                topic=Topic(topic_name),
                title=entry["title"],
                explanation=entry["explanation"].strip(),
                remedy=entry["remedy"],
                clauses={
                    profile: Clause(Level(level), section) for profile, (level, section) in entry["profiles"].items()
                },
                stands_on=entry.get("stands_on"),
                unchecked=entry.get("unchecked"),
            )
    return catalogue


def requirement(identifier: str) -> Requirement:
    """The requirement with that id. Raises UsageError, with the nearest ids, when there is none."""
    found = requirements().get(identifier)
    if found is None:
        import difflib

        near = difflib.get_close_matches(identifier, requirements(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`armvm spec list` shows them all"
        raise UsageError(f"there is no requirement {identifier!r}", hint=hint)
    return found


def requirements_of(profile: str, *topics: Topic) -> tuple[Requirement, ...]:
    """The requirements that belong to ``profile``, of those topics (default: all), in the catalogue's order.

    Raises UsageError when there is no such profile.
    """
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}", hint=f"profiles: {', '.join(PROFILES)}")
    return tuple(r for r in requirements().values() if profile in r.clauses and (not topics or r.topic in topics))
