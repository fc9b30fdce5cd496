"""What running GRUB's configuration is made of: loads, entries, variables, and the turns of its control flow."""

from __future__ import annotations

from dataclasses import dataclass, field

from armvm.guest.facts import PlacedFile, PlacedLine
from armvm.guest.grub_script import Block
from armvm.guest.trouble import Trouble


@dataclass(frozen=True, slots=True)
class GrubLoad:
    """What a menu entry loads. ``program`` is the kernel, or with ``chained`` an EFI program; None when not there.

    ``troubles`` keep it from starting. ``source`` is the line with the command line.
    """

    program: PlacedFile | None
    source: PlacedLine
    command_line: str | None = None
    initrds: tuple[PlacedFile, ...] = ()
    chained: bool = False
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True, slots=True)
class GrubEntry:
    """A menu entry, run. ``trail`` are the configuration files that lead to it, ``troubles`` everything in its way.

    ``default`` marks what starts untouched (of a submenu, its own default), ``fallback`` what starts when that fails.
    An entry that is not ``certain`` is in the menu only if a condition holds that cannot be told.
    """

    title: str
    line: PlacedLine
    trail: tuple[PlacedFile, ...]
    loads: tuple[GrubLoad, ...]
    troubles: tuple[Trouble, ...]
    default: bool = False
    fallback: bool = False
    certain: bool = True


@dataclass(frozen=True, slots=True)
class GrubResult:
    """What a configuration comes to. ``troubles`` happened on the way to the menu; ``waits``: no timeout is set."""

    entries: tuple[GrubEntry, ...]
    troubles: tuple[Trouble, ...]
    waits: bool = False


@dataclass(slots=True)
class MenuItem:
    """An entry or submenu as the configuration defines it. ``source`` replaces its lines (blscfg's entry files)."""

    title: str
    id: str
    line: PlacedLine
    body: Block
    arguments: tuple[str | None, ...]
    trail: tuple[PlacedFile, ...]
    submenu: bool = False
    certain: bool = True
    source: PlacedLine | None = None


@dataclass(slots=True)
class Environment:
    """GRUB's variables: a value of None is set, and nobody knows to what."""

    values: dict[str, str | None] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)

    def copy(self) -> Environment:
        """The same values, to be changed apart."""
        return Environment(dict(self.values), set(self.exported))

    def inner(self) -> Environment:
        """What a new context starts with: the exported variables (grub_env_context_open)."""
        return Environment({k: v for k, v in self.values.items() if k in self.exported}, set(self.exported))


@dataclass(frozen=True, slots=True)
class Call:
    """One command about to run: its name and arguments, expanded; its block."""

    name: str
    arguments: tuple[str | None, ...]
    line: PlacedLine
    block: Block | None = None


class Leave(Exception):  # noqa: N818 - control flow, no error
    """Leaves what is being run."""


class Halt(Leave):
    """GRUB goes no further here: it boots, shows its menu, or ends."""


class Return(Leave):
    """``return`` from a function, with its result."""

    def __init__(self, result: bool | None) -> None:
        super().__init__()
        self.result = result


class LeaveLoop(Leave):
    """``break`` and ``continue``; ``levels`` counts the loops to leave."""

    def __init__(self, levels: int, *, again: bool) -> None:
        super().__init__()
        self.levels = levels
        self.again = again


class OutOfBounds(Exception):  # noqa: N818 - control flow: a limit is reached, everything ends
    """A limit is reached."""
