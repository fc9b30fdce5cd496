"""Where armvm keeps things of this user (the XDG Base Directory Specification)."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of everything that armvm keeps: $ARMVM_HOME, or armvm in $XDG_DATA_HOME."""
    own = os.environ.get("ARMVM_HOME")
    return Path(own).absolute() if own else _base("XDG_DATA_HOME", ".local/share") / "armvm"


def cache() -> Path:
    """The folder of what can be made again: armvm in $XDG_CACHE_HOME."""
    return _base("XDG_CACHE_HOME", ".cache") / "armvm"


def _base(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    # The specification: a relative path is to be ignored.
    return Path(value) if value.startswith("/") else Path.home() / default
