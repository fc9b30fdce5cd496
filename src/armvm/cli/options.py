"""Options that every verb and every action of a verb takes."""

from __future__ import annotations

import argparse


class Parser(argparse.ArgumentParser):
    """argparse with descriptions and examples kept as they are written, and no guessing of abbreviations."""

    def __init__(self, **keywords: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **keywords)  # type: ignore[arg-type]


def common_options() -> Parser:
    """The parent parser of every verb and action: ``-v`` and ``-q``.

    Their defaults stand in the top parser: a default here would undo, in an action, what was given before it.
    """
    common = Parser(add_help=False)
    common.add_argument(
        "-v", "--verbose", action="count", default=argparse.SUPPRESS, help="say more; tracebacks of faults"
    )
    common.add_argument(
        "-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="say only results and errors"
    )
    return common


def seconds(text: str) -> float:
    """A time in seconds, as the type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"not a time in seconds: {text!r}")
    return value
