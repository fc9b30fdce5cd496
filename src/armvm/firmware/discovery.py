"""Finding the UEFI firmware for a virtual machine: descriptors, well-known places, or a file that the user names."""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from armvm.errors import InputError, MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.firmware.descriptor import Descriptor, Mapping, Skipped, descriptor_folders, read_descriptors
from armvm.firmware.variables import FLASH_SIZE_BYTES
from armvm.packages import install_command

EMULATORS = {ExecutionState.AARCH64: "qemu-system-aarch64", ExecutionState.AARCH32: "qemu-system-arm"}
"""The QEMU program that emulates each state."""

_PLACES = {
    ExecutionState.AARCH64: (
        # Debian, Ubuntu, Alpine; Arch and Fedora link them
        ("/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        # Fedora
        ("/usr/share/edk2/aarch64/QEMU_EFI-silent-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"),
        ("/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"),
        ("/usr/share/edk2/aarch64/QEMU_EFI-silent-pflash.qcow2", "/usr/share/edk2/aarch64/vars-template-pflash.qcow2"),
        ("/usr/share/edk2/aarch64/QEMU_EFI-pflash.qcow2", "/usr/share/edk2/aarch64/vars-template-pflash.qcow2"),
        # Arch
        ("/usr/share/edk2/aarch64/QEMU_CODE.fd", "/usr/share/edk2/aarch64/QEMU_VARS.fd"),
        ("/usr/share/edk2/aarch64/QEMU_EFI.fd", "/usr/share/edk2/aarch64/QEMU_VARS.fd"),
        # openSUSE
        ("/usr/share/qemu/aavmf-aarch64-code.bin", "/usr/share/qemu/aavmf-aarch64-vars.bin"),
    ),
    ExecutionState.AARCH32: (
        ("/usr/share/AAVMF/AAVMF32_CODE.fd", "/usr/share/AAVMF/AAVMF32_VARS.fd"),
        ("/usr/share/edk2/arm/QEMU_EFI-pflash.raw", "/usr/share/edk2/arm/vars-template-pflash.raw"),
        ("/usr/share/edk2/arm/QEMU_EFI-pflash.qcow2", "/usr/share/edk2/arm/vars-template-pflash.qcow2"),
        ("/usr/share/edk2/arm/QEMU_CODE.fd", "/usr/share/edk2/arm/QEMU_VARS.fd"),
        ("/usr/share/qemu/aavmf-aarch32-code.bin", "/usr/share/qemu/aavmf-aarch32-vars.bin"),
    ),
}
_OWN_CODE = {ExecutionState.AARCH64: "edk2-aarch64-code.fd", ExecutionState.AARCH32: "edk2-arm-code.fd"}
_OWN_VARS = "edk2-arm-vars.fd"  # QEMU ships one template for both states

_QCOW2 = b"QFI\xfb"
_ELF = b"\x7fELF"
_VOLUME_AT = (0x28, 0x1028)
"""Where the signature of EDK2's first firmware volume stands: at once, or behind a page with the reset vector."""


class FirmwareKind(enum.Enum):
    """How a firmware gets into the machine."""

    PFLASH = "pflash"
    """As the content of the first flash chip."""
    BIOS = "bios"
    """With ``-bios``: QEMU copies it to where the first flash chip is."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """A firmware that can be given to QEMU's ``virt`` machine. Its files were there when it was found.

    ``code_format`` and ``vars_format`` are ``raw`` or ``qcow2``. ``vars_template`` is what its maker ships as the
    content of a new variable store, or None. ``keeps_variables`` says whether it stores UEFI variables in the
    second flash chip, as EDK2 does and U-Boot does not. ``source`` says who named it: a descriptor, a place, the user.
    """

    name: str
    kind: FirmwareKind
    code: Path
    code_format: str
    vars_template: Path | None
    vars_format: str
    source: str
    keeps_variables: bool = True
    enforces_secure_boot: bool = False


def find_firmware(state: ExecutionState, *, override: Path | None = None, secure_boot: bool = False) -> Firmware:
    """The firmware to boot a machine of ``state`` with: ``override``, or the first that this system offers.

    Firmware that refuses unsigned programs is taken only with ``secure_boot``, and then no other.
    Raises MissingError when there is none; InputError when ``override`` is no firmware, UsageError when it is one for
    the other state.
    """
    if override is not None:
        return _overriding(override, state, secure_boot)
    fallback: Firmware | None = None
    for firmware in _offered(state):
        if firmware.enforces_secure_boot == secure_boot:
            if firmware.kind is FirmwareKind.PFLASH:
                return firmware
            fallback = fallback or firmware
    if fallback is not None:
        return fallback
    component = f"firmware-{state.value}"
    what = f"UEFI firmware for {state.label} machines{' with Secure Boot' if secure_boot else ''}"
    install = None if secure_boot else install_command(component)
    hint = None if install else "name a firmware file yourself"
    raise MissingError(f"no {what} was found", component=component, install=install, hint=hint)


def skipped_descriptors() -> tuple[Skipped, ...]:
    """The descriptors of this system that could not be used, and why."""
    folders = descriptor_folders(share for state in ExecutionState for share in _qemu_shares(state))
    return tuple(one for one in read_descriptors(dict.fromkeys(folders)) if isinstance(one, Skipped))


def _offered(state: ExecutionState) -> Iterator[Firmware]:
    """Every firmware of this system for ``state`` whose files are there, the preferred ones first."""
    shares = _qemu_shares(state)
    for descriptor in read_descriptors(descriptor_folders(shares)):
        if isinstance(descriptor, Descriptor) and descriptor.serves(state) and _exist(descriptor):
            yield _described(descriptor)
    places = [(Path(code), Path(template)) for code, template in _PLACES[state]]
    places += [(share / _OWN_CODE[state], share / _OWN_VARS) for share in shares]
    for code, template in places:
        if code.is_file():
            form = "qcow2" if code.suffix == ".qcow2" else "raw"
            yield Firmware(
                name=code.name,
                kind=_flash_kind(code, form),
                code=code,
                code_format=form,
                vars_template=template if template.is_file() else None,
                vars_format="qcow2" if template.suffix == ".qcow2" else "raw",
                source=str(code.parent),
            )


def _qemu_shares(state: ExecutionState) -> tuple[Path, ...]:
    """QEMU's data folders beside its program: /usr/share/qemu, or that of Homebrew, Nix, /usr/local."""
    from armvm.process import find_program

    program = find_program(EMULATORS[state])
    if program is None:
        return ()
    prefixes = (Path(program).parent.parent, Path(os.path.realpath(program)).parent.parent)
    return tuple(dict.fromkeys(prefix / "share/qemu" for prefix in prefixes))


def _exist(descriptor: Descriptor) -> bool:
    template = descriptor.vars_template
    return descriptor.code.is_file() and (template is None or template.is_file())


def _described(descriptor: Descriptor) -> Firmware:
    in_flash = descriptor.mapping is Mapping.FLASH
    return Firmware(
        name=descriptor.description or descriptor.code.name,
        kind=FirmwareKind.PFLASH if in_flash else FirmwareKind.BIOS,
        code=descriptor.code,
        code_format=descriptor.code_format,
        vars_template=descriptor.vars_template,
        vars_format=descriptor.vars_format,
        source=descriptor.source.name,
        keeps_variables=in_flash,
        enforces_secure_boot=descriptor.enforces_secure_boot,
    )


def _flash_kind(code: Path, form: str) -> FirmwareKind:
    """QEMU wants a raw flash image to have exactly the chip's size; a shorter one it takes with ``-bios``."""
    whole = form != "raw" or code.stat().st_size == FLASH_SIZE_BYTES
    return FirmwareKind.PFLASH if whole else FirmwareKind.BIOS


def _overriding(path: Path, state: ExecutionState, secure_boot: bool) -> Firmware:
    """The firmware in a file that the user named, told by its content."""
    start = _start_of(path)
    if start.startswith(_QCOW2):
        form, in_edk2 = "qcow2", True
    else:
        form, in_edk2 = "raw", any(start[at : at + 4] == b"_FVH" for at in _VOLUME_AT)
        _check_state(path, start, state)
    known = [one for one in _offered(state) if one.code.samefile(path)]
    if known:
        # Its maker's template fits it: of several that which the user asked for.
        chosen = next((one for one in known if one.enforces_secure_boot == secure_boot), known[0])
        return replace(chosen, code=path, source="named by the user")
    return Firmware(
        name=path.name,
        kind=_flash_kind(path, form) if in_edk2 else FirmwareKind.BIOS,
        code=path,
        code_format=form,
        vars_template=None,
        vars_format="raw",
        source="named by the user",
        keeps_variables=in_edk2,
    )


def _start_of(path: Path) -> bytes:
    """The first bytes of a firmware file, having made sure that it can be one."""
    subject = str(path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            information = os.fstat(file.fileno())
            if not stat.S_ISREG(information.st_mode):
                raise InputError("a firmware is a regular file", subject=subject)
            start = file.read(0x2000)
    except IsADirectoryError as error:
        raise InputError("a folder, no firmware file", subject=subject) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=subject) from error
    if not start.strip(b"\0") or not start.strip(b"\xff"):
        raise InputError("empty, no firmware", subject=subject)
    if information.st_size > FLASH_SIZE_BYTES:
        raise InputError(
            "too large for a firmware",
            subject=subject,
            found=f"{information.st_size} bytes",
            expected=f"at most {FLASH_SIZE_BYTES}",
        )
    return start


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end, should it be a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_state(path: Path, start: bytes, state: ExecutionState) -> None:
    """Refuse what cannot run: an ELF file, a variable store, the code of the other state.

    Raw firmware starts with a branch: B of A64 (Arm ARM C6.2.26) or B of A32 (F5.1.22), which differ in the top byte.
    """
    from armvm.firmware.varstore import is_store

    if start.startswith(_ELF):
        raise InputError("an ELF file, no raw firmware", subject=str(path), hint="use the .bin file of the same build")
    if is_store(start):
        raise InputError("a variable store, not the firmware's code", subject=str(path))
    top = start[3:4]
    branch = {
        ExecutionState.AARCH64: bool(top) and top[0] & 0xFC == 0x14,
        ExecutionState.AARCH32: top == b"\xea",
    }
    other = next(one for one in ExecutionState if one is not state)
    if branch[other] and not branch[state]:
        raise UsageError(f"{path} is firmware for {other.label}, the machine is {state.label}")
