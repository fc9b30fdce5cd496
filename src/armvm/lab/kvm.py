"""The KVM host: Debian's kernel and QEMU on the emulated machine, with /dev/kvm, and armvm that runs guests on it."""

from __future__ import annotations

from collections.abc import Callable

from armvm.execution import ExecutionState
from armvm.lab.recipe import IMAGE_DISK, GuestRequest, HostFiles, HostKind, HostRecipe, Task
from armvm.probe.initramfs import WANTED_MODULES
from armvm.units import GIB, MIB

_REPORT = "/tmp/report.json"  # noqa: S108 - inside the host, where nobody else is
_CONSOLE = "/tmp/console.log"  # noqa: S108
_MOST_GUEST_BYTES = 1536 * MIB
_SETUP = """\
[ -c /dev/kvm ] || fail "the kernel has no KVM: it was not started at EL2"
"""


class KvmHost:
    """A host whose hypervisor is Linux's own, of which the guests run under QEMU; see ``recipe.LabHost``."""

    kind = HostKind.KVM
    states = (ExecutionState.AARCH64, ExecutionState.AARCH32)
    required = ("guest.virtio-pci",)

    def prepare(self, _notes: Callable[[str], None]) -> None:
        """Everything comes out of packages."""

    def recipe(self) -> HostRecipe:
        """Debian's qemu-system-arm and EDK2 for both states; the 64-bit QEMU serves both."""
        firmware = "usr/share/AAVMF/AAVMF"
        return HostRecipe(
            kind=self.kind,
            packages=("qemu-system-arm", "qemu-efi-aarch64", "qemu-efi-arm"),
            keep=(
                *("usr/bin/qemu-system-aarch64", "boot/vmlinuz-*", "usr/share/qemu/firmware/*"),
                *(f"{firmware}_CODE.fd", f"{firmware}_VARS.fd", f"{firmware}32_CODE.fd", f"{firmware}32_VARS.fd"),
            ),
            modules=(),
            kept_modules=WANTED_MODULES,
            setup=_SETUP,
            warm=(("armvm", "doctor"), ("qemu-system-aarch64", "-accel", "kvm", "-M", "virt", "-version")),
            memory_bytes=3 * GIB,
        )

    def arguments(self, files: HostFiles) -> tuple[str, ...]:
        """The kernel is started directly, at EL2."""
        append = "console=ttyAMA0 rdinit=/init quiet panic=-1 nokaslr kpti=off mitigations=off"
        return ("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", append)

    def problems(self, request: GuestRequest) -> tuple[str, ...]:
        """It boots whatever QEMU boots, within its memory."""
        found = []
        if request.state not in self.states:
            found.append(f"nested KVM runs no {request.state.label} guests")
        if request.memory_bytes > _MOST_GUEST_BYTES:
            found.append(
                f"{request.memory_bytes // MIB} MiB of memory: a guest in the nested KVM host has at most"
                f" {_MOST_GUEST_BYTES // MIB}"
            )
        return tuple(found)

    def boot_task(self, request: GuestRequest) -> Task:
        """``armvm run`` on the disk that the image is."""
        command = ["armvm", "run", IMAGE_DISK, "--accel", "kvm", "--arch", request.state.value, "--vcpus", "1"]
        command += ["--net", "none", "--memory", str(request.memory_bytes), "--timeout", f"{request.timeout_seconds:g}"]
        command += ["--sector-size", str(request.sector_size)]
        if request.until is not None:
            command += ["--until", request.until]
        return Task(tuple(command), request.timeout_seconds)

    def probe_problems(self, state: ExecutionState) -> tuple[str, ...]:
        """None: the probe runs in both states."""
        return () if state in self.states else (f"nested KVM runs no {state.label} guests",)

    def probe_task(self, state: ExecutionState, *, profile: str, timeout_seconds: float) -> Task:
        """``armvm probe run`` with KVM."""
        command = ["armvm", "probe", "run", "--accel", "kvm", "--arch", state.value, "--profile", profile]
        command += ["--vcpus", "1", "--memory", str(512 * MIB), "-o", f"json:{_REPORT}", "--log", _CONSOLE]
        return Task(tuple(command), timeout_seconds, {"report": _REPORT, "console": _CONSOLE})


HOST = KvmHost()
