"""Every check passes a good platform and fails exactly where one is broken."""

from __future__ import annotations

import pytest

from armvm.platform.check import CHECKS
from armvm.report.text import render_text
from armvm.spec.catalogue import PROFILES, Topic, requirements_of
from armvm.spec.verdict import Level, Report, Verdict
from tools.broken_platforms import BROKEN, BROKEN_V2
from tools.probe_logs import Story, good, good_v2, judge

TOPICS = (Topic.FIRMWARE, Topic.DESCRIPTION, Topic.PLATFORM)


def test_a_good_platform_passes_every_requirement_of_v1() -> None:
    report = judge(good())
    assert {f.requirement: f.message for f in report.findings if f.verdict is not Verdict.PASS} == {
        "platform.aarch32-el1": "The CPU cannot run AArch32 at EL1."
    }
    assert report.conforms
    assert report.subject.kind == "platform"


def test_a_good_platform_of_v2_leaves_the_other_gic_unknown() -> None:
    report = judge(good_v2())
    others = {f.requirement for f in report.findings if f.verdict is not Verdict.PASS}
    assert others == {"platform.aarch32-el1", "platform.gic"}
    assert not report.failed(Level)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_platform_fails_exactly_what_it_breaks(what: str) -> None:
    requirements, mutate = BROKEN[what]
    story = good()
    mutate(story)
    check_failures(judge(story), requirements)


@pytest.mark.parametrize("what", BROKEN_V2)
def test_a_broken_platform_of_v2_fails_exactly_what_it_breaks(what: str) -> None:
    requirements, mutate = BROKEN_V2[what]
    story = good_v2()
    mutate(story)
    check_failures(judge(story), requirements)


def check_failures(report: Report, requirements: tuple[str, ...]) -> None:
    failures = report.failed(Level)
    assert {f.requirement: f.message for f in failures}.keys() == set(requirements), render_text(report, verbose=True)
    for failure in failures:
        assert failure.evidence, "a failure shows what was seen"
        assert any(evidence.expected for evidence in failure.evidence), "and what was expected"
        assert failure.remedy
        assert failure.message.endswith(".")


def test_every_check_can_fail() -> None:
    broken = {requirement for table in (BROKEN, BROKEN_V2) for names, _ in table.values() for requirement in names}
    # What only the host or another VM could show to be otherwise.
    assert CHECKS.keys() - broken == {
        "firmware.first-software",
        "firmware.not-in-image",
        "platform.aarch32-el1",
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_every_requirement_gets_one_finding(profile: str) -> None:
    for story in (good(), Story(None, [], [], None, None)):
        story.profile = profile
        report = judge(story)
        assert [f.requirement for f in report.findings] == [r.id for r in requirements_of(profile, *TOPICS)]
