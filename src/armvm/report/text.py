"""Reports as text that a person understands at a glance: failures first, with evidence and remedy."""

from __future__ import annotations

from armvm.printable import printable
from armvm.report.style import PLAIN, Style
from armvm.spec.verdict import Evidence, Finding, Level, Report, Verdict
from armvm.units import format_size

_WORDS = {
    Verdict.FAIL: "FAIL",
    Verdict.PASS: "pass",
    Verdict.UNKNOWN: "?",
    Verdict.NOT_APPLICABLE: "n/a",
}
_ORDER = (Verdict.FAIL, Verdict.PASS, Verdict.NOT_APPLICABLE, Verdict.UNKNOWN)


def render_text(report: Report, *, style: Style = PLAIN, verbose: bool = False) -> str:
    """One report as lines of text, each ending in a newline. ``verbose`` shows the evidence of passes too."""
    width = max((len(finding.requirement) for finding in report.findings), default=0)
    lines = [_headline(report, style), f"  {_summary(report)}", ""]
    for verdict in _ORDER:
        findings = [finding for finding in report.findings if finding.verdict is verdict]
        if verdict is Verdict.UNKNOWN and not verbose:
            lines += _grouped(findings, style)
        else:
            for finding in findings:
                lines += _finding(finding, width, style, verbose=verbose)
    return "\n".join(lines) + "\n"


def _headline(report: Report, style: Style) -> str:
    name = style.bold(printable(report.subject.name))
    if report.conforms is False:
        count = len(report.failed([Level.MUST]))
        return f"{name}: {style.bad('does not conform')} to {report.profile} ({_plural(count, 'must')} failed)"
    if report.conforms:
        return f"{name}: {style.good('conforms')} to {report.profile}"
    musts = [finding for finding in report.findings if finding.level is Level.MUST]
    unknown = sum(finding.verdict is Verdict.UNKNOWN for finding in musts)
    return (
        f"{name}: {style.good('nothing failed')} of what could be judged against {report.profile}; "
        f"{style.doubtful(f'{unknown} of {len(musts)} musts unknown')}"
    )


def _summary(report: Report) -> str:
    subject = report.subject
    facts = [printable(subject.format)] if subject.format else []
    if subject.size_bytes is not None:
        facts.append(f"{format_size(subject.size_bytes)} as the VM sees it")
    counts = ", ".join(f"{report.count(verdict)} {verdict.value}" for verdict in Verdict if report.count(verdict))
    return "; ".join([", ".join(facts), counts] if facts else [counts])


def _finding(finding: Finding, width: int, style: Style, *, verbose: bool) -> list[str]:
    word = style.verdict(finding.verdict, f"{_WORDS[finding.verdict]:<5}")
    lines = [f"  {word} {finding.requirement:<{width}}  {finding.level.value:<6}  {printable(finding.message)}"]
    if finding.verdict is Verdict.FAIL or verbose:
        for evidence in finding.evidence:
            lines += _evidence(evidence)
    elif finding.verdict is Verdict.PASS:
        # A pass with a reservation (a second ESP, say) still shows what it was that was seen.
        for evidence in finding.evidence:
            if evidence.expected is not None:
                lines += _evidence(evidence)
    if finding.verdict is Verdict.FAIL and finding.remedy:
        lines += [f"        {style.bold('remedy')}    {printable(finding.remedy)}", ""]
    return lines


def _evidence(evidence: Evidence) -> list[str]:
    lines = [f"        where     {printable(evidence.where)}", f"        found     {printable(evidence.found)}"]
    if evidence.expected is not None:
        lines.append(f"        expected  {printable(evidence.expected)}")
    return lines


def _grouped(findings: list[Finding], style: Style) -> list[str]:
    """Unknowns by their reason: a dozen lines that say the same help nobody."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        reasons.setdefault(finding.message, []).append(finding.requirement)
    lines = []
    for reason, requirements in reasons.items():
        word = style.verdict(Verdict.UNKNOWN, f"{_WORDS[Verdict.UNKNOWN]:<5}")
        lines.append(f"  {word} {_plural(len(requirements), 'requirement')} unknown: {printable(reason)}")
        lines.append(f"        {', '.join(requirements)}")
    return lines


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
