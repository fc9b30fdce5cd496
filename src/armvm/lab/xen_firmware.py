"""The UEFI firmware of a Xen domain, EDK2's ArmVirtXen, which no distribution packages: built from Debian's source.

The source is one file, known by its SHA-256, so it may come from any mirror. ``xen_firmware.patch`` beside this module
says what is changed in it, and why. What is built is kept; a key of everything that it was made of names it:

$XDG_CACHE_HOME/armvm/lab
└── xen-firmware-STATE-KEY.fd
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from armvm.atomic import write_file
from armvm.errors import ArmvmError, InputError, MissingError
from armvm.execution import ExecutionState
from armvm.packages import components, install_command_for
from armvm.printable import printable
from armvm.process import ProgramError, find_program, run
from armvm.units import MIB

Notes = Callable[[str], None]
"""Takes one line about what is being done."""


@dataclass(frozen=True, slots=True)
class SourceArchive:
    """A source as Debian has it: where below a mirror, its size, and its SHA-256."""

    path: str
    size_bytes: int
    sha256_hex: str
    folder: str
    """What it unpacks to."""


SOURCE = SourceArchive(
    "pool/main/e/edk2/edk2_2022.11.orig.tar.xz",
    16_710_140,
    "64257dd8a2778c969b8a869cd3b6eda2db2a346bfcf24dc729859745968f1fd6",
    "edk2-2022.11",
)
_MIRRORS = ("http://deb.debian.org/debian", "https://snapshot.debian.org/archive/debian/20230601T000000Z")
"""Behind the mirror of the machine's own apt; the last keeps what Debian itself has long replaced."""
PATCH = Path(__file__).with_name("xen_firmware.patch")
_FORMAT = 1
"""Goes into the key: to be raised when the build below changes."""
_ARCHITECTURES = {ExecutionState.AARCH64: "AARCH64", ExecutionState.AARCH32: "ARM"}
_COMPILERS = {ExecutionState.AARCH64: "aarch64-linux-gnu-gcc", ExecutionState.AARCH32: "arm-linux-gnueabi-gcc"}
_TOOLS = ("gcc", "g++", "make", "patch", "bash", "python3", "iasl")
"""What builds EDK2's own tools, and its tables for ACPI; the cross compiler and the header of libuuid come besides."""
_UUID = "uuid-headers"
_TOOLCHAIN = "GCC49"
"""EDK2's word for any newer GCC without link-time optimisation."""
_TIMEOUT_SECONDS = 3600.0
_CAUSE = re.compile(r"\b(?:fatal )?error: |: not found$|No such file or directory$", re.IGNORECASE)
"""What compilers, the shell and make say when something is wrong; a command line with -Werror in it says nothing."""
_CONSEQUENCE = re.compile(r"\*\*\* |: error ", re.IGNORECASE)
"""What make and EDK2's build say when something was."""
_MOST_MEMBERS = 50_000
_MOST_UNPACKED_BYTES = 512 * MIB
_LEAST_FIRMWARE_BYTES, _MOST_FIRMWARE_BYTES = MIB, 16 * MIB
_MAGIC = {ExecutionState.AARCH64: (0x38, b"ARM\x64"), ExecutionState.AARCH32: (0x24, b"\x18\x28\x6f\x01")}
"""Where the header of a Linux image says what it is, by which Xen knows what to load (Linux,
Documentation/arch/arm64/booting.rst; a zImage of 32-bit ARM)."""


def firmware_path(state: ExecutionState, cache: Path) -> Path:
    """Where the firmware for ``state`` stands in ``cache``, built or not."""
    parts = (str(_FORMAT), SOURCE.sha256_hex, hashlib.sha256(PATCH.read_bytes()).hexdigest(), _TOOLCHAIN)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache / f"xen-firmware-{state.value}-{key}.fd"


def missing_tools(state: ExecutionState) -> tuple[str, ...]:
    """The components that building the firmware for ``state`` takes and this machine lacks."""
    wanted = [*_TOOLS, _COMPILERS[state]]
    missing = [name for name in wanted if find_program(name) is None]
    header = next((one.file for one in components() if one.name == _UUID), None)
    if header is not None and not Path(header).is_file():
        missing.append(_UUID)
    return tuple(missing)


def build_xen_firmware(
    state: ExecutionState, cache: Path, *, archive: Path | None = None, notes: Notes = lambda _line: None
) -> Path:
    """The firmware for domains of ``state``, built into ``cache`` where it is not there yet; takes some minutes then.

    ``archive`` is the source where it is at hand. Whoever builds at the same time builds the same: the last one stays.
    Raises MissingError that names all that is missing and the command that installs it, InputError when the source
    cannot be had or is another, ProgramError with the compiler's words when the build fails.
    """
    path = firmware_path(state, cache)
    if path.is_file():
        return path
    missing = missing_tools(state)
    if missing:
        raise MissingError(
            f"building the UEFI firmware of Xen domains takes {', '.join(missing)}",
            component=missing[0],
            install=install_command_for(missing),
        )
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".xen-firmware-", dir=cache) as folder:
        scratch = Path(folder)
        if archive is None:
            notes(f"fetching {Path(SOURCE.path).name} ({SOURCE.size_bytes // MIB} MiB)")
            archive = _fetch(scratch)
        _require_source(archive)
        tree = _unpack(archive, scratch)
        run("patch", ["-d", str(tree), "--binary", "-p1", "-i", str(PATCH)], timeout_seconds=60)
        notes(f"building EDK2's ArmVirtXen for {state.label}: some minutes")
        content = _build(state, tree)
    write_file(path, content, mode=0o600)
    return path


