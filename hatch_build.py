"""Builds the EFI programs in ``efi/`` and the Linux programs in ``guest/`` when a wheel or an editable install is made.

The result depends on nothing but the sources, this file and the version of Zig: not on the folder, the user, the day.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = {
    "stub": ("common/memory.c", "stub/stub.c"),
    "probe": (
        "common/memory.c",
        *(
            f"probe/{part}.c"
            for part in (
                *("main", "base", "wire", "media", "state", "fault"),
                *("system", "cpu", "fdt", "acpi", "smbios", "memory", "devices", "pci"),
                *("variables", "clock", "gic", "timer"),
            )
        ),
    ),
}
"""Program to its sources below ``efi/``."""

LINUX_PROGRAMS = {"linux-probe": "probe"}
"""Program to the folder of its sources below ``guest/``."""

OUTPUT = Path("src/armvm/efi")
VERSION_FILE = Path(__file__).parent / "src/armvm/version.py"
LINUX_OUTPUT = Path("src/armvm/probe/programs")
STAMP = ".built"

_BUILD_TIMEOUT_SECONDS = 300
_C_FLAGS = (
    *("-std=c11", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector", "-mno-stack-arg-probe"),
    # Paths relative to efi/, where the compiler runs: no folder of the build machine gets into the programs.
    "-Iinclude",
)
_LINUX_C_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-static", "-Os", "-s")
_PE_OFFSET_FIELD = 0x3C
_ARMNT = 0x01C4
_THUMB = 0x01C2


class Target(NamedTuple):
    """How Zig is told to compile for one execution state. ``machine`` is what the PE header must say in the end."""

    triple: str
    cpu: str
    machine: int


TARGETS = {
    "aarch64": Target("aarch64-uefi", "generic", 0xAA64),
    # no_movt: U-Boot cannot apply the relocations of movw/movt. -neon: EDK2 leaves the unit switched off.
    # hwdiv: a division without the compiler's run-time library, whose ARM routines return swapped results.
    "aarch32": Target("thumb-uefi", "generic+v7a+no_movt+hwdiv-neon", _THUMB),
}
"""Execution state to target."""

LINUX_TARGETS = {"aarch64": "aarch64-linux-musl", "aarch32": "arm-linux-musleabihf"}
"""Execution state to Zig's name for static Linux programs."""


class EfiBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """What hatchling calls before it packs a wheel (of either kind: standard or editable)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Build what is not up to date, and have it packed although git ignores it. Source archives hold sources."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        build(root / "efi", root / OUTPUT)
        build_linux(root / "guest", root / LINUX_OUTPUT)
        build_data["artifacts"].append(f"/{OUTPUT.as_posix()}/*.efi")
        build_data["artifacts"] += [f"/{LINUX_OUTPUT.as_posix()}/{name}-*" for name in LINUX_PROGRAMS]


def build(sources: Path, output: Path) -> None:
    """Build every program for every state into ``output``, unless it holds the result of these very sources."""
    stamp = output / STAMP
    inputs = inputs_digest(sources)  # before the compiler reads them: what changes meanwhile is built the next time
    names = [f"{program}-{state}.efi" for program in PROGRAMS for state in TARGETS]
    if stamp.is_file() and stamp.read_text() == fingerprint(inputs, output, names):
        return
    with tempfile.TemporaryDirectory(prefix="armvm-efi-") as scratch:
        for program, files in PROGRAMS.items():
            for state, target in TARGETS.items():
                name = f"{program}-{state}.efi"
                built = Path(scratch, name)
                _compile(sources, files, target, built, Path(scratch, "cache"))
                unfinished = output / f".{name}.{os.getpid()}"
                unfinished.write_bytes(with_machine(built.read_bytes(), target.machine))
                unfinished.replace(output / name)
    stamp.write_text(fingerprint(inputs, output, names))


def build_linux(sources: Path, output: Path) -> None:
    """Build every Linux program for every state into ``output``, unless it holds the result of these very sources."""
    output.mkdir(exist_ok=True)
    stamp = output / STAMP
    inputs = inputs_digest(sources)  # before the compiler reads them: what changes meanwhile is built the next time
    names = [f"{program}-{state}" for program in LINUX_PROGRAMS for state in LINUX_TARGETS]
    if stamp.is_file() and stamp.read_text() == fingerprint(inputs, output, names):
        return
    with tempfile.TemporaryDirectory(prefix="armvm-linux-") as scratch:
        for program, folder in LINUX_PROGRAMS.items():
            for state, triple in LINUX_TARGETS.items():
                name = f"{program}-{state}"
                built = Path(scratch, name)
                files = sorted(path.name for path in (sources / folder).glob("*.c"))
                argv = ["cc", "-target", triple, *_LINUX_C_FLAGS, "-o", str(built), *files]
                _run_zig(argv, sources / folder, triple, Path(scratch, "cache"), shared_cache=_c_library_cache())
                unfinished = output / f".{name}.{os.getpid()}"
                unfinished.write_bytes(built.read_bytes())
                unfinished.replace(output / name)
    stamp.write_text(fingerprint(inputs, output, names))


def _c_library_cache() -> Path | None:
    """Where Zig keeps the C library once it has compiled it (20 s of work): the user's cache, if there can be one."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "zig")
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return cache if os.access(cache, os.W_OK) else None


def inputs_digest(sources: Path) -> str:
    """A digest of all that goes into the programs."""
    files = (Path(__file__), VERSION_FILE, *sorted(path for path in sources.rglob("*") if path.suffix in {".c", ".h"}))
    return _digest(version("ziglang"), files)


def fingerprint(inputs: str, output: Path, names: list[str]) -> str:
    """A digest of what went into the programs, ``inputs``, and of the programs themselves."""
    return _digest(inputs, (output / name for name in names))


def _digest(seed: str, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(seed.encode())
    for path in files:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def with_machine(program: bytes, machine: int) -> bytes:
    """The program with its PE machine type set: Zig writes ARMNT for Thumb, which UEFI firmware does not start."""
    offset = int.from_bytes(program[_PE_OFFSET_FIELD : _PE_OFFSET_FIELD + 4], "little") + 4
    found = int.from_bytes(program[offset : offset + 2], "little")
    if found not in {machine, _ARMNT if machine == _THUMB else machine}:
        raise RuntimeError(f"Zig built a program for machine {found:#06x}, not for {machine:#06x}")
    return program[:offset] + machine.to_bytes(2, "little") + program[offset + 2 :]


def _compile(folder: Path, files: tuple[str, ...], target: Target, output: Path, cache: Path) -> None:
    argv = [
        *("build-exe", "-cflags", *_C_FLAGS, _version_flag(), "--", *files),
        *("-O", "ReleaseSmall", "-fstrip", "-fno-compiler-rt", "-fentry=EfiMain", f"-femit-bin={output}"),
        *("-target", target.triple, "-mcpu", target.cpu),
    ]
    _run_zig(argv, folder, target.triple, cache)


def _version_flag() -> str:
    """What tells a program which version of armvm it belongs to."""
    return f'-DARMVM_VERSION="{runpy.run_path(str(VERSION_FILE))["__version__"]}"'


def _run_zig(arguments: list[str], folder: Path, triple: str, cache: Path, *, shared_cache: Path | None = None) -> None:
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(shared_cache or cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments],
        cwd=folder,
        env={**os.environ, **caches},
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{folder.name} does not compile for {triple}:\n{done.stderr}")
