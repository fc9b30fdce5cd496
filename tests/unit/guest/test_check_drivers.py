from __future__ import annotations

from collections.abc import Sequence

import pytest

from armvm.guest.bootable import BootableKernel
from armvm.guest.check_drivers import DRIVER_CHECKS
from armvm.guest.generators import Generator, command_to_add
from armvm.spec.catalogue import requirements
from armvm.spec.judgement import Judgement
from armvm.spec.verdict import Verdict
from tools.initramfs_images import CONFIG, Guest, image

BLK, PCI = "drivers/block/virtio_blk", "drivers/virtio/virtio_pci"
MODERN = "drivers/virtio/virtio_pci_modern_dev"
XEN = "drivers/block/xen-blkfront"


def judge(kernels: Sequence[BootableKernel]) -> dict[str, Judgement]:
    return {name: check(kernels) for name, check in DRIVER_CHECKS.items()}


def failures(guest: Guest) -> dict[str, Judgement]:
    judged = judge([guest.load()])
    assert Verdict.UNKNOWN not in {one.verdict for one in judged.values()}
    return {name: one for name, one in judged.items() if one.verdict is Verdict.FAIL}


def test_every_check_is_asked_for() -> None:
    assert set(DRIVER_CHECKS) < set(requirements())


def test_a_guest_that_has_everything() -> None:
    judged = judge([Guest().load()])
    assert {one.verdict for one in judged.values()} == {Verdict.PASS}
    assert len(judged["guest.virtio-pci"].evidence) == 5


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (["SERIAL_AMBA_PL011"], {"guest.console-pl011"}),
        (["SERIAL_AMBA_PL011_CONSOLE"], {"guest.console-pl011"}),
        (["HVC_XEN"], {"guest.console-xen", "guest.xen-pv"}),
        (["XEN"], {"guest.console-xen", "guest.xen-pv"}),
        (["ARM_GIC"], {"guest.gicv2"}),
        (["ARM_GIC_V3"], {"guest.gic-newer"}),
        (["ARM_GIC_V3_ITS"], {"guest.gic-newer"}),
        (["ARM_GIC_V3_ITS", "PCI"], set()),
        (["RTC_DRV_EFI"], {"guest.rtc-efi"}),
        (["XEN_BALLOON"], {"guest.xen-pv"}),
        (["ACPI"], {"guest.acpi"}),
    ],
)
def test_switched_off(symbols: list[str], expected: set[str]) -> None:
    found = failures(Guest(config={**CONFIG, **dict.fromkeys(symbols, "n")}))
    assert set(found) == expected
    for judgement in found.values():
        assert judgement.remedy is not None
        assert f"CONFIG_{symbols[0]}=" in judgement.remedy
        assert any(evidence.expected for evidence in judgement.evidence)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (BLK, {"guest.virtio-pci", "guest.virtio-mmio"}),
        (PCI, {"guest.virtio-pci"}),
        (MODERN, {"guest.virtio-pci"}),
        ("drivers/virtio/virtio_mmio", {"guest.virtio-mmio"}),
        ("drivers/char/virtio_console", {"guest.console-virtio"}),
        (XEN, {"guest.xen-pv"}),
    ],
)
def test_taken_out_of_the_initrd(taken: str, expected: set[str]) -> None:
    guest = Guest()
    del guest.early[taken]
    found = failures(guest)
    assert set(found) == expected
    for judgement in found.values():
        assert "before the root file system" in judgement.message
        assert "/etc/initramfs-tools/modules && update-initramfs" in (judgement.remedy or "")
        assert taken.rpartition("/")[2].replace("-", "_") in (judgement.remedy or "")


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ("drivers/net/virtio_net", {"guest.virtio-pci", "guest.virtio-mmio"}),
        ("drivers/virtio/virtio_balloon", {"guest.virtio-pci", "guest.virtio-mmio"}),
        ("drivers/net/xen-netfront", {"guest.xen-pv"}),
    ],
)
def test_not_installed(taken: str, expected: set[str]) -> None:
    guest = Guest()
    del guest.modules[taken]
    found = failures(guest)
    assert set(found) == expected
    for judgement in found.values():
        assert judgement.message.endswith("is absent.")
        assert (judgement.remedy or "").startswith("Install the kernel's package")


