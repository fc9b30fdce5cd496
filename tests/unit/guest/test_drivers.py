from __future__ import annotations

import pytest

from armvm.disk.files import MemoryFileSystem
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.bootable import BootableKernel, KernelCache
from armvm.guest.driver_catalogue import drivers
from armvm.guest.drivers import DriverFinding, DriverPlace, find_driver, find_drivers
from armvm.guest.module_index import ModuleIndex, find_modules, module_releases, parse_index
from tools.initramfs_images import CONFIG, MODULES, RELEASE, Guest, config_text, cpio, ikconfig, image, modules_dep

BLK = "drivers/block/virtio_blk"
PCI = "drivers/virtio/virtio_pci"


def find(guest: Guest | BootableKernel, driver: str) -> DriverFinding:
    return find_driver(guest.load() if isinstance(guest, Guest) else guest, drivers()[driver])


def said(finding: DriverFinding) -> str:
    return " | ".join(f"{evidence.where}: {evidence.found}" for evidence in finding.evidence)


def test_a_guest_that_has_everything() -> None:
    kernel = Guest().load()
    assert kernel.release == RELEASE
    assert not kernel.problems
    assert not kernel.whole_system
    places = {finding.driver.id: (finding.place, finding.early) for finding in find_drivers(kernel, drivers().values())}
    early = ("virtio-console", "virtio-pci", "virtio-mmio", "virtio-blk", "xen-blkfront")
    late = ("virtio-net", "virtio-balloon", "xen-netfront")
    for name, found in places.items():
        if name == "virtio-scsi":
            assert found == (DriverPlace.ABSENT, False)
        elif name in early:
            assert found == (DriverPlace.IN_INITRD, True)
        elif name in late:
            assert found == (DriverPlace.ON_ROOT, False)
        else:
            assert found == (DriverPlace.BUILT_IN, True)


def test_the_place_is_named() -> None:
    kernel = Guest().load()
    assert said(find(kernel, "virtio-blk")) == (
        f"partition 2, /boot/config-{RELEASE}: CONFIG_VIRTIO_BLK=m"
        f" | partition 2, /boot/initrd.img, /lib/modules/{RELEASE}/kernel/{BLK}.ko: module virtio_blk"
    )
    assert said(find(kernel, "xen-netfront")).endswith(
        f"partition 2, /lib/modules/{RELEASE}/kernel/drivers/net/xen-netfront.ko: module xen_netfront"
    )
    assert said(find(kernel, "gicv2")) == f"partition 2, /boot/config-{RELEASE}: CONFIG_ARM_GIC=y"


def test_a_module_taken_out_of_the_initrd() -> None:
    guest = Guest()
    del guest.early[BLK]
    found = find(guest, "virtio-blk")
    assert (found.place, found.early) == (DriverPlace.ON_ROOT, False)
    assert "initrd.img, /lib/modules/6.1.0-1-test: no module virtio_blk" in said(found)


def test_a_module_that_is_nowhere() -> None:
    guest = Guest()
    del guest.early[BLK], guest.modules[BLK]
    found = find(guest, "virtio-blk")
    assert (found.place, found.early) == (DriverPlace.ABSENT, False)


@pytest.mark.parametrize("with_lists", [True, False])
def test_a_dependency_that_is_missing(with_lists: bool) -> None:
    guest = Guest(with_lists=with_lists)
    del guest.early["drivers/virtio/virtio_pci_modern_dev"]
    found = find(guest, "virtio-pci")
    assert (found.place, found.early) == (DriverPlace.ON_ROOT, False)
    assert found.missing == ("virtio_pci_modern_dev",)
    source = "modules.dep" if with_lists else "modinfo"
    assert "it is there, but not virtio_pci_modern_dev, which it needs" in said(found)
    assert source in said(found)


def test_switched_off() -> None:
    guest = Guest(config={**CONFIG, "ARM_GIC": "n", "VIRTIO_BLK": "n"})
    del guest.early[BLK], guest.modules[BLK]
    for name in ("gicv2", "virtio-blk"):
        found = find(guest, name)
        assert (found.place, found.early) == (DriverPlace.ABSENT, False)
        assert "is not set" in said(found)


