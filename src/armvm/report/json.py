"""Reports as JSON, schema ``armvm.report/1``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from armvm.spec.verdict import Evidence, Finding, Report, Verdict
from armvm.version import __version__

SCHEMA = "armvm.report/1"


def render_json(reports: Sequence[Report], *, profile: str, created: str) -> str:
    """All reports of one run as one JSON document. ``created`` is an RFC 3339 time."""
    document = {
        "schema": SCHEMA,
        "tool": {"name": "armvm", "version": __version__},
        "profile": profile,
        "created": created,
        "reports": [report_value(report) for report in reports],
    }
    # Names from an image may hold lone surrogates, which are no valid UTF-8: ASCII escapes carry them unharmed.
    return json.dumps(document, indent=2, ensure_ascii=True) + "\n"


def report_value(report: Report) -> dict[str, Any]:
    """One report as the value that stands for it in JSON."""
    subject = {"kind": report.subject.kind, "name": report.subject.name}
    return {
        "subject": {**subject, "format": report.subject.format, "size_bytes": report.subject.size_bytes},
        "conforms": report.conforms,
        "summary": {verdict.value: report.count(verdict) for verdict in Verdict},
        "findings": [_finding(finding) for finding in report.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "requirement": finding.requirement,
        "level": finding.level.value,
        "verdict": finding.verdict.value,
        "message": finding.message,
        "evidence": [_evidence(evidence) for evidence in finding.evidence],
        "remedy": finding.remedy,
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {"where": evidence.where, "found": evidence.found, "expected": evidence.expected}
