"""QEMU's firmware descriptors: the JSON files by which distributions and administrators say what firmware there is.

Format and precedence: QEMU docs/interop/firmware.json. Descriptors are foreign: a broken one is skipped with a reason.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from armvm.execution import ExecutionState

_MOST_BYTES = 64 * 1024
_MOST_FILES = 1000
_ARCHITECTURES = {ExecutionState.AARCH64: "aarch64", ExecutionState.AARCH32: "arm"}
_FORMATS = ("raw", "qcow2")


class Mapping(enum.Enum):
    """How a firmware gets into the machine (FirmwareDevice)."""

    FLASH = "flash"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Target:
    """A QEMU system emulator and the machine types, as globs, that a firmware runs on (FirmwareTarget)."""

    architecture: str
    machines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One firmware, as its descriptor ``source`` describes it. ``vars_template`` comes with FLASH only."""

    source: Path
    description: str
    interfaces: tuple[str, ...]
    mapping: Mapping
    code: Path
    code_format: str
    vars_template: Path | None
    vars_format: str
    targets: tuple[Target, ...]
    features: frozenset[str]

    @property
    def enforces_secure_boot(self) -> bool:
        """Whether its variable store has Secure Boot on, so that it refuses unsigned programs."""
        return "enrolled-keys" in self.features

    def serves(self, state: ExecutionState) -> bool:
        """Whether it is UEFI for QEMU's ``virt`` machine, of whatever version, in ``state``."""
        return "uefi" in self.interfaces and any(
            target.architecture == _ARCHITECTURES[state] and any(map(_is_virt, target.machines))
            for target in self.targets
        )


@dataclass(frozen=True, slots=True)
class Skipped:
    """A descriptor that was passed over, and why."""

    source: Path
    reason: str


def descriptor_folders(qemu_share: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The folders that hold descriptors, from the general to the specific.

    ``qemu_share`` are QEMU's own data folders, which count where QEMU is installed under a prefix of its own.
    """
    general = Path("/usr/share/qemu/firmware")
    own = (share / "firmware" for share in qemu_share)
    folders = [*(folder for folder in own if folder != general), general, Path("/etc/qemu/firmware")]
    home = os.environ.get("HOME")
    config = os.environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    return (*folders, Path(config) / "qemu/firmware") if config else tuple(folders)


def read_descriptors(folders: Iterable[Path]) -> tuple[Descriptor | Skipped, ...]:
    """All descriptors of ``folders`` in the order of their names, in which the first that fits is to be taken.

    Of several files with the same name, that in the most specific (last) folder counts; an empty one hides them.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        try:
            found = sorted(folder.glob("*.json"))[:_MOST_FILES]
        except OSError:
            continue
        files.update((path.name, path) for path in found)
    read = (_read(files[name]) for name in sorted(files))
    return tuple(one for one in read if one is not None)


def _read(source: Path) -> Descriptor | Skipped | None:
    import json

    try:
        with open(source, "rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if not text:
            return None
        if len(text) > _MOST_BYTES:
            return Skipped(source, f"larger than {_MOST_BYTES} bytes")
        return _parse(json.loads(text), source)
    except OSError as error:
        return Skipped(source, error.strerror or str(error))
    except RecursionError:
        return Skipped(source, "nested too deeply")
    except ValueError as error:  # not JSON, not UTF-8, or not what the format says
        return Skipped(source, str(error))


def _parse(content: Any, source: Path) -> Descriptor | Skipped:
    """Take a descriptor apart. Raises ValueError where it is not as the format says."""
    top = _of(content, dict, "the file")
    mapping = _of(top.get("mapping"), dict, "mapping")
    device = mapping.get("device")
    if device == Mapping.FLASH.value:
        mode = mapping.get("mode", "split")
        if mode != "split":
            return Skipped(source, f"flash mode {_shown(mode)} has no variable store of its own")
        code, code_format = _file(_of(mapping.get("executable"), dict, "executable"))
        vars_template, vars_format = _file(_of(mapping.get("nvram-template"), dict, "nvram-template"))
    elif device == Mapping.MEMORY.value and "uefi-vars" not in mapping:
        code, code_format = _path(mapping.get("filename")), "raw"
        vars_template, vars_format = None, "raw"
    else:
        return Skipped(source, f"firmware that is mapped as {_shown(device)} is not used")
    return Descriptor(
        source=source,
        description=_of(top.get("description", ""), str, "description"),
        interfaces=_strings(top.get("interface-types"), "interface-types"),
        mapping=Mapping(device),
        code=code,
        code_format=code_format,
        vars_template=vars_template,
        vars_format=vars_format,
        targets=tuple(map(_target, _of(top.get("targets"), list, "targets"))),
        features=frozenset(_strings(top.get("features"), "features")),
    )


def _target(content: Any) -> Target:
    target = _of(content, dict, "a target")
    architecture = _of(target.get("architecture"), str, "architecture")
    return Target(architecture, _strings(target.get("machines"), "machines"))


def _file(content: dict[str, Any]) -> tuple[Path, str]:
    form = content.get("format")
    if form not in _FORMATS:
        raise ValueError(f"format {_shown(form)} is not one of {', '.join(_FORMATS)}")
    return _path(content.get("filename")), str(form)


def _path(content: Any) -> Path:
    path = Path(_of(content, str, "filename"))
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError(f"filename {_shown(str(path))} is no absolute path")
    return path


def _strings(content: Any, what: str) -> tuple[str, ...]:
    return tuple(_of(entry, str, f"an entry of {what}") for entry in _of(content, list, what))


def _of(content: Any, kind: type[Any], what: str) -> Any:
    if not isinstance(content, kind):
        raise ValueError(f"{what} is no {kind.__name__}")  # noqa: TRY004 - one kind of error for a file's content
    return content


def _shown(content: Any) -> str:
    return repr(content)[:80]


def _is_virt(pattern: str) -> bool:
    """Whether a glob of machine types means ``virt``, or any of its versions."""
    return pattern.startswith("virt-") or fnmatchcase("virt", pattern) or fnmatchcase("virt-1.0", pattern)
