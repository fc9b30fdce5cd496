"""What every verb that judges has in common: which profile, what fails it, and where the report goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from armvm.cli.clock import created
from armvm.errors import UsageError
from armvm.spec.catalogue import DEFAULT_PROFILE, PROFILES
from armvm.spec.verdict import Level, Report, Verdict

FORMATS = ("text", "json")
_LATER_FORMATS = ("junit", "sarif", "html", "markdown")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("the verdict and the report")
    group.add_argument(
        "--profile", choices=PROFILES, default=DEFAULT_PROFILE, help="which version of the specification (%(default)s)"
    )
    group.add_argument(
        "--fail-on", choices=("must", "should"), default="must", help="what makes the exit code 1 (default: must)"
    )
    group.add_argument("--strict", action="store_true", help="unknown counts as failed")
    group.add_argument("--format", choices=FORMATS, default="text", help="on standard output (default: text)")
    group.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="[FORMAT:]FILE",
        help="write the report there instead; repeatable, FORMAT is text or json (default: as --format)",
    )


def outputs(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """The (format, file) pairs asked for. Raises UsageError for a format that is none: before any work is done."""
    return [_output(text, options.format) for text in options.output]


def deliver(reports: Sequence[Report], options: argparse.Namespace, files: Sequence[tuple[str, Path]]) -> int:
    """Write the reports where they are to go, and return the exit code that they come to."""
    if not files:
        sys.stdout.write(render(reports, options.format, options, terminal=True))
    for kind, path in files:
        from armvm.atomic import write_file

        write_file(path, render(reports, kind, options, terminal=False).encode("utf-8", "backslashreplace"))
    return 1 if any(fails(report, options) for report in reports) else 0


def fails(report: Report, options: argparse.Namespace) -> bool:
    """Whether a report fails, as --fail-on and --strict have it."""
    levels = [Level.MUST] if options.fail_on == "must" else [Level.MUST, Level.SHOULD]
    bad = (Verdict.FAIL, Verdict.UNKNOWN) if options.strict else (Verdict.FAIL,)
    return any(finding.level in levels and finding.verdict in bad for finding in report.findings)


def render(reports: Sequence[Report], format: str, options: argparse.Namespace, *, terminal: bool) -> str:
    """The reports in one of FORMATS."""
    if format == "json":
        from armvm.report.json import render_json

        return render_json(reports, profile=options.profile, created=created())
    from armvm.cli.terminal import stdout_style
    from armvm.report.style import PLAIN
    from armvm.report.text import render_text

    style = stdout_style() if terminal else PLAIN
    return "\n".join(render_text(report, style=style, verbose=options.verbose > 0) for report in reports)


def _output(text: str, default: str) -> tuple[str, Path]:
    word, colon, rest = text.partition(":")
    if colon and word in FORMATS:
        return word, Path(rest)
    if colon and word in _LATER_FORMATS:
        raise UsageError(f"the report format {word} is not part of this release", hint=f"formats: {', '.join(FORMATS)}")
    return default, Path(text)
