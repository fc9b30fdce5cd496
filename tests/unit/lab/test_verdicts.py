from __future__ import annotations

import json
from typing import Any

import pytest

from armvm.errors import InputError
from armvm.lab.verdicts import parse_reports
from armvm.report.json import render_json
from armvm.spec.verdict import Evidence, Finding, Level, Report, Subject, Verdict

REPORT = Report(
    Subject("platform", "a machine", None, 5),
    "vmspec-1.0",
    (
        Finding("platform.gic", Level.MUST, Verdict.PASS, "there is one", (Evidence("here", "a", "b"),), None),
        Finding("platform.psci", Level.SHOULD, Verdict.FAIL, "none", (), "get one"),
    ),
)


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(render_json([REPORT], profile="vmspec-1.0", created="2026-01-01T00:00:00Z"))
    return document


def test_a_report_comes_back_as_it_was() -> None:
    assert parse_reports(json.dumps(_document()).encode(), subject="x") == (REPORT,)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "armvm.report/2"},
        {"profile": 1},
        {"reports": {}},
        {"reports": [None]},
        {"reports": [{}] * 65},
        {"reports": [{"subject": {"kind": "image", "name": "x", "size_bytes": -1}, "findings": []}]},
        {"reports": [{"subject": {"kind": "image", "name": []}, "findings": []}]},
        {"reports": [{"subject": {"kind": "image", "name": "x"}, "findings": [{"requirement": "x"}]}]},
    ],
)
def test_what_is_no_report_is_said_to_be_none(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the thing"):
        parse_reports(json.dumps({**_document(), **change}).encode(), subject="the thing")


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"null", b"3", b"\xff", b'"x"', b"[]"])
def test_what_is_not_even_that(content: bytes) -> None:
    with pytest.raises(InputError):
        parse_reports(content, subject="the thing")


@pytest.mark.parametrize(("field", "value"), [("verdict", "fine"), ("level", "perhaps"), ("message", None)])
def test_findings_are_held_to_their_kinds(field: str, value: object) -> None:
    document = _document()
    document["reports"][0]["findings"][0][field] = value
    with pytest.raises(InputError):
        parse_reports(json.dumps(document).encode(), subject="x")
