"""What this host can run virtual machines with: KVM, Apple's Hypervisor framework, or emulation. Facts only."""

from __future__ import annotations

import enum
import os
import sys
from contextlib import suppress
from dataclasses import dataclass

from armvm.execution import ExecutionState

_KVM = "/dev/kvm"
_KVM_GET_API_VERSION = 0xAE00
_KVM_CHECK_EXTENSION = 0xAE03
_KVM_CAP_ARM_EL1_32BIT = 93
_KVM_API_VERSION = 12  # the only one there has been since Linux 2.6.22


class AcceleratorKind(enum.Enum):
    """How the instructions of a guest are run; the values are QEMU's names."""

    KVM = "kvm"
    HVF = "hvf"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One way of running guests of one execution state, whether this host has it, and what there is to know of it.

    ``detail`` is the reason when it is not ``available``. ``narrows`` says that an AArch32 guest runs under the
    64-bit QEMU with the CPU narrowed to 32 bits (``-cpu host,aarch64=off``).
    """

    kind: AcceleratorKind
    available: bool
    detail: str
    narrows: bool = False


def available(state: ExecutionState) -> tuple[Accelerator, ...]:
    """What guests of ``state`` can be run with here, the fastest first. The last is TCG, which is always there."""
    return tuple(accelerator for accelerator in survey(state) if accelerator.available)


def survey(state: ExecutionState) -> tuple[Accelerator, ...]:
    """Every accelerator in the order of preference, with the reason why it is not available where it is not."""
    system, machine = sys.platform, os.uname().machine
    return (_kvm(state, system, machine), _hvf(state, system, machine), _tcg())


def _tcg() -> Accelerator:
    return Accelerator(AcceleratorKind.TCG, available=True, detail="emulation by QEMU: works everywhere, slowly")


def _hvf(state: ExecutionState, system: str, machine: str) -> Accelerator:
    def missing(reason: str) -> Accelerator:
        return Accelerator(AcceleratorKind.HVF, available=False, detail=reason)

    if system != "darwin":
        return missing("only macOS has it")
    if machine != "arm64":
        return missing(f"this Mac is, or this Python runs as, {machine}")
    if state is ExecutionState.AARCH32:
        return missing("Apple's processors do not run AArch32 kernels")
    return Accelerator(AcceleratorKind.HVF, available=True, detail="Apple's Hypervisor framework")


def _kvm(state: ExecutionState, system: str, machine: str) -> Accelerator:
    wide = machine == "aarch64"
    narrows = wide and state is ExecutionState.AARCH32
    if system != "linux":
        reason: str | None = "only Linux has it"
    elif not wide and not machine.startswith(("armv7", "armv8")):
        reason = f"the host's processor is {machine}, not ARM"
    elif not wide and state is ExecutionState.AARCH64:
        reason = f"the host runs in 32 bits ({machine})"
    else:
        reason = _why_not_kvm(narrows=narrows)
    if reason is not None:
        return Accelerator(AcceleratorKind.KVM, available=False, detail=reason)
    detail = f"{_KVM}, by the 64-bit QEMU with aarch64=off" if narrows else _KVM
    return Accelerator(AcceleratorKind.KVM, available=True, detail=detail, narrows=narrows)


def _why_not_kvm(*, narrows: bool) -> str | None:
    """Ask the kernel (Linux Documentation/virt/kvm/api.rst); None when KVM runs such guests."""
    try:
        device = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"there is no {_KVM}: the kernel lacks KVM, or the host itself was not started at EL2"
    except PermissionError:
        return f"{_KVM} may not be opened by this user: join the group that owns it, usually kvm"
    except OSError as error:
        return f"{_KVM} cannot be opened: {error.strerror}"
    try:
        if _ask(device, _KVM_GET_API_VERSION) != _KVM_API_VERSION:
            return f"{_KVM} does not answer like KVM"
        if narrows and _ask(device, _KVM_CHECK_EXTENSION, _KVM_CAP_ARM_EL1_32BIT) <= 0:
            return "the host's processor cannot run AArch32 kernels"
    finally:
        os.close(device)
    return None


def _ask(device: int, request: int, argument: int = 0) -> int:
    import fcntl

    with suppress(OSError):
        return fcntl.ioctl(device, request, argument)
    return -1
