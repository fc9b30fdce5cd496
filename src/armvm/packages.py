"""Which package brings which component on which distribution, and the command that installs it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Component:
    """Something armvm uses: a program or a firmware image, what it is for, and its package by distribution family.

    ``file`` is where it stands, for what cannot be run to say its version.
    """

    name: str
    purpose: str
    required: bool
    packages: Mapping[str, str]
    file: str | None = None


@cache
def _data() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(Path(__file__).with_name("packages.toml").read_text(encoding="utf-8"))


def components() -> tuple[Component, ...]:
    """Every component that armvm knows of."""
    return tuple(
        Component(name, entry["purpose"], entry.get("required", False), entry["packages"], entry.get("file"))
        for name, entry in _data()["components"].items()
    )


def families() -> tuple[str, ...]:
    """The distribution families whose package names are known."""
    return tuple(_data()["installers"])


@cache
def distribution_family() -> str | None:
    """The distribution family of this machine, or None when it is not known."""
    if sys.platform == "darwin":
        return "homebrew"
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = {key: value.strip().strip("\"'") for key, _, value in (line.partition("=") for line in text.splitlines())}
    for name in (fields.get("ID", ""), *fields.get("ID_LIKE", "").split()):
        family = str(_data()["aliases"].get(name, name))
        if family in _data()["installers"]:
            return family
    return None


def install_command(component: str, family: str | None = None) -> str | None:
    """The exact command that installs ``component`` on this machine (or on ``family``); None when there is none."""
    return install_command_for([component], family)


def install_command_for(wanted: Iterable[str], family: str | None = None) -> str | None:
    """One command that installs all the components ``wanted`` that are packaged; None when none of them is."""
    family = family or distribution_family()
    known = _data()["components"]
    packages = (known.get(name, {}).get("packages", {}).get(family) for name in wanted)
    names = " ".join(dict.fromkeys(package for package in packages if package))
    return f"{_data()['installers'][family]} {names}" if names else None