def test_modules_of_another_kernel_do_not_count() -> None:
    guest = Guest(initrd_release="5.10.0-9-other")
    found = find(guest, "virtio-blk")
    assert (found.place, found.early) == (DriverPlace.ON_ROOT, False)
    assert "modules for 5.10.0-9-other only" in said(found)
    guest.modules = {}
    guest.root_files["usr/lib/x"] = b""
    guest.root_files[f"lib/modules/5.10.0-9-other/kernel/{BLK}.ko"] = b""
    assert find(guest, "virtio-blk").place is DriverPlace.ABSENT


def test_a_kernel_whose_name_lies() -> None:
    guest = Guest(kernel_name="/boot/vmlinuz-5.10.0-9-other", initrd_release="5.10.0-9-other")
    kernel = guest.load()
    assert kernel.release == RELEASE
    assert find(kernel, "virtio-blk").place is DriverPlace.ON_ROOT


def test_names_are_enough_where_they_agree() -> None:
    guest = Guest(kernel=image(release="9.9.9-never-read"))
    assert guest.load().release == RELEASE


def test_without_a_root_a_module_may_be_anywhere_but_early() -> None:
    guest = Guest(with_root=False, kernel=image(ikconfig(config_text(CONFIG))))
    kernel = guest.load()
    assert find(kernel, "virtio-blk").place is DriverPlace.IN_INITRD
    net = find(kernel, "virtio-net")
    assert (net.place, net.early) == (DriverPlace.UNKNOWN, False)
    assert "no root file system could be read" in said(net)
    assert find(kernel, "gicv2").place is DriverPlace.BUILT_IN
    assert "IKCONFIG" in said(find(kernel, "gicv2"))


def test_an_initrd_that_is_the_system() -> None:
    guest = Guest(with_root=False, initrd_files={"init": b"#!/bin/sh\n"}, command_line="console=ttyAMA0")
    guest.kernel = image(ikconfig(config_text(CONFIG)))
    kernel = guest.load()
    assert kernel.whole_system
    assert find(kernel, "virtio-blk").place is DriverPlace.IN_INITRD
    assert (find(kernel, "virtio-net").place, find(kernel, "virtio-net").early) == (DriverPlace.ABSENT, False)


def test_nothing_says_anything() -> None:
    guest = Guest(with_root=False, with_config=False, with_initrd=False)
    for driver in drivers().values():
        found = find_driver(guest.load(), driver)
        assert (found.place, found.early) == (DriverPlace.UNKNOWN, None), driver.id


def test_the_kernels_own_words() -> None:
    marks = [mark for driver in drivers().values() for mark in driver.marks]
    guest = Guest(with_root=False, with_config=False, with_initrd=False, kernel=image(*marks))
    for driver in drivers().values():
        found = find_driver(guest.load(), driver)
        assert (found.place, found.early) == (DriverPlace.BUILT_IN, True), driver.id
        assert "own words" in said(found)


def test_the_list_of_what_is_built_in() -> None:
    guest = Guest(with_config=False)
    guest.root_files[f"lib/modules/{RELEASE}/modules.builtin"] = b"kernel/drivers/tty/serial/amba-pl011.ko\n"
    kernel = guest.load()
    assert find(kernel, "pl011").place is DriverPlace.BUILT_IN
    assert "modules.builtin: names amba_pl011" in said(find(kernel, "pl011"))
    assert find(kernel, "virtio-blk").place is DriverPlace.IN_INITRD
    assert find(kernel, "rtc-efi").place is DriverPlace.ABSENT
    assert find(kernel, "pl011-console").place is DriverPlace.UNKNOWN


def test_an_initrd_that_is_damaged() -> None:
    guest = Guest()
    del guest.early[BLK], guest.modules[BLK]
    whole = guest.initrd()
    guest.initrd = lambda: whole[:-200]  # type: ignore[method-assign]  # cut off behind what it has
    kernel = guest.load()
    assert [problem.code for problem in kernel.problems] == ["initrd-unreadable"]
    assert (find(kernel, "virtio-blk").place, find(kernel, "virtio-blk").early) == (DriverPlace.UNKNOWN, None)
    assert (find(kernel, "virtio-net").place, find(kernel, "virtio-net").early) == (DriverPlace.ON_ROOT, None)
    assert find(kernel, "virtio-pci").place is DriverPlace.IN_INITRD


