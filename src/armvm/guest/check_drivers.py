"""Judging a guest's drivers: every kernel that the image can start must have them, where they are reached in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from armvm.errors import InputError, MissingError
from armvm.execution import ExecutionState
from armvm.guest.bootable import BootableKernel
from armvm.guest.driver_catalogue import Driver, drivers
from armvm.guest.drivers import DriverFinding, DriverPlace, find_driver, kernel_config
from armvm.guest.generators import Generator, command_to_add, generator_on_root
from armvm.guest.kernel_config import Setting
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, passed, unknown
from armvm.spec.verdict import Evidence, Verdict

_SHOWN_TITLES = 2


@dataclass(frozen=True, slots=True)
class _Need:
    """A driver, and whether it has to be there before the root file system is; ``built_in`` excludes modules."""

    driver: str
    early: bool = False
    built_in: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one need came to in one kernel."""

    kernel: BootableKernel
    need: _Need
    finding: DriverFinding

    @property
    def holds(self) -> bool | None:
        """Whether the driver is where it is needed; None when that could not be told."""
        if self.need.built_in and self.finding.place in {DriverPlace.IN_INITRD, DriverPlace.ON_ROOT}:
            return False
        return self.finding.early if self.need.early else self.finding.reachable

    @property
    def evidence(self) -> Evidence:
        """The deciding observation, beside what is asked for where it falls short."""
        last = self.finding.evidence[-1]
        found = f"{self.finding.driver.label}: {self.finding.place.value}, {last.found}"
        return Evidence(last.where, found, None if self.holds else last.expected or self._expected)

    @property
    def _expected(self) -> str:
        if self.need.built_in:
            return "built into the kernel"
        return "built in or in the initial RAM disk" if self.need.early else "built in, or a module"

    @property
    def sentence(self) -> str:
        """What is wrong, as the beginning of a sentence."""
        label = self.finding.driver.label
        if self.finding.missing and self.finding.place in {DriverPlace.ABSENT, DriverPlace.UNKNOWN}:
            return f"{label} cannot be loaded without {printable(', '.join(self.finding.missing))}"
        if self.finding.place is DriverPlace.ABSENT:
            return f"{label} is absent"
        if self.need.built_in:
            return f"{label} is a module only"
        if self.finding.missing:
            missing = printable(", ".join(self.finding.missing))
            return f"{label} cannot be loaded before the root file system is there: {missing} is missing beside it"
        return f"{label} is not reachable before the root file system is"


