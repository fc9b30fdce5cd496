"""What we say of real kernels and initial RAM disks, beside what cpio, kmod and the kernels' own configurations say."""

from __future__ import annotations

import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

from armvm.disk.files import FileKind, MemoryFileSystem
from armvm.disk.storage import MemoryDisk
from armvm.execution import ExecutionState
from armvm.guest.bootable import BootableKernel, load_kernel
from armvm.guest.check_drivers import DRIVER_CHECKS
from armvm.guest.driver_catalogue import drivers
from armvm.guest.drivers import DriverPlace, find_driver
from armvm.guest.facts import BootEntry
from armvm.guest.initramfs import Initramfs, read_initramfs
from armvm.guest.kernel import read_kernel
from armvm.guest.kernel_config import KernelConfig, Setting
from armvm.guest.module_index import ModuleIndex, find_modules
from armvm.spec.verdict import Verdict
from tools.initramfs_images import cpio, zboot
from tools.installer import find_installer
from tools.kernels import debian_kernel

ABSENT_IN_INSTALLER = {"virtio-blk", "virtio-scsi", "xen-blkfront"}
"""The netboot installer fetches these later: its initial RAM disk has none of them."""


def disk_of(path: Path) -> MemoryDisk:
    return MemoryDisk(path.read_bytes(), name=str(path))


@cache
def installer(state: ExecutionState) -> BootableKernel:
    parts = find_installer(state)
    initrd = (("partition 1, /initrd.gz", disk_of(parts.initrd)),)
    entry = BootEntry("Install", state, disk_of(parts.kernel), "partition 1, /linux", initrd, "--- quiet", default=True)
    return load_kernel(entry, root=None, boot=[])


