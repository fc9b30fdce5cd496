"""An image laid out as Fedora's are: XFS or btrfs root, ext4 /boot with BLS entries, shim and fallback; read whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from armvm.disk.composed import ComposedDisk
from armvm.disk.fat_tree import FatFile
from armvm.disk.fat_write import plan_fat32
from armvm.disk.gpt_write import PartitionRequest, disk_size_for, plan_partitions, serialise
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.disk.write import write_raw
from armvm.execution import ExecutionState
from armvm.guest.audit import GuestAudit
from armvm.guest.check import check_image
from armvm.guid import ESP_TYPE, LINUX_ROOT_ARM64_TYPE, XBOOTLDR_TYPE, derived_guid
from armvm.image.contents import ImageContents
from armvm.spec.verdict import Verdict
from armvm.units import MIB
from tools.boot_volumes import BOOT_UUID
from tools.file_trees import UUID as ROOT_UUID
from tools.file_trees import btrfs_image, run, xfs_image
from tools.foreign_packages import foreign_package
from tools.grub_configs import FEDORA, FEDORA_ID, FEDORA_STUB, fedora_entry, grubenv
from tools.guest_parts import guest_kernel, initrd, module_tree, shim

STATE = ExecutionState.AARCH64
OPTIONS = f"root=UUID={ROOT_UUID} ro console=ttyAMA0 console=hvc0"
CSV = "shimaa64.efi,Fedora,,This is the boot entry for Fedora\n"
MODULES = ("normal", "configfile", "search", "search_fs_uuid", "part_gpt", "fat", "ext2", "linux", "echo", "test")


def grub() -> bytes:
    """GRUB as Fedora has it: its prefix is /EFI/fedora."""
    package = foreign_package("arm64", "grub-efi-arm64-bin", "grub-efi-arm64-unsigned")
    folder = package / "usr/lib/grub/arm64-efi"
    with tempfile.NamedTemporaryFile() as made:
        run("grub-mkimage", "-O", "arm64-efi", "-d", str(folder), "-p", "/EFI/fedora", "-o", made.name, *MODULES)
        return Path(made.name).read_bytes()


def esp(*, fallback: bool = True) -> dict[str, bytes]:
    """The ESP's files."""
    package = foreign_package("arm64", "shim-unsigned") / "usr/lib/shim"
    files = {
        "EFI/BOOT/BOOTAA64.EFI": shim(),
        "EFI/BOOT/fbaa64.efi": (package / "fbaa64.efi").read_bytes(),
        "EFI/fedora/BOOTAA64.CSV": CSV.encode("utf-16"),
        "EFI/fedora/shimaa64.efi": shim(),
        "EFI/fedora/grubaa64.efi": grub(),
        "EFI/fedora/grub.cfg": FEDORA_STUB.encode(),
    }
    if not fallback:
        del files["EFI/fedora/BOOTAA64.CSV"]
    return files


def boot_tree(folder: Path) -> Path:
    """What stands on /boot."""
    kernel = guest_kernel(STATE)
    entries = folder / "loader/entries"
    entries.mkdir(parents=True)
    (folder / "grub2").mkdir()
    (folder / "grub2/grub.cfg").write_text(FEDORA)
    entry = f"{FEDORA_ID}-{kernel.release}"
    (folder / "grub2/grubenv").write_bytes(grubenv(saved_entry=entry, kernelopts=OPTIONS))
    (entries / f"{entry}.conf").write_bytes(fedora_entry(kernel.release, options=OPTIONS))
    shutil.copy(kernel.kernel.image, folder / f"vmlinuz-{kernel.release}")
    shutil.copy(kernel.config, folder / f"config-{kernel.release}")
    (folder / f"initramfs-{kernel.release}.img").write_bytes(initrd(STATE))
    return folder