def test_no_kernel() -> None:
    guest = Guest(kernel=b"no kernel", with_root=False)
    kernel = guest.load()
    assert kernel.kernel is None
    assert [problem.code for problem in kernel.problems] == ["kernel-unreadable"]
    assert find(kernel, "gicv2").place is DriverPlace.UNKNOWN


def test_a_root_whose_usr_is_elsewhere() -> None:
    guest = Guest()
    root = MemoryFileSystem({f"boot/config-{RELEASE}": config_text(CONFIG)}, {"lib": "usr/lib"}, name="partition 2")
    guest.root = lambda: root  # type: ignore[method-assign]
    found = find(guest, "virtio-net")
    assert (found.place, found.early) == (DriverPlace.UNKNOWN, False)
    assert "elsewhere" in said(found)


def test_acpi_is_not_for_aarch32() -> None:
    guest = Guest(state=ExecutionState.AARCH32)
    kernel = guest.load()  # a kernel for AArch64, started in AArch32
    assert [problem.code for problem in kernel.problems] == ["kernel-state"]
    assert kernel.state is ExecutionState.AARCH64


def test_entries_with_one_kernel_read_it_once() -> None:
    cache = KernelCache()
    guest = Guest(with_root=False)
    one, two = guest.load("one", cache=cache), guest.load("two", cache=cache)
    assert one.kernel is two.kernel
    assert one.initramfs is two.initramfs
    assert find(one, "virtio-blk") is find(two, "virtio-blk")
    other = Guest()
    del other.early[BLK]
    assert find(other.load(cache=cache), "virtio-blk").place is DriverPlace.ON_ROOT


def test_configurations_that_do_not_count() -> None:
    for text, code in ((b"CONFIG_ARM=y\n", "config-state"), (b"CONFIG_ARM64=y", "unreadable"), (b"", "unreadable")):
        guest = Guest(with_config=False)
        guest.root_files[f"boot/config-{RELEASE}"] = text
        kernel = guest.load()
        assert kernel.config is None
        assert [problem.code for problem in kernel.problems] == [code]


def test_modules_by_their_files() -> None:
    files = MemoryFileSystem({"lib/modules/1/kernel/a/virtio-net.ko.xz": b"", "lib/modules/1/x.txt": b""})
    index = find_modules(files, "1")
    assert index is not None
    assert index.file("virtio_net") is not None
    assert index.file("x") is None
    assert index.builtin is None
    assert module_releases(files) == ("1",)
    assert find_modules(files, "2") is None
    assert find_modules(files, "../modules") is None
    with pytest.raises(InputError):
        index.needs("virtio_net")


def test_a_list_that_names_a_file_that_is_gone() -> None:
    files = MemoryFileSystem({"lib/modules/1/modules.dep": modules_dep(MODULES)})
    index = ModuleIndex(files, "/lib/modules/1")
    assert index.file("virtio_blk") is None
    assert index.needs("virtio_pci").names == ("virtio_pci_modern_dev",)


def test_binary_lists_that_are_damaged() -> None:
    head = (0xB007F457).to_bytes(4, "big") + (2 << 16 | 1).to_bytes(4, "big")
    for content in (b"", b"noise" * 9, head, head + b"\xff" * 4, head + b"\xe0\0\0\x0c" + b"abc\0"):
        with pytest.raises(InputError, match="list of kmod's"):
            parse_index(content, "modules.dep.bin")
    circle = head + b"\x20\0\0\x0c" + b"aa" + b"\x20\0\0\x0c"
    with pytest.raises(InputError, match="list of kmod's"):
        parse_index(circle + bytes(4000), "modules.dep.bin")


def test_the_initrd_made_by_nobody_known_with_a_root() -> None:
    guest = Guest(initrd_files={"init": b""}, command_line=None)
    assert not guest.load().whole_system
    guest.command_line = "quiet"
    assert guest.load().whole_system
    assert cpio({})
