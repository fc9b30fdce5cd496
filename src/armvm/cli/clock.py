"""The time that goes into what we write: now, or SOURCE_DATE_EPOCH where a build has to be reproducible."""

from __future__ import annotations

import os
import time

from armvm.errors import UsageError


def timestamp() -> int:
    """Seconds since 1970 (https://reproducible-builds.org/specs/source-date-epoch/). Raises UsageError for nonsense."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return int(time.time())
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise UsageError(f"SOURCE_DATE_EPOCH is no number of seconds: {text!r}")
    return int(text)


def created() -> str:
    """The same as an RFC 3339 time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp()))
