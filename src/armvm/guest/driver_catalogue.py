"""The drivers that the specification names, from drivers.toml: symbols, modules, and marks in a kernel image."""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from armvm.execution import ExecutionState


class Role(enum.Enum):
    """What a driver is for."""

    CONSOLE = "console"
    INTERRUPT_CONTROLLER = "interrupt-controller"
    CLOCK = "clock"
    TRANSPORT = "transport"
    BLOCK = "block"
    NETWORK = "network"
    BALLOON = "balloon"
    SCSI = "scsi"
    DESCRIPTION = "description"
    HYPERVISOR = "hypervisor"


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver: its Kconfig ``symbols`` (the present one first), its ``module`` (None: it can only be built in)."""

    id: str
    title: str
    role: Role
    symbols: tuple[str, ...]
    module: str | None
    marks: frozenset[bytes]
    states: frozenset[ExecutionState]

    @property
    def label(self) -> str:
        """Its title, and the module's name where it has one."""
        return f"{self.title} ({self.module})" if self.module else self.title


@cache
def drivers() -> Mapping[str, Driver]:
    """Every driver that is known, by its id."""
    data = tomllib.loads(Path(__file__).with_name("drivers.toml").read_text(encoding="utf-8"))
    every = [state.value for state in ExecutionState]
    return {
        name: Driver(
            id=name,
            title=entry["title"],
            role=Role(entry["role"]),
            symbols=tuple(entry["symbols"]),
            module=entry.get("module"),
            marks=frozenset(mark.encode() for mark in entry["marks"]),
            states=frozenset(ExecutionState(value) for value in entry.get("states", every)),
        )
        for name, entry in data.items()
    }


@cache
def all_marks() -> frozenset[bytes]:
    """The marks of every driver."""
    return frozenset().union(*(driver.marks for driver in drivers().values()))


@cache
def all_modules() -> frozenset[str]:
    """The modules of every driver."""
    return frozenset(driver.module for driver in drivers().values() if driver.module is not None)