@cache
def unpacked(state: ExecutionState, folder: Path) -> Path:
    """The installer's initial RAM disk as gzip and cpio unpack it."""
    folder.mkdir()
    command = f"zcat {find_installer(state).initrd} | cpio -id --quiet --no-absolute-filenames --no-preserve-owner"
    subprocess.run(["bash", "-c", f"set -o pipefail; {command} 2>/dev/null || true"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module", params=list(ExecutionState))
def state(request: pytest.FixtureRequest) -> ExecutionState:
    value = request.param
    assert isinstance(value, ExecutionState)
    return value


@pytest.fixture(scope="module")
def tree(state: ExecutionState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(state, tmp_path_factory.mktemp("initrd") / "tree")


def test_the_installers_tree_is_what_cpio_makes_of_it(state: ExecutionState, tree: Path) -> None:
    initramfs = installer(state).initramfs
    assert initramfs is not None
    ours = {entry.path: entry for entry in initramfs.walk()}
    theirs = {f"/{path.relative_to(tree)}": path for path in tree.rglob("*")}
    assert {path for path, entry in ours.items() if entry.kind is not FileKind.OTHER} == {
        path for path, file in theirs.items() if file.is_symlink() or file.is_dir() or file.is_file()
    }
    for path, entry in ours.items():
        if entry.kind is FileKind.LINK:
            assert entry.link_target == str(theirs[path].readlink())
        elif entry.kind is FileKind.FILE:
            assert entry.size_bytes == theirs[path].stat().st_size
    for path in ("/init", "/bin/busybox", "/etc/inittab"):
        assert initramfs.read(path) == theirs[path].read_bytes()


def test_the_installer_driver_by_driver(state: ExecutionState, tree: Path) -> None:
    """Every finding, against the files that cpio unpacks and the list of built-in modules beside them."""
    kernel = installer(state)
    files = {path.name.replace("-", "_") for path in tree.rglob("*.ko")}
    (builtin,) = tree.glob("lib/modules/*/modules.builtin")
    built_in = {Path(line).stem.replace("-", "_") for line in builtin.read_text().splitlines()}
    for driver in drivers().values():
        place = find_driver(kernel, driver).place
        if driver.module is None:
            expected = DriverPlace.BUILT_IN if state in driver.states else DriverPlace.ABSENT
        elif driver.module in built_in:
            expected = DriverPlace.BUILT_IN
        else:
            expected = DriverPlace.IN_INITRD if f"{driver.module}.ko" in files else DriverPlace.ABSENT
            assert (expected is DriverPlace.ABSENT) == (driver.id in ABSENT_IN_INSTALLER)
        assert place is expected, driver.id


def test_the_installers_verdicts(state: ExecutionState) -> None:
    judged = {name: check([installer(state)]) for name, check in DRIVER_CHECKS.items()}
    failed = {name for name, judgement in judged.items() if judgement.verdict is Verdict.FAIL}
    assert failed == {"guest.virtio-pci", "guest.virtio-mmio", "guest.xen-pv"}
    assert "Virtio block device (virtio_blk) is absent." in judged["guest.virtio-pci"].message
    unjudged = {name for name, judgement in judged.items() if judgement.verdict is not Verdict.PASS} - failed
    assert unjudged == ({"guest.acpi"} if state is ExecutionState.AARCH32 else set())


@pytest.mark.parametrize("state", ExecutionState)
def test_the_kernels_own_words_say_what_its_configuration_says(state: ExecutionState) -> None:
    """Each mark of drivers.toml, in both directions: it is there when the driver is built in, and only then."""
    kernel = debian_kernel(state)
    (config_file,) = kernel.image.parent.glob("config-*")
    config = KernelConfig.parse(config_file.read_text(), "config")
    every = {mark for driver in drivers().values() for mark in driver.marks}
    facts = read_kernel(disk_of(kernel.image), marks=every)
    assert facts.version == kernel.modules.name
    assert config.is_for(facts.state)
    for driver in drivers().values():
        built_in = any(config.setting(symbol) is Setting.BUILT_IN for symbol in driver.symbols)
        assert bool(driver.marks & facts.marks()) == built_in, driver.id


@cache
def depmod(folder: Path) -> Path:
    """The cloud kernel's modules, copied, with the lists that depmod makes."""
    kernel = debian_kernel(ExecutionState.AARCH64)
    target = folder / "lib/modules" / kernel.modules.name
    shutil.copytree(kernel.modules, target)
    program = shutil.which("depmod") or "/sbin/depmod"
    subprocess.run([program, "-b", str(folder), kernel.modules.name], check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return depmod(tmp_path_factory.mktemp("root"))


def index_of(folder: Path, *lists: str) -> ModuleIndex:
    """The modules of drivers and what they need, and ``lists``, as if on a root file system."""
    base = f"lib/modules/{folder.name}"
    wanted = {driver.module for driver in drivers().values()} | {"virtio", "virtio_ring", "failover", "net_failover"}
    wanted |= {"virtio_pci_modern_dev", "virtio_pci_legacy_dev", "scsi_mod"}
    files = {f"{base}/{name}": (folder / name).read_bytes() for name in lists}
    for path in folder.rglob("*.ko"):
        if path.stem.replace("-", "_") in wanted:
            files[f"{base}/{path.relative_to(folder)}"] = path.read_bytes()
    found = find_modules(MemoryFileSystem(files), folder.name)
    assert found is not None
    return found


def test_needs_are_those_that_depmod_and_modinfo_tell(modules: Path) -> None:
    indexes = [index_of(modules, "modules.dep"), index_of(modules, "modules.dep.bin"), index_of(modules)]
    text = (modules / "modules.dep").read_text()
    told = {Path(line.partition(":")[0]).stem.replace("-", "_"): line.partition(":")[2] for line in text.splitlines()}
    checked = 0
    for driver in drivers().values():
        if driver.module in told:
            needed = {Path(path).stem.replace("-", "_") for path in told[driver.module].split()}
            for index in indexes:
                assert index.file(driver.module) is not None
                assert set(index.needs(driver.module).names) == needed
            checked += 1
    assert checked >= 8


def test_the_binary_lists_hold_what_the_text_holds(modules: Path) -> None:
    text, binary = index_of(modules, "modules.builtin"), index_of(modules, "modules.builtin.bin")
    assert text.builtin
    assert text.builtin == binary.builtin


@pytest.mark.parametrize(
    "command", ["gzip -1", "xz -0 --check=crc32", "lzma -0", "zstd -1", "lz4 -l", "lz4", "bzip2 -1", "lzop"]
)
def test_every_compression_by_its_own_program(command: str, modules: Path) -> None:
    content = {"usr/lib/one.ko": (modules / "kernel/drivers/block/virtio_blk.ko").read_bytes(), "init": b"#!/bin/sh\n"}
    packed = subprocess.run(command.split(), input=cpio(content), capture_output=True, check=True).stdout
    early = cpio({"kernel/x86/microcode/GenuineIntel.bin": bytes(999)})
    initramfs = read_initramfs([MemoryDisk(early + bytes(512) + packed)])
    assert initramfs.complete, initramfs.problems
    for path, expected in content.items():
        assert initramfs.read(f"/{path}") == expected


def test_cpio_reads_what_the_tests_write(tmp_path: Path) -> None:
    content: dict[str, bytes | str] = {"a/b/c": b"content", "a/link": "b/c", "empty": b""}
    for magic in (b"070701",):
        subprocess.run(["cpio", "-id", "--quiet"], input=cpio(content, magic=magic), cwd=tmp_path, check=True)
    assert (tmp_path / "a/link").read_bytes() == b"content"
    assert (tmp_path / "empty").read_bytes() == b""


def test_archives_of_cpio_itself(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/one").write_bytes(b"same")
    (tmp_path / "etc/two").hardlink_to(tmp_path / "etc/one")
    (tmp_path / "link").symlink_to("etc/one")
    names = subprocess.run(["find", "."], cwd=tmp_path, capture_output=True, check=True).stdout
    for layout in ("newc", "crc"):
        made = subprocess.run(
            ["cpio", "-o", "--quiet", "-H", layout], input=names, cwd=tmp_path, capture_output=True, check=True
        )
        initramfs = read_initramfs([MemoryDisk(made.stdout)])
        assert initramfs.complete
        assert [initramfs.read(path) for path in ("/etc/one", "/etc/two", "/link")] == [b"same"] * 3


def test_a_real_kernel_as_efi_zboot() -> None:
    kernel = debian_kernel(ExecutionState.AARCH64)
    packed = subprocess.run(["zstd", "-1", "-c", str(kernel.image)], capture_output=True, check=True).stdout
    assert read_kernel(MemoryDisk(zboot(packed, "zstd22"))).version == kernel.modules.name


def test_a_real_cloud_guest_is_judged_in_a_moment(modules: Path) -> None:
    """Kernel, configuration and modules of Debian's cloud kernel; the kernel image itself is never searched."""
    kernel = debian_kernel(ExecutionState.AARCH64)
    release = kernel.modules.name
    index = index_of(modules, "modules.dep", "modules.builtin")
    root = index.files
    early: dict[str, bytes | str] = {f"usr/lib/modules/{release}/modules.dep": (modules / "modules.dep").read_bytes()}
    for file in root.walk(f"/lib/modules/{release}"):
        if file.path.endswith(".ko"):
            early[f"usr{file.path}"] = root.read(file)
    early["conf/initramfs.conf"] = b""
    packed = subprocess.run(["zstd", "-1"], input=cpio(early), capture_output=True, check=True).stdout
    (config,) = kernel.image.parent.glob("config-*")
    boot = MemoryFileSystem({f"boot/{config.name}": config.read_bytes()}, name="partition 3")
    start = time.process_time()
    entry = BootEntry(
        "Debian",
        ExecutionState.AARCH64,
        disk_of(kernel.image),
        f"partition 3, /boot/vmlinuz-{release}",
        (("partition 3, /boot/initrd.img", MemoryDisk(packed)),),
        "root=UUID=1",
    )
    loaded = load_kernel(entry, root=root, boot=[boot])
    judged = {name: check([loaded]) for name, check in DRIVER_CHECKS.items()}
    assert {judgement.verdict for judgement in judged.values()} == {Verdict.PASS}, judged
    assert not loaded.problems
    assert loaded.kernel is not None
    assert "_seen" not in loaded.kernel.__dict__
    assert time.process_time() - start < 2


def test_listing_as_cpio_lists(state: ExecutionState) -> None:
    made = subprocess.run(
        ["bash", "-c", f"zcat {find_installer(state).initrd} | cpio -t --quiet"], capture_output=True, check=True
    )
    names = {line.removeprefix("./") for line in made.stdout.decode().splitlines()} - {"."}
    initramfs = installer(state).initramfs
    assert isinstance(initramfs, Initramfs)
    assert {entry.path.lstrip("/") for entry in initramfs.walk()} == names