def test_a_dependency_that_is_nowhere() -> None:
    guest = Guest()
    del guest.modules["drivers/net/net_failover"]
    found = failures(guest)
    assert set(found) == {"guest.virtio-pci", "guest.virtio-mmio"}
    assert all("cannot be loaded without net_failover" in judgement.message for judgement in found.values())


def test_modules_of_another_kernel_in_the_initrd() -> None:
    found = failures(Guest(initrd_release="5.10.0-9-other"))
    assert set(found) == {"guest.console-virtio", "guest.virtio-pci", "guest.virtio-mmio", "guest.xen-pv"}
    (evidence,) = found["guest.console-virtio"].evidence
    assert evidence.expected == "built in or in the initial RAM disk"


def test_no_initrd_and_no_root() -> None:
    judged = judge([Guest(with_initrd=False, with_root=False, kernel=image()).load()])
    assert {one.verdict for one in judged.values()} == {Verdict.UNKNOWN}
    judged = judge([])
    assert {one.verdict for one in judged.values()} == {Verdict.UNKNOWN}


def test_the_entry_that_fails_is_named() -> None:
    good, bad = Guest(), Guest()
    del bad.early[BLK]
    kernels = [good.load(), bad.load("Debian (recovery)\x1b", default=False)]
    judged = DRIVER_CHECKS["guest.virtio-pci"](kernels)
    assert judged.verdict is Verdict.FAIL
    assert judged.message.endswith(', in "Debian (recovery)\\x1b".')
    judged = DRIVER_CHECKS["guest.virtio-pci"]([bad.load(), good.load("other", default=False)])
    assert judged.message.endswith(', in "Debian GNU/Linux" (the default).')
    both = DRIVER_CHECKS["guest.virtio-pci"]([bad.load(), bad.load("other", default=False)])
    assert ", in" not in both.message


def test_pl011_as_a_module_is_no_console() -> None:
    guest = Guest(config={**CONFIG, "SERIAL_AMBA_PL011": "m", "SERIAL_AMBA_PL011_CONSOLE": "n"})
    guest.early["drivers/tty/serial/amba-pl011"] = ""
    found = failures(guest)
    assert set(found) == {"guest.console-pl011"}
    assert "is a module only" in found["guest.console-pl011"].message


def test_acpi_is_asked_of_aarch64_only() -> None:
    from armvm.execution import ExecutionState
    from tools.initramfs_images import zimage

    guest = Guest(kernel=zimage(b""), state=ExecutionState.AARCH32, config={**CONFIG, "ARM": "y", "ACPI": "n"})
    kernel = guest.load()
    assert kernel.state is ExecutionState.AARCH32
    assert DRIVER_CHECKS["guest.acpi"]([kernel]).verdict is Verdict.NOT_APPLICABLE
    assert DRIVER_CHECKS["guest.acpi"]([kernel, Guest().load()]).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("file", "generator"),
    [
        ("usr/lib/dracut/hooks/x", Generator.DRACUT),
        ("init_functions", Generator.MKINITCPIO),
        ("etc/booster.init.yaml", Generator.BOOSTER),
    ],
)
def test_the_remedy_is_of_the_initrds_maker(file: str, generator: Generator) -> None:
    guest = Guest(initrd_files={file: b""})
    del guest.early[BLK]
    remedy = failures(guest)["guest.virtio-pci"].remedy
    assert remedy == command_to_add(generator, ["virtio_blk"])


def test_alpines_initrd() -> None:
    guest = Guest(initrd_files={"init": b"#!/bin/sh\necho Alpine Init 3.9.0\n"})
    assert guest.load().generator is Generator.MKINITFS
    assert "xen?blkfront" in command_to_add(Generator.MKINITFS, ["xen_blkfront"])


def test_the_remedy_by_what_the_root_has() -> None:
    guest = Guest(initrd_files={}, root_files={"usr/bin/dracut": b""})
    del guest.early[BLK]
    assert failures(guest)["guest.virtio-pci"].remedy == command_to_add(Generator.DRACUT, ["virtio_blk"])
    guest.root_files = {}
    assert "Make the initial RAM disk anew with virtio_blk" in (failures(guest)["guest.virtio-pci"].remedy or "")
