"""``armvm doctor``: what this machine can run, what is missing, and the command that installs it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armvm import __version__
from armvm.cli.terminal import stdout_style
from armvm.errors import ArmvmError, MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.firmware.descriptor import Skipped
from armvm.firmware.discovery import Firmware, find_firmware, skipped_descriptors
from armvm.home import home
from armvm.machine import backends
from armvm.machine.accelerators import Accelerator, survey
from armvm.machine.backends import Availability
from armvm.packages import Component, components, distribution_family, families, install_command, install_command_for
from armvm.printable import printable
from armvm.process import ProgramError, find_program, run
from armvm.report.style import Style
from armvm.units import format_size

SCHEMA = "armvm.doctor/1"

DESCRIPTION = """Say what this machine can run, what is missing, and the command that installs it.

Exits with 0 when everything is there that armvm cannot do without, with 69 when something of it is missing."""
EXAMPLES = """  armvm doctor
  armvm doctor --json
  armvm doctor --install-command
  armvm doctor --install-command --family fedora"""

_MISSING = MissingError.exit_code
_VERSION_TIMEOUT_SECONDS = 20
_VERSION = re.compile(r"\d+(?:\.\d+)+\S*")
_FIRMWARE_OF = {f"firmware-{state.value}": state for state in ExecutionState}
_VERSION_OPTION: dict[str, str | None] = {
    "mke2fs": "-V",
    "e2fsck": "-V",
    "debugfs": "-V",
    "resize2fs": None,
    "ssh": "-V",
    "ssh-keygen": None,
    "openssl": "version",
    "qemu-bridge-helper": None,
    "iasl": "-v",
}
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of one component. ``trouble`` says why it cannot be used although it is there."""

    component: Component
    path: str | None = None
    version: str | None = None
    firmware: Firmware | None = None
    trouble: str | None = None

    @property
    def present(self) -> bool:
        """Whether it is there and can be used."""
        return self.path is not None and self.trouble is None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that is known of this machine."""

    found: tuple[Found, ...]
    accelerators: dict[ExecutionState, tuple[Accelerator, ...]]
    backends: tuple[Availability, ...]
    skipped: tuple[Skipped, ...]
    state_folder: Path
    free_bytes: int | None

    @property
    def ready(self) -> bool:
        """Whether everything is there that is required."""
        return all(one.present for one in self.found if one.component.required)

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the components that are not there."""
        return tuple(one.component.name for one in self.found if not one.present)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("--json", action="store_true", help=f"as JSON ({SCHEMA})")
    parser.add_argument(
        "--install-command", action="store_true", help="only print the command that installs everything armvm can use"
    )
    parser.add_argument(
        "--family", choices=families(), help="for this family of distributions (default: this machine's)"
    )


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    if options.install_command:
        return _print_install_command(options.family, quiet=options.quiet)
    if options.family:
        raise UsageError("--family says for whom --install-command is", hint="give both, or neither")
    diagnosis = diagnose()
    if options.json:
        print(json.dumps(_as_json(diagnosis), indent=2))
    else:
        for line in _render(diagnosis, stdout_style(), verbose=options.verbose > 0):
            print(line)
    return 0 if diagnosis.ready else _MISSING


def diagnose() -> Diagnosis:
    """Look at this machine."""
    folder = home()
    try:
        free_bytes = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free
    except (OSError, StopIteration):
        free_bytes = None
    return Diagnosis(
        found=tuple(map(_look_for, components())),
        accelerators={state: survey(state) for state in ExecutionState},
        backends=backends.survey(),
        skipped=skipped_descriptors(),
        state_folder=folder,
        free_bytes=free_bytes,
    )


def _look_for(component: Component) -> Found:
    state = _FIRMWARE_OF.get(component.name)
    if state is not None:
        try:
            firmware = find_firmware(state)
        except MissingError:
            return Found(component)
        return Found(component, str(firmware.code), firmware=firmware)
    if component.file is not None:
        return Found(component, component.file if (_ROOT / component.file.lstrip("/")).exists() else None)
    path = find_program(component.name)
    if path is None:
        return Found(component)
    option = _VERSION_OPTION.get(component.name, "--version")
    if option is None:  # a program that cannot be asked
        return Found(component, path)
    try:
        said = run(component.name, [option], timeout_seconds=_VERSION_TIMEOUT_SECONDS)
    except (ProgramError, OSError) as error:
        return Found(component, path, trouble=error.message if isinstance(error, ArmvmError) else str(error))
    match = _VERSION.search(said.stdout.decode(errors="replace") or said.stderr)
    return Found(component, path, version=match[0].rstrip(",)") if match else None)


