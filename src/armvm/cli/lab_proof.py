"""How ``armvm lab prove`` says what came of it: the boots, then the reports, as text or as one JSON document."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armvm.cli.report_options import fails, render
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.lab.proof import Boot, Proof

SCHEMA = "armvm.lab-proof/1"
_TAIL_LINES = 20


def deliver_proof(proof: Proof, options: argparse.Namespace, files: Sequence[tuple[str, Path]]) -> int:
    """Write the proof where it is to go, and return the exit code that it comes to."""
    if not files:
        sys.stdout.write(_rendered(proof, options.format, options, terminal=True))
    for kind, path in files:
        from armvm.atomic import write_file

        write_file(path, _rendered(proof, kind, options, terminal=False).encode("utf-8", "backslashreplace"))
    failed = any(fails(report, options) for report in proof.reports)
    return 1 if failed or proof.unjudged or not proof.unchanged or not proof.booted_everywhere else 0


def _rendered(proof: Proof, kind: str, options: argparse.Namespace, *, terminal: bool) -> str:
    if kind == "json":
        import json

        report = json.loads(render(proof.reports, "json", options, terminal=False))
        return json.dumps({"schema": SCHEMA, **_value(proof), "report": report}, indent=2) + "\n"
    lines = [f"{printable(str(proof.image))}: SHA-256 {proof.sha256}", *map(_line, proof.boots)]
    lines += [f"  {platform.title}: no verdict: {printable(why)}" for platform, why in proof.unjudged]
    lines.append("the image is unchanged" if proof.unchanged else f"THE IMAGE HAS CHANGED: {proof.sha256_after}")
    return "\n".join([*lines, "", render(proof.reports, "text", options, terminal=terminal)])


def _line(boot: Boot) -> str:
    where = f"{boot.platform.title}, {boot.state.label}"
    if not boot.possible:
        return f"  n/a     {where}: {printable(boot.why or '')}"
    if boot.why is None:
        return f"  booted  {where} ({boot.seconds:g} s)"
    reasons = [f"{one.requirement}: {one.message}" for one in boot.lacking]
    said = [f"| {printable(line)}" for line in boot.console_tail.splitlines()[-_TAIL_LINES:]]
    return "\n          ".join([f"  FAILED  {where}: {printable(boot.why)}", *reasons, *said])


def _value(proof: Proof) -> dict[str, Any]:
    return {
        "image": printable(str(proof.image)),
        "sha256": proof.sha256,
        "unchanged": proof.unchanged,
        "booted_everywhere": proof.booted_everywhere,
        "boots": [
            {
                "platform": boot.platform.value,
                "arch": boot.state.value,
                "possible": boot.possible,
                "booted": boot.possible and boot.why is None,
                "why": boot.why,
                "lacking": [{"requirement": one.requirement, "message": one.message} for one in boot.lacking],
                "seconds": boot.seconds,
                "console_tail": boot.console_tail,
            }
            for boot in proof.boots
        ],
        "unjudged": [{"platform": platform.value, "why": why} for platform, why in proof.unjudged],
    }
