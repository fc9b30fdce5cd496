"""The words of a kernel's command line, and changing some of them in the line of text that gives it.

Source: Linux, lib/cmdline.c (next_arg): words end at spaces outside double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from armvm.guest.facts import Assumption, AssumptionKind, PlacedLine

_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_MOST_WORDS = 1000


@dataclass(frozen=True, slots=True)
class WordFault:
    """What is wrong with a word of a command line.

    ``found`` is what evidence shows (it may be several words), ``new`` what would stand in the place of ``word``: the
    empty string takes it away, None says that nobody knows.
    """

    kind: AssumptionKind
    why: str
    word: str
    new: str | None
    remedy: str
    found: str = ""
    serious: bool = True


def split_words(command_line: str) -> tuple[str, ...]:
    """The words of a command line, quotes kept."""
    return tuple(_WORD.findall(command_line)[:_MOST_WORDS])


def option_value(command_line: str, name: str) -> str | None:
    """The value of the last ``name=value``, without quotes; None when there is none."""
    values = [word.partition("=")[2] for word in split_words(command_line) if word.partition("=")[0] == name]
    return values[-1].strip('"') if values else None


def assumptions_of(faults: Sequence[WordFault], *, where: str, line: PlacedLine | None) -> tuple[Assumption, ...]:
    """The faults of one command line as assumptions.

    Their replacement is the same line: the one in which everything that can be put right is.
    """
    fixed = line.text if line is not None else ""
    mended: set[str] = set()
    for fault in faults:
        if fault.new is not None:
            changed = _replace_word(fixed, fault.word, fault.new)
            if changed is not None:
                fixed = changed
                mended.add(fault.word)
    return tuple(
        Assumption(
            kind=fault.kind,
            why=fault.why,
            where=where,
            found=fault.found or fault.word,
            remedy=fault.remedy,
            line=line,
            replacement=fixed if fault.word in mended else None,
            serious=fault.serious,
        )
        for fault in faults
    )


def _replace_word(text: str, word: str, new: str) -> str | None:
    """``text`` with every ``word`` replaced, which ends at spaces, quotes or the line's end; None when it is not there.

    ``new`` that goes on from ``word`` (``console=a console=b``) stands for the last of them only.
    """
    pattern = re.compile(rf"(?<![^\s\"'=]){re.escape(word)}(?![^\s\"'])")
    found = list(pattern.finditer(text))
    if not found:
        return None
    if new.startswith(f"{word} "):
        found = found[-1:]
    for match in reversed(found):
        start, end = match.span()
        if not new:  # one of the spaces around it goes too
            if text[start - 1 : start] in (" ", "\t"):
                start -= 1
            elif text[end : end + 1] in (" ", "\t"):
                end += 1
        text = text[:start] + new + text[end:]
    return text
