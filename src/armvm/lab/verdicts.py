"""Reading a report back: ``armvm.report/1``, as an armvm inside a nested host wrote it. Nothing of it is trusted."""

from __future__ import annotations

import json
from typing import Any

from armvm.errors import InputError
from armvm.spec.verdict import Evidence, Finding, Level, Report, Subject, Verdict

SCHEMA = "armvm.report/1"
_MOST_BYTES = 16 << 20
_MOST_REPORTS = 64
_MOST_FINDINGS = 1000
_MOST_EVIDENCE = 1000


def parse_reports(content: bytes, *, subject: str) -> tuple[Report, ...]:
    """The reports in a JSON document. Raises InputError, with ``subject``, when it is none."""
    if len(content) > _MOST_BYTES:
        raise InputError("larger than any report", subject=subject, expected=f"at most {_MOST_BYTES} bytes")
    try:
        document = json.loads(content)
        if document["schema"] != SCHEMA:
            raise InputError("not a report", subject=subject, found=repr(document["schema"])[:80], expected=SCHEMA)
        profile = _text(document["profile"])
        return tuple(_report(value, profile) for value in _list(document["reports"], _MOST_REPORTS))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"not a report: {type(error).__name__}: {str(error)[:200]}"
        raise InputError(message, subject=subject, expected=SCHEMA) from error


def _report(value: dict[str, Any], profile: str) -> Report:
    about = value["subject"]
    size = about.get("size_bytes")
    subject = Subject(_text(about["kind"]), _text(about["name"]), _optional(about.get("format")), _size(size))
    return Report(subject, profile, tuple(_finding(entry) for entry in _list(value["findings"], _MOST_FINDINGS)))


def _finding(value: dict[str, Any]) -> Finding:
    return Finding(
        _text(value["requirement"]),
        Level(value["level"]),
        Verdict(value["verdict"]),
        _text(value["message"]),
        tuple(
            Evidence(_text(entry["where"]), _text(entry["found"]), _optional(entry.get("expected")))
            for entry in _list(value["evidence"], _MOST_EVIDENCE)
        ),
        _optional(value.get("remedy")),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:80]!r} where a text is to be")
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _text(value)


def _size(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or value < 0):
        raise TypeError(f"{str(value)[:80]!r} where a size is to be")
    return value


def _list(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TypeError(f"no list of at most {most}")
    return value
