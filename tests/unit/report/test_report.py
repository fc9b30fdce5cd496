"""Reports say the same in text and JSON, to the letter of the contract, and let nothing hostile through."""

from __future__ import annotations

import json

from armvm.report.json import render_json
from armvm.report.style import Style
from armvm.report.text import render_text
from armvm.spec.verdict import Evidence, Finding, Level, Report, Subject, Verdict
from armvm.version import __version__

SUBJECT = Subject("image", "disk.qcow2", "qcow2", 1 << 30)
FAILED = Finding(
    "image.removable-path",
    Level.MUST,
    Verdict.FAIL,
    "No boot program.",
    (Evidence("partition 1, \\EFI\\BOOT", "nothing", "BOOTAA64.EFI"),),
    "Copy it.",
)
PASSED = Finding("image.gpt", Level.MUST, Verdict.PASS, "Sound.", (Evidence("LBA 1", "a header"),))
SHOULD = Finding("image.no-firmware", Level.SHOULD, Verdict.FAIL, "Firmware.")
UNKNOWN = Finding("guest.gicv2", Level.MUST, Verdict.UNKNOWN, "not judged")
SKIPPED = Finding("image.esp", Level.MUST, Verdict.NOT_APPLICABLE, "no GPT")


def _report(*findings: Finding, name: str = "disk.qcow2") -> Report:
    return Report(Subject("image", name, "qcow2", 1 << 30), "vmspec-1.0", findings)


def test_conforms_follows_the_musts_alone() -> None:
    assert _report(PASSED, SHOULD, SKIPPED).conforms is True
    assert _report(PASSED, UNKNOWN).conforms is None
    assert _report(PASSED, UNKNOWN, FAILED).conforms is False
    assert _report(SHOULD).conforms is True


def test_json_is_the_contract() -> None:
    document = json.loads(
        render_json([_report(FAILED, PASSED, UNKNOWN)], profile="vmspec-1.0", created="2026-01-02T03:04:05Z")
    )
    assert document == {
        "schema": "armvm.report/1",
        "tool": {"name": "armvm", "version": __version__},
        "profile": "vmspec-1.0",
        "created": "2026-01-02T03:04:05Z",
        "reports": [
            {
                "subject": {"kind": "image", "name": "disk.qcow2", "format": "qcow2", "size_bytes": 1 << 30},
                "conforms": False,
                "summary": {"pass": 1, "fail": 1, "unknown": 1, "not-applicable": 0},
                "findings": [
                    {
                        "requirement": "image.removable-path",
                        "level": "must",
                        "verdict": "fail",
                        "message": "No boot program.",
                        "evidence": [
                            {"where": "partition 1, \\EFI\\BOOT", "found": "nothing", "expected": "BOOTAA64.EFI"}
                        ],
                        "remedy": "Copy it.",
                    },
                    {
                        "requirement": "image.gpt",
                        "level": "must",
                        "verdict": "pass",
                        "message": "Sound.",
                        "evidence": [{"where": "LBA 1", "found": "a header", "expected": None}],
                        "remedy": None,
                    },
                    {
                        "requirement": "guest.gicv2",
                        "level": "must",
                        "verdict": "unknown",
                        "message": "not judged",
                        "evidence": [],
                        "remedy": None,
                    },
                ],
            }
        ],
    }


def test_text_puts_failures_first_with_evidence_and_remedy() -> None:
    text = render_text(_report(PASSED, FAILED, UNKNOWN))
    assert text.index("FAIL  image.removable-path") < text.index("pass  image.gpt")
    for words in ("does not conform to vmspec-1.0 (1 must failed)", "partition 1, \\EFI\\BOOT", "Copy it.", "1 GiB"):
        assert words in text
    assert "a header" not in text
    assert "a header" in render_text(_report(PASSED), verbose=True)


def test_text_says_what_is_unknown() -> None:
    text = render_text(_report(PASSED, UNKNOWN))
    assert "nothing failed" in text
    assert "1 of 2 musts unknown" in text
    assert "guest.gicv2" in text


def test_unknowns_of_one_reason_share_a_line() -> None:
    other = Finding("guest.rtc-efi", Level.MUST, Verdict.UNKNOWN, "not judged")
    text = render_text(_report(UNKNOWN, other))
    assert text.count("not judged") == 1
    assert "2 requirements" in text


def test_hostile_names_never_reach_the_terminal_raw() -> None:
    nasty = "a\x1b[2Jb\rc\u202ed"
    finding = Finding("image.gpt", Level.MUST, Verdict.FAIL, nasty, (Evidence(nasty, nasty, nasty),), nasty)
    text = render_text(_report(finding, name=nasty))
    assert not any(character in text for character in "\x1b\r\u202e")
    assert "\\x1b[2J" in text
    assert json.loads(render_json([_report(finding)], profile="p", created="c"))["reports"][0]["findings"][0]["message"]


def test_json_survives_lone_surrogates() -> None:
    finding = Finding("image.gpt", Level.MUST, Verdict.FAIL, "x\udc80")
    assert render_json([_report(finding)], profile="p", created="c").encode("utf-8")


def test_colour_only_where_it_is_wanted() -> None:
    assert "\x1b[" not in render_text(_report(FAILED))
    assert "\x1b[1;31m" in render_text(_report(FAILED), style=Style(colour=True))