def check_console_pl011(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.console-pl011``: the UART's driver and its console are built in (a module cannot be a console)."""
    needs = (_Need("pl011", built_in=True), _Need("pl011-console", built_in=True))
    return _judge(kernels, needs, good="the pl011 UART is a console from the kernel's start")


def check_console_virtio(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.console-virtio``: built in or in the initial RAM disk, so that the boot can be followed."""
    return _judge(kernels, (_Need("virtio-console", early=True),), good="virtio-console is there before the root is")


def check_console_xen(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.console-xen``: support for Xen and its console are built in, as they only can be."""
    needs = (_Need("xen", built_in=True), _Need("xen-console", built_in=True))
    return _judge(kernels, needs, good="the Xen PV console is built in")


def check_gicv2(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.gicv2``."""
    return _judge(kernels, (_Need("gicv2", built_in=True),), good="GICv2 is built in")


def check_gic_newer(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.gic-newer``: GICv3 (which serves GICv4 too), and the ITS in a kernel that has PCI."""
    judged = _judge(kernels, (_Need("gicv3", built_in=True),), good="GICv3 is built in")
    if judged.verdict is not Verdict.PASS:
        return judged
    with_pci = [kernel for kernel in kernels if _has_pci(kernel)]
    if not with_pci:
        return judged
    needs = (_Need("gicv3", built_in=True), _Need("gicv3-its", built_in=True))
    return _judge(with_pci, needs, good="GICv3 and its ITS are built in")


def check_rtc_efi(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.rtc-efi``: the time of day through UEFI, at the latest by a module on the root."""
    return _judge(kernels, (_Need("rtc-efi"),), good="the time of day is taken from the UEFI RTC service")


def check_virtio_pci(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.virtio-pci``: transport and block before the root, the others at the latest on it."""
    return _judge(kernels, _virtio("virtio-pci"), good="every virtio driver for PCI is there in time")


def check_virtio_mmio(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.virtio-mmio``: as for PCI."""
    return _judge(kernels, _virtio("virtio-mmio"), good="every virtio driver for MMIO is there in time")


def check_xen_pv(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.xen-pv``: the block driver before the root, the others at the latest on it."""
    needs = (
        *(_Need("xen", built_in=True), _Need("xen-blkfront", early=True), _Need("xen-netfront")),
        *(_Need("xen-console", built_in=True), _Need("xen-balloon", built_in=True)),
    )
    return _judge(kernels, needs, good="every Xen PV driver is there in time")


def check_acpi(kernels: Sequence[BootableKernel]) -> Judgement:
    """``guest.acpi``: asked of the AArch64 kernels only, Linux has no ACPI on AArch32."""
    able = [kernel for kernel in kernels if kernel.state is ExecutionState.AARCH64]
    if kernels and not able:
        return Judgement(Verdict.NOT_APPLICABLE, "every kernel of the image is for AArch32, where Linux has no ACPI")
    return _judge(able, (_Need("acpi", built_in=True),), good="ACPI is built in beside the device tree")


DriverCheck = Callable[[Sequence[BootableKernel]], Judgement]

DRIVER_CHECKS: Mapping[str, DriverCheck] = {
    "guest.console-pl011": check_console_pl011,
    "guest.console-virtio": check_console_virtio,
    "guest.console-xen": check_console_xen,
    "guest.gicv2": check_gicv2,
    "guest.gic-newer": check_gic_newer,
    "guest.rtc-efi": check_rtc_efi,
    "guest.virtio-pci": check_virtio_pci,
    "guest.virtio-mmio": check_virtio_mmio,
    "guest.xen-pv": check_xen_pv,
    "guest.acpi": check_acpi,
}
"""Requirement to the check that judges it, given every kernel that the image can start."""


def _virtio(transport: str) -> tuple[_Need, ...]:
    return (
        *(_Need(transport, early=True), _Need("virtio-blk", early=True)),
        *(_Need("virtio-net"), _Need("virtio-console"), _Need("virtio-balloon")),
    )


def _has_pci(kernel: BootableKernel) -> bool:
    """Whether PCI devices with message-signalled interrupts can be met: where nobody says no, yes."""
    try:
        config = kernel_config(kernel)
    except (InputError, MissingError):
        return True
    return config is None or config.setting("PCI") is Setting.BUILT_IN


def _judge(kernels: Sequence[BootableKernel], needs: Sequence[_Need], *, good: str) -> Judgement:
    if not kernels:
        return unknown("No Linux kernel was found that the boot program leads to.")
    answers = [_Answer(kernel, need, find_driver(kernel, _driver(need))) for kernel in kernels for need in needs]
    wrong = [answer for answer in answers if answer.holds is False]
    open_answers = [answer for answer in answers if answer.holds is None]
    evidence = tuple(dict.fromkeys(answer.evidence for answer in (*wrong, *open_answers, *answers)))
    if wrong:
        return failed(_whole_sentence(_sentence(wrong, kernels)), *evidence, remedy=_remedy(wrong))
    if open_answers:
        labels = ", ".join(dict.fromkeys(answer.finding.driver.label for answer in open_answers))
        return unknown(f"It could not be told where these are: {labels}{_in_which(open_answers, kernels)}.", *evidence)
    return passed(_whole_sentence(good), *evidence)


def _whole_sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _driver(need: _Need) -> Driver:
    return drivers()[need.driver]


def _sentence(wrong: Sequence[_Answer], kernels: Sequence[BootableKernel]) -> str:
    said = list(dict.fromkeys(answer.sentence for answer in wrong))
    if len(said) == 1:
        return f"{said[0]}{_in_which(wrong, kernels)}"
    absent = [answer.finding.driver.label for answer in wrong if answer.finding.place is DriverPlace.ABSENT]
    if len(absent) == len(wrong):
        return f"{_listed(tuple(dict.fromkeys(absent)))} are absent{_in_which(wrong, kernels)}"
    return f"{len(said)} faults: {'; '.join(said)}{_in_which(wrong, kernels)}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]


def _in_which(answers: Sequence[_Answer], kernels: Sequence[BootableKernel]) -> str:
    """Which boot entries are meant, where not all of them are."""
    titles = dict.fromkeys(answer.kernel.title for answer in sorted(answers, key=lambda a: not a.kernel.default))
    concerned = {id(answer.kernel) for answer in answers}
    if len(concerned) == len(kernels):
        return ""
    shown = [f'"{printable(title)}"' for title in list(titles)[:_SHOWN_TITLES]]
    more = len(concerned) - len(shown)
    others = f" and {more} more boot {'entry' if more == 1 else 'entries'}" if more > 0 else ""
    defaults = " (the default)" if any(answer.kernel.default for answer in answers) else ""
    return f", in {' and '.join(shown)}{defaults}{others}"


def _remedy(wrong: Sequence[_Answer]) -> str:
    """What has to be done, by what each driver lacks: another kernel, its modules, or an initial RAM disk made anew."""
    symbols: dict[str, None] = {}
    uninstalled: dict[str, None] = {}
    not_early: dict[str, None] = {}
    for answer in wrong:
        finding, module = answer.finding, answer.finding.driver.module
        symbol = f"CONFIG_{finding.driver.symbols[0]}"
        whole = answer.kernel.whole_system
        absent = finding.place is DriverPlace.ABSENT and not finding.missing
        if module is None or answer.need.built_in:
            symbols[f"{symbol}=y"] = None
            continue
        if finding.configured is Setting.OFF or (finding.configured is None and absent and not whole):
            symbols[f"{symbol}=m (or y)"] = None
        elif absent and not whole:
            uninstalled[module] = None
        if finding.configured is not Setting.OFF and (answer.need.early or whole):
            not_early |= dict.fromkeys((module, *finding.missing))
    steps = []
    if symbols:
        steps.append(f"Use a kernel with {_listed(tuple(symbols))}.")
    if uninstalled:
        steps.append(f"Install the kernel's package that brings the modules {_listed(tuple(uninstalled))}.")
    if not_early:
        steps.append(command_to_add(_generator(wrong[0].kernel), [name for name in not_early if name.isidentifier()]))
    return " ".join(steps)


def _generator(kernel: BootableKernel) -> Generator | None:
    """The program that makes the initial RAM disk: by what it made, else by what the root has."""
    return kernel.generator or (generator_on_root(kernel.root) if kernel.root is not None else None)