def _print_install_command(family: str | None, *, quiet: bool) -> int:
    family = family or distribution_family()
    if family is None:
        raise UsageError(
            "this machine's distribution is not known", hint=f"choose with --family one of {', '.join(families())}"
        )
    every = components()
    print(install_command_for((component.name for component in every), family))
    unpackaged = [component for component in every if family not in component.packages]
    if unpackaged and not quiet:
        names = ", ".join(component.name for component in unpackaged)
        print(f"armvm: {family} has no package of: {names}", file=sys.stderr)
    return 0


def _render(diagnosis: Diagnosis, style: Style, *, verbose: bool) -> list[str]:
    system = os.uname()
    family = distribution_family() or "unknown distribution"
    lines = [f"{system.sysname} {system.machine} ({family}), Python {sys.version.split()[0]}, armvm {__version__}", ""]
    width = max(len(one.component.name) for one in diagnosis.found)
    for one in diagnosis.found:
        lines += _render_component(one, style, width)
    lines += ["", style.bold("Hypervisors that --backend chooses")]
    for backend in diagnosis.backends:
        mark = style.good("ok     ") if backend.available else "no     "
        lines.append(f"  {mark} {backend.name}: {backend.detail}")
    for state, accelerators in diagnosis.accelerators.items():
        lines += ["", style.bold(f"{state.label} machines are run with")]
        for accelerator in accelerators:
            mark = style.good("ok     ") if accelerator.available else "no     "
            lines.append(f"  {mark} {accelerator.kind.value}: {accelerator.detail}")
    free = "" if diagnosis.free_bytes is None else f", {format_size(diagnosis.free_bytes)} free"
    lines += ["", f"{style.bold('Instances')} are kept in {printable(str(diagnosis.state_folder))}{free}"]
    if verbose and diagnosis.skipped:
        lines += ["", style.bold("Firmware descriptors that were passed over")]
        lines += [f"  {printable(str(one.source))}: {printable(one.reason)}" for one in diagnosis.skipped]
    if diagnosis.missing:
        command = install_command_for(diagnosis.missing)
        lines += ["", f"{style.bold('To install what is missing:')} {command or 'no package is known here'}"]
    return lines


def _render_component(one: Found, style: Style, width: int) -> list[str]:
    component = one.component
    if one.present:
        mark = style.good("ok     ")
        what = one.version or ("" if one.firmware is None else printable(f"{one.path} ({one.firmware.source})"))
    else:
        mark = style.bad("missing") if component.required else style.doubtful("missing")
        what = printable(one.trouble) if one.trouble else ("required" if component.required else "optional")
    return [f"{mark} {style.bold(f'{component.name:<{width}}')}  {what}", f"{'':8}{component.purpose}"]


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Every key is always there; what is not known is null."""
    system = os.uname()
    return {
        "schema": SCHEMA,
        "tool": {"name": "armvm", "version": __version__},
        "ready": diagnosis.ready,
        "host": {
            "system": system.sysname,
            "machine": system.machine,
            "family": distribution_family(),
            "python": sys.version.split()[0],
        },
        "components": [_component_as_json(one) for one in diagnosis.found],
        "accelerators": {
            state.value: [
                {"name": one.kind.value, "available": one.available, "detail": one.detail} for one in accelerators
            ]
            for state, accelerators in diagnosis.accelerators.items()
        },
        "backends": [
            {"name": one.name, "purpose": one.purpose, "available": one.available, "detail": one.detail}
            for one in diagnosis.backends
        ],
        "skipped_descriptors": [{"path": str(one.source), "reason": one.reason} for one in diagnosis.skipped],
        "state_folder": {"path": str(diagnosis.state_folder), "free_bytes": diagnosis.free_bytes},
        "install_missing": install_command_for(diagnosis.missing) if diagnosis.missing else None,
    }


def _component_as_json(one: Found) -> dict[str, Any]:
    firmware = one.firmware
    return {
        "name": one.component.name,
        "purpose": one.component.purpose,
        "required": one.component.required,
        "present": one.present,
        "path": one.path,
        "version": one.version,
        "trouble": one.trouble,
        "install": install_command(one.component.name),
        "firmware": None
        if firmware is None
        else {
            "name": firmware.name,
            "kind": firmware.kind.value,
            "format": firmware.code_format,
            "vars_template": None if firmware.vars_template is None else str(firmware.vars_template),
            "source": firmware.source,
        },
    }
