"""How the programs of another architecture are run while a root tree is set up, so that the host stays as it is.

Three ways, best first: natively; with QEMU's user emulation in namespaces that have a binfmt_misc of their own
(Linux ≥ 6.7); with what the host itself has registered. Source: Linux, Documentation/admin-guide/binfmt-misc.rst.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from armvm.distribution.namespace import MOUNT_POINT
from armvm.distribution.recipe import Architecture
from armvm.errors import MissingError
from armvm.packages import install_command
from armvm.process import find_program, require_program, run

_INTERPRETERS = {
    Architecture.ARM64: ("qemu-aarch64-static", "qemu-aarch64"),
    Architecture.ARMHF: ("qemu-arm-static", "qemu-arm"),
}
_MACHINES = {Architecture.ARM64: ("aarch64", "arm64"), Architecture.ARMHF: ("armv7l", "armv8l", "armhf")}
_IDENT = {Architecture.ARM64: (2, 0xB7), Architecture.ARMHF: (1, 0x28)}
_OWN_BINFMT = (6, 7)
_PROBE_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Emulation:
    """How foreign programs run.

    ``wrapper`` goes before the command; ``setup`` is shell text that mmdebstrap runs first in its own namespaces;
    ``how`` says it to a person.
    """

    how: str
    wrapper: tuple[str, ...] = ()
    setup: str | None = None


def registration(architecture: Architecture, interpreter: str) -> str:
    """The binfmt_misc registration of ``interpreter`` for programs of ``architecture``, opened at once (F)."""
    elf_class, machine = _IDENT[architecture]
    # ELF magic, class, little-endian, version 1, any ABI; executable or shared object (the mask lets both through).
    magic = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9) + bytes([2, 0, machine, 0])
    mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
    escaped = ["".join(f"\\x{byte:02x}" for byte in part) for part in (magic, mask)]
    return f":armvm-{architecture.value}:M::{escaped[0]}:{escaped[1]}:{interpreter}:PF"


def choose_emulation(architecture: Architecture) -> Emulation:
    """The best way on this machine. Raises MissingError, with the command that helps, when there is none."""
    if os.uname().machine in _MACHINES[architecture]:
        return Emulation("natively")
    own = _own_binfmt(architecture)
    if own is not None:
        return own
    if _registered(architecture):
        return Emulation("with the host's registered QEMU")
    component = _INTERPRETERS[architecture][0]
    raise MissingError(
        f"programs for {architecture.value} cannot be run here, which setting up a root tree needs",
        component=component,
        install=install_command(component),
        hint=None
        if find_program(_INTERPRETERS[architecture][0]) is None
        else "this kernel is older than 6.7: register QEMU with `systemctl restart systemd-binfmt`, as root",
    )


def _own_binfmt(architecture: Architecture) -> Emulation | None:
    interpreter = next(filter(None, map(find_program, _INTERPRETERS[architecture])), None)
    if interpreter is None or sys.platform != "linux" or _kernel_version() < _OWN_BINFMT:
        return None
    text = registration(architecture, str(Path(interpreter).resolve()))
    how = f"with {Path(interpreter).name} in namespaces of its own"
    if os.geteuid() == 0:
        wrapper = (sys.executable, "-P", "-m", "armvm.distribution.namespace", "--binfmt", text, "--")
        tried = run(wrapper[0], [*wrapper[1:], "true"], timeout_seconds=_PROBE_TIMEOUT_SECONDS, check=False)
        return Emulation(how, wrapper) if tried.returncode == 0 else None
    require_program("newuidmap")
    register = f"printf %s {shlex.quote(text)} > {MOUNT_POINT}/register"
    return Emulation(how, setup=f"mount -t binfmt_misc binfmt_misc {MOUNT_POINT} && {register}")


def _kernel_version() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _registered(architecture: Architecture) -> bool:
    """Whether the host runs such programs in any root tree: registered, enabled, and opened at once (flag F)."""
    elf_class, machine = _IDENT[architecture]
    wanted = f"7f454c46{elf_class:02x}0101".ljust(32, "0") + f"0200{machine:02x}00"
    try:
        entries = list(Path(MOUNT_POINT).iterdir())
    except OSError:
        return False
    for entry in entries:
        try:
            text = entry.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if (
            text.startswith("enabled\n")
            and f"magic {wanted}" in text
            and re.search(r"^flags: \w*F", text, re.MULTILINE)
        ):
            return True
    return False
