"""The machine as a shell script that runs QEMU, its console on the terminal."""

from __future__ import annotations

import shlex

from armvm.firmware.discovery import EMULATORS
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import Writes, disk_names, problems, require_sound
from armvm.machine.export.source import Exported, Source, comment_lines, left_out
from armvm.machine.qemu.command import CAPABILITIES, plan


def export(source: Source) -> Exported:
    """The script. What it is given is handed on to QEMU. Raises UsageError for a machine that QEMU cannot be."""
    machine = source.machine
    require_sound(problems(machine))
    warnings = list(left_out(CAPABILITIES, machine))
    if machine.variables is None and machine.firmware.keeps_variables:
        warnings.append("without a variable store, what the firmware remembers is gone when the machine ends")
    for name, disk in zip(disk_names(machine), machine.disks, strict=True):
        if disk.writes is Writes.DISCARDED:
            warnings.append(f"what the guest writes to {name} is gone when the machine ends (snapshot=on)")
    program = EMULATORS[machine.state]
    argv = plan(machine, program=program, accelerator=source.accelerator, sandbox=False)
    lines = ["#!/bin/sh\n", comment_lines((f"{source.name}: made by armvm vm export", *warnings))]
    if source.accelerator is not AcceleratorKind.TCG:
        lines.append(comment_lines((f"for hosts with {source.accelerator.value.upper()}",)))
    lines.append("set -eu\n\n")
    if source.new_variables and machine.variables is not None:
        path = shlex.quote(str(machine.variables.path.absolute()))
        lines.append(f"[ -e {path} ] || truncate -s 64M {path}  # the firmware makes it a variable store\n")
    lines.append(f'exec {_broken(argv)} "$@"\n')
    return Exported("".join(lines), tuple(warnings))


def _broken(argv: list[str]) -> str:
    """An argument list in a shell's words, each option on a line of its own."""
    words: list[str] = []
    for argument in argv:
        quoted = shlex.quote(argument)
        words.append(f"\\\n  {quoted}" if argument.startswith("-") and words else quoted)
    return " ".join(words)
