"""The catalogue is whole, and everything in the tree that names a requirement names one of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from armvm.errors import UsageError
from armvm.guest.check import CHECKS as GUEST_CHECKS
from armvm.image.check import CHECKS as IMAGE_CHECKS
from armvm.platform.check import CHECKS as PLATFORM_CHECKS
from armvm.spec.catalogue import PROFILES, Topic, requirement, requirements, requirements_of
from armvm.spec.verdict import Level

CHECKS = {**IMAGE_CHECKS, **GUEST_CHECKS, **PLATFORM_CHECKS}
ROOT = Path(__file__).parents[3]


def test_every_requirement_has_a_check_or_a_written_reason() -> None:
    for entry in requirements().values():
        checked = entry.id in CHECKS
        assert checked != bool(entry.unchecked), f"{entry.id}: a check, or the reason why there is none; not both"


def test_every_check_judges_a_requirement() -> None:
    assert CHECKS.keys() <= requirements().keys()
    assert len(CHECKS) == len(IMAGE_CHECKS) + len(GUEST_CHECKS) + len(PLATFORM_CHECKS)


def test_every_requirement_is_whole() -> None:
    for entry in requirements().values():
        assert entry.title[-1] != "."
        assert entry.explanation.endswith((".", ")", "*"))
        assert entry.remedy.endswith(".")
        assert entry.clauses
        assert entry.clauses.keys() <= PROFILES.keys()
        assert all(clause.section for clause in entry.clauses.values())
        assert entry.stands_on is None or entry.stands_on in requirements()


def test_both_profiles_have_every_topic() -> None:
    for profile in PROFILES:
        assert {entry.topic for entry in requirements_of(profile)} == set(Topic)


def test_the_profiles_differ_where_the_specifications_do() -> None:
    console = requirement("guest.console-xen")
    assert (console.clauses["vmspec-1.0"].level, console.clauses["vmspec-2.0"].level) == (Level.MUST, Level.SHOULD)
    assert requirement("guest.acpi").clause("vmspec-1.0") is None
    assert requirement("description.acpi").clause("vmspec-2.0") is not None


def test_an_unknown_id_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        requirement("image.gtp")
    assert "image.gpt" in str(caught.value.hint)
    with pytest.raises(UsageError):
        requirements_of("vmspec-9")


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_every_id_in_the_documents_exists(document: str) -> None:
    path = ROOT / document
    files = sorted(path.rglob("*.md")) if path.is_dir() else [path]
    topics = "|".join(topic.value for topic in Topic)
    files_and_ids = [
        (file, found)
        for file in files
        # A file name such as image.toml or guest.qcow2 is no id.
        for found in re.findall(rf"(?<![\w/.])(?:{topics})\.[a-z0-9-]+(?![\w.])", file.read_text(encoding="utf-8"))
        if found.partition(".")[2] not in ("toml", "img", "py", "qcow2", "md")
    ]
    assert [(file.name, found) for file, found in files_and_ids if found not in requirements()] == []
