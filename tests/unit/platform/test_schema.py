"""dtschema's word is taken where it is installed, and not missed where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.platform.check import check_platform
from armvm.platform.schema import schema_warnings
from armvm.spec.verdict import Verdict
from tools.probe_logs import finding, good

SCRIPT = """#!/bin/sh
[ "$(head -c 4 "$1" | od -An -tx1 | tr -d ' ')" = d00dfeed ] || exit 3
echo "$1: /psci: 'method' is a required \x1bproperty" >&2
echo "	from schema \\$id: http://devicetree.org/schemas/arm/psci.yaml" >&2
echo "$1: /psci: b'x' is not of type 'object', 'integer', 'array', 'boolean', 'null'" >&2
exit 1
"""


def test_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armvm.platform.schema.find_program", lambda _name: None)
    assert schema_warnings(b"") == ()


def test_its_warnings_are_shown_and_fail_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dt-validate"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    story = good()
    warnings = schema_warnings(story.fdt() or b"")
    assert warnings == ("/psci: 'method' is a required \\x1bproperty",)
    report = check_platform(story.observation(), machine=story.machine, schema_warnings=warnings)
    entry = finding(report, "description.fdt-complete")
    assert entry.verdict is Verdict.PASS
    assert warnings[0] in [evidence.found for evidence in entry.evidence]
