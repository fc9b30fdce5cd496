"""libvirt by its own program: ``virsh`` with an explicit connection, and what it says as errors of ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from armvm.errors import MachineError, UsageError
from armvm.printable import printable
from armvm.process import ProgramError, require_program, run

_SECONDS = 60.0
PLAIN = {"LC_ALL": "C"}
"""The environment in which it speaks the language that is parsed here."""


@dataclass(frozen=True, slots=True)
class Virsh:
    """A connection to a libvirt of this host, by its URI."""

    uri: str

    def call(self, *arguments: str, timeout_seconds: float = _SECONDS) -> str:
        """Run one command and return what it prints. Raises MachineError with libvirt's own words."""
        try:
            done = run("virsh", ["-q", "-c", self.uri, *arguments], timeout_seconds=timeout_seconds, env=PLAIN)
        except ProgramError as error:
            said = error_of(error.stderr) or error.message
            raise MachineError(f"libvirt ({self.uri}): {said}", output_tail=error.stderr) from None
        return done.stdout.decode(errors="replace")

    def command(self, script: Sequence[Sequence[str]]) -> list[str]:
        """The argument list of one virsh that does several commands, one after the other, on one connection."""
        text = "; ".join(" ".join(map(_quoted, words)) for words in script)
        settings = [f"{name}={value}" for name, value in PLAIN.items()]
        return [require_program("env"), *settings, require_program("virsh"), "-c", self.uri, text]


def connection(uri: str | None = None) -> Virsh:
    """The libvirt at ``uri``: by default $LIBVIRT_DEFAULT_URI, or the user's own session (root has none: the system's).

    Raises UsageError for one that is no QEMU's on this host, MissingError when virsh is not installed.
    """
    if uri is None:
        uri = os.environ.get("LIBVIRT_DEFAULT_URI") or ("qemu:///session" if os.geteuid() else "qemu:///system")
    parts = urlsplit(uri)
    if parts.scheme not in {"qemu", "qemu+unix"} or parts.netloc:
        raise UsageError(f"not the URI of QEMU at a libvirt of this host: {uri!r}", hint="for example qemu:///session")
    require_program("virsh")
    return Virsh(uri)


def error_of(stderr: str) -> str:
    """The last that virsh complained of, without its word for that."""
    lines = [line.removeprefix("error: ") for line in stderr.splitlines() if line.startswith("error: ")]
    return printable(lines[-1]) if lines else ""


def log_file(domain: str) -> Path:
    """Where a user's session keeps the log of a domain, unless it was told otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return folder / "libvirt/qemu/log" / f"{domain}.log"


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
