"""What is known of a guest at rest, as the rooms of the audit hand it on to each other. Data only."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from armvm.disk.files import FileSystem
from armvm.disk.storage import Disk
from armvm.execution import ExecutionState
from armvm.printable import printable
from armvm.spec.verdict import Evidence


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file on one of the image's file systems; ``path`` is absolute there."""

    files: FileSystem
    path: str

    @property
    def where(self) -> str:
        """How evidence calls it: ``partition 2, /boot/vmlinuz-6.1``."""
        return f"{self.files.name}, {printable(self.path)}"

    def open(self) -> Disk:
        """Its content. Raises InputError when it is not there or cannot be read."""
        return self.files.open(self.path)


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """One line of a text file on the image: ``number`` counts from 1, ``text`` is without its line end."""

    file: PlacedFile
    number: int
    text: str

    @property
    def where(self) -> str:
        """How evidence calls it: ``partition 2, /etc/fstab, line 3``."""
        return f"{self.file.where}, line {self.number}"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One way in which the image's boot program can start a kernel.

    ``kernel`` is the kernel image itself: for a unified kernel image its ``.linux`` section, ``kernel_where`` says from
    where. ``initrds`` are concatenated in this order, each with its place. ``command_line`` is None when it could not
    be told. ``steps`` are the programs and configuration files that lead here, the boot program first. ``source`` is
    the line that gives the command line, None where no text file does. ``default`` marks what starts untouched.
    """

    title: str
    state: ExecutionState
    kernel: Disk
    kernel_where: str
    initrds: tuple[tuple[str, Disk], ...] = ()
    command_line: str | None = None
    steps: tuple[Evidence, ...] = ()
    source: PlacedLine | None = None
    default: bool = False


class AssumptionKind(enum.Enum):
    """What a guest can take for granted that the next VM does not have."""

    ROOT = "root device"
    RESUME = "resume device"
    MOUNT = "mounted device"
    ENCRYPTED = "encrypted device"
    CONSOLE = "console"
    LOGIN = "login on a console"
    NETWORK = "network interface"


@dataclass(frozen=True, slots=True)
class Assumption:
    """A line (or, without ``line``, a place) that assumes one variation of a device.

    ``replacement`` is the line that would not, where one is known: the empty string takes the line away, None leaves it
    to a human, whom ``remedy`` tells what to do. An assumption that is not ``serious`` deserves a mention and breaks no
    requirement.
    """

    kind: AssumptionKind
    why: str
    where: str
    found: str
    remedy: str
    line: PlacedLine | None = None
    replacement: str | None = None
    serious: bool = True