def root_folder(folder: Path) -> Path:
    """The root's files."""
    for path, content in {
        "etc/fstab": f"UUID={ROOT_UUID} / auto defaults 0 0\nUUID={BOOT_UUID} /boot ext4 defaults 1 2\n",
        "usr/lib/os-release": 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=40\nPRETTY_NAME="Fedora Linux 40"\n',
        "usr/lib/systemd/systemd": "",
        "etc/default/grub": f'GRUB_CMDLINE_LINUX="{OPTIONS}"\nGRUB_ENABLE_BLSCFG=true\n',
    }.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    (folder / "etc/os-release").symlink_to("../usr/lib/os-release")
    (folder / "boot").mkdir()
    for name, module in module_tree(STATE, root=True).items():
        place = folder / "usr/lib/modules" / guest_kernel(STATE).release / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(module)
    return folder


def image(folder: Path, kind: str, files: dict[str, bytes]) -> Disk:
    """The disk, put together of what mkfs made."""
    boot = folder / "boot.ext4"
    with boot.open("wb") as file:
        file.truncate(160 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-U", BOOT_UUID, "-d", str(boot_tree(folder / "boot")), str(boot))
    make = {"xfs": xfs_image, "btrfs": btrfs_image}[kind]
    volumes: list[Disk] = [RawDisk(boot), RawDisk(make(folder / "root.img", root_folder(folder / "root")))]
    sizes = [40 * MIB, *(volume.size_bytes for volume in volumes)]
    types = (ESP_TYPE, XBOOTLDR_TYPE, LINUX_ROOT_ARM64_TYPE)
    requests = [
        PartitionRequest(of_type, derived_guid("fedora", str(number)), f"p{number}", size)
        for number, (of_type, size) in enumerate(zip(types, sizes, strict=True))
    ]
    layout = plan_partitions(
        requests, disk_guid=derived_guid("fedora", "disk"), sector_size=512, size_bytes=disk_size_for(sizes)
    )
    tree = [FatFile(path, MemoryDisk(content)) for path, content in files.items()]
    first = layout.partitions[0].first_lba
    fat = plan_fat32(sizes[0], 512, tree, label="ESP", volume_id=1, timestamp=1_700_000_000, hidden_sectors=first)
    pieces = [(p.offset_bytes(512), disk) for p, disk in zip(layout.partitions, [fat, *volumes], strict=True)]
    pieces += [(offset, MemoryDisk(data)) for offset, data in serialise(layout)]
    return ComposedDisk("fedora.img", layout.size_bytes, pieces)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_it_is_read_in_full(kind: str, tmp_path: Path) -> None:
    with image(tmp_path, kind, esp()) as disk:
        report = check_image(disk)
        assert [f for f in report.findings if f.verdict is not Verdict.PASS] == []
        assert report.conforms is True
        audit = GuestAudit(ImageContents(disk))
        (entry,) = audit.entries
        assert (entry.command_line, entry.default) == (OPTIONS, True)
        system = audit.systems[STATE]
        assert system is not None
        assert (system.os.id if system.os else None, system.root and system.root.name) == ("fedora", "partition 3")
        assert {place for place, _ in system.mounts} == {"/boot"}
        (kernel,) = audit.kernels
        assert kernel.root_modules is not None


def test_without_the_list_fallback_finds_nothing(tmp_path: Path) -> None:
    with image(tmp_path, "xfs", esp(fallback=False)) as disk:
        failed = [f for f in check_image(disk).findings if f.verdict is Verdict.FAIL]
    assert [finding.requirement for finding in failed] == ["image.self-contained-boot"]
    assert any("CSV" in f"{e.found} {e.expected}" for e in failed[0].evidence)


def test_without_the_extra_the_root_is_unknown_and_says_how_to_read_it(tmp_path: Path) -> None:
    """In a process in which the library cannot be imported."""
    with image(tmp_path, "xfs", esp()) as disk, (tmp_path / "disk.img").open("wb") as file:
        write_raw(file, disk)
    program = (
        "import sys; sys.modules['dissect'] = None; "
        f"from armvm.cli.main import main; sys.exit(main(['check', {str(tmp_path / 'disk.img')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "guest.no-assumptions" in done.stdout.partition("unknown:")[2]
    assert "armvm[filesystems]" in done.stdout