def _fetch(scratch: Path) -> Path:
    """The source from the first mirror that gives it out whole."""
    from armvm.disk.remote import open_remote
    from armvm.distribution.sources import machine_archive

    own = machine_archive().main
    refusals = []
    for mirror in dict.fromkeys(base.rstrip("/") for base in (own, *_MIRRORS) if base):
        path = scratch / "source.tar.xz"
        try:
            with open_remote(f"{mirror}/{SOURCE.path}") as remote, path.open("wb") as file:
                if remote.size_bytes != SOURCE.size_bytes:
                    raise InputError("of another size", subject=remote.name, found=f"{remote.size_bytes} bytes")
                for chunk in remote.stream():
                    file.write(chunk)
            _require_source(path)
        except ArmvmError as error:
            refusals.append(error.message)
        else:
            return path
    raise InputError(
        f"no mirror gives out the source: {'; '.join(refusals)}",
        subject=Path(SOURCE.path).name,
        hint="is the network up? the machine's own Debian mirror is asked first",
    )


def _require_source(path: Path) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(path)) from error
    if found != SOURCE.sha256_hex:
        raise InputError(
            "is not the source that this was made for",
            subject=str(path),
            found=f"SHA-256 {found}",
            expected=SOURCE.sha256_hex,
        )


def _unpack(archive: Path, scratch: Path) -> Path:
    """The source's tree. What it holds is known by its hash: the limits are for a change of that."""
    with tarfile.open(archive) as tar:
        for member in _plain(tar):
            path = scratch / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # noqa: S101 - it is a regular file
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file, MIB)
            path.chmod(0o700 if member.mode & 0o100 else 0o600)
    return scratch / SOURCE.folder


def _plain(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    size = 0
    for count, member in enumerate(tar):
        size += member.size
        parts = member.name.split("/")
        if count > _MOST_MEMBERS or size > _MOST_UNPACKED_BYTES or parts[0] != SOURCE.folder or ".." in parts:
            raise InputError("not a source as expected", subject="EDK2", found=printable(member.name))
        if member.isreg():
            yield member


def _build(state: ExecutionState, tree: Path) -> bytes:
    """Build EDK2's tools, then the firmware; its content."""
    jobs = str(os.cpu_count() or 1)
    tools, settings = tree / "BaseTools", tree / "Conf"
    run("make", [f"-j{jobs}", "-C", str(tools / "Source/C"), "EXTRA_OPTFLAGS=-Wno-error"], timeout_seconds=1800)
    for name in ("build_rule", "tools_def", "target"):
        shutil.copyfile(tools / "Conf" / f"{name}.template", settings / f"{name}.txt")
    architecture = _ARCHITECTURES[state]
    arguments = ["-n", jobs, "-a", architecture, "-t", _TOOLCHAIN, "-b", "RELEASE", "-p", "ArmVirtPkg/ArmVirtXen.dsc"]
    program = str(tools / "BinWrappers/PosixLike/build")
    done = run(program, arguments, timeout_seconds=_TIMEOUT_SECONDS, env=_environment(state, tree), check=False)
    if done.returncode:
        # What the compilers and make had to say, it passes on to its standard output.
        said = f"{done.stdout.decode(errors='replace')}\n{done.stderr}"
        raise ProgramError(
            f"EDK2's build failed: {_telling(said.splitlines())}",
            program="build",
            stderr=said,
            returncode=done.returncode,
        )
    output = tree / "Build" / f"ArmVirtXen-{architecture}" / f"RELEASE_{_TOOLCHAIN}" / "FV" / "XEN_EFI.fd"
    return checked_firmware(output.read_bytes(), state, name="EDK2's build")


def _environment(state: ExecutionState, tree: Path) -> Mapping[str, str]:
    wrappers = tree / "BaseTools/BinWrappers/PosixLike"
    return {
        "WORKSPACE": str(tree),
        "EDK_TOOLS_PATH": str(tree / "BaseTools"),
        "CONF_PATH": str(tree / "Conf"),
        "PYTHON_COMMAND": find_program("python3") or sys.executable,
        "PATH": f"{wrappers}:{os.environ.get('PATH', os.defpath)}",
        "LC_ALL": "C.UTF-8",
        f"{_TOOLCHAIN}_{_ARCHITECTURES[state]}_PREFIX": _COMPILERS[state].removesuffix("gcc"),
        "PYTHONPATH": "",
    }


def _telling(lines: Iterable[str]) -> str:
    """The line of a build's words that says what went wrong."""
    kept = [line.strip() for line in lines if line.strip()]
    wrong = [line for line in kept if _CAUSE.search(line)] or [line for line in kept if _CONSEQUENCE.search(line)]
    return printable((wrong or kept[-1:] or ["it said nothing"])[0][:300])


def checked_firmware(content: bytes, state: ExecutionState, *, name: str) -> bytes:
    """``content``, when it has the header by which Xen takes it for a kernel of ``state``. Raises InputError else."""
    offset, magic = _MAGIC[state]
    found = content[offset : offset + len(magic)]
    if not _LEAST_FIRMWARE_BYTES <= len(content) <= _MOST_FIRMWARE_BYTES or found != magic:
        raise InputError(
            f"no firmware for {state.label} domains of Xen",
            subject=name,
            offset_bytes=offset,
            found=found.hex() or "nothing",
            expected=f"{magic.hex()}, in a file of {_LEAST_FIRMWARE_BYTES // MIB} to {_MOST_FIRMWARE_BYTES // MIB} MiB",
        )
    return content
