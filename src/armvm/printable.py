"""Foreign text made safe to show: no control character of an image or a guest reaches a terminal raw."""

from __future__ import annotations

import unicodedata

_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories never shown raw: controls, format characters (bidi overrides among them), surrogates, private
use, unassigned, and the line and paragraph separators."""


def printable(text: str) -> str:
    """Escape everything in ``text`` that could steer a terminal or mislead a reader; plain text comes back as is."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _HARMFUL else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
