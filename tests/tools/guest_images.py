"""Small real guests: Debian's kernel and modules, BusyBox on an ext4 root, GRUB at the removable path.

A guest is first a folder (``GuestTree``: ``root/`` and ``esp/``) and then a disk image (``GuestImage``: ESP, root and
swap). Both can be edited by the same words, which is how ``guest_faults`` breaks one in one place. Once it is up it
says, on every console that the kernel speaks on,

    ARMVM-ROOT-READY debian aarch64 mounts=ok swap=ok

and powers off.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from uuid import UUID

from armvm.disk.composed import ComposedDisk
from armvm.disk.fat_tree import FatFile
from armvm.disk.fat_write import plan_fat32
from armvm.disk.gpt_write import GptLayout, PartitionRequest, disk_size_for, plan_partitions, serialise
from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk, MemoryDisk
from armvm.disk.write import write_raw
from armvm.execution import ExecutionState
from armvm.guid import ESP_TYPE, LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE
from armvm.image.rootfs import make_ext4, minimum_size, root_tree
from armvm.units import MIB, align_up
from tools.guest_parts import applet_links, busybox, grub, guest_kernel, initrd, module_tree, swap_area

READY = "ARMVM-ROOT-READY"
ROOT_UUID = UUID("5f1b6c1e-6d1f-4b0e-9c55-0d5f2f4c1a01")
SWAP_UUID = UUID("7d0cb2a4-3a52-4a31-8a4e-9b0d3a3e6b02")
ESP_VOLUME_ID = 0x1A2B3C4D
ROOT_LABEL = "rootfs"
COMMAND_LINE = f"root=UUID={ROOT_UUID} ro quiet console=ttyAMA0 console=hvc0"
TIMESTAMP = 1_700_000_000
ESP_BYTES = 40 * MIB
SWAP_BYTES = 2 * MIB
_SWAP_TYPE = UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")
_DISK_GUID = UUID("c0ffee00-6d1f-4b0e-9c55-0d5f2f4c1a00")
_ROOT_TYPES = {ExecutionState.AARCH64: LINUX_ROOT_ARM64_TYPE, ExecutionState.AARCH32: LINUX_ROOT_ARM_TYPE}
_GRUB_FILES = {ExecutionState.AARCH64: "grubaa64.efi", ExecutionState.AARCH32: "grubarm.efi"}

ESP_CONFIG = f"search.fs_uuid {ROOT_UUID} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
_GRUB_CONFIG = """\
# made as update-grub makes it
set default="0"
set timeout=0

menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --id 'gnulinux-simple' {{
\tinsmod gzio
\tinsmod part_gpt
\tinsmod ext2
\tsearch --no-floppy --fs-uuid --set=root {uuid}
\techo\t'Loading Linux {release} ...'
\tlinux\t/boot/vmlinuz-{release} {command_line}
\techo\t'Loading initial ramdisk ...'
\tinitrd\t/boot/initrd.img-{release}
}}
"""
_START = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -o remount,rw /
for module in vfat nls_ascii nls_cp437; do modprobe -q $module; done
mount -a && mounts=ok || mounts=failed
swapon -a && swap=ok || swap=failed
. /etc/os-release
for console in $(cat /sys/class/tty/console/active); do
    echo "{READY} $ID $(uname -m) mounts=$mounts swap=$swap" > /dev/$console
done
umount -a -r
sync
poweroff -f
"""
ETC = {
    "fstab": f"""\
# <file system> <mount point> <type> <options> <dump> <pass>
UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1
UUID=1A2B-3C4D /boot/efi vfat umask=0077 0 1
UUID={SWAP_UUID} none swap sw 0 0
""",
    "hostname": "small\n",
    "inittab": "::sysinit:/etc/init.d/rcS\nconsole::respawn:/sbin/getty -L console 0 vt100\n"
    "::ctrlaltdel:/sbin/reboot\n",
    "init.d/rcS": _START,
    "default/grub": 'GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX_DEFAULT=""\n'
    'GRUB_CMDLINE_LINUX="console=ttyAMA0 console=hvc0"\n',
    "initramfs-tools/conf.d/resume": f"RESUME=UUID={SWAP_UUID}\n",
    "network/interfaces": "source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n",
    "network/interfaces.d/wired": "auto /e*=wired\niface wired inet dhcp\n",
    "netplan/01-all.yaml": 'network:\n  version: 2\n  ethernets:\n    wired:\n      match:\n        name: "e*"\n'
    "      dhcp4: true\n",
    "systemd/network/80-wired.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    "NetworkManager/system-connections/wired.nmconnection": "[connection]\nid=wired\ntype=ethernet\n\n[ipv4]\n"
    "method=auto\n",
    "udev/rules.d/60-net.rules": 'SUBSYSTEM=="net", ACTION=="add", ATTR{type}=="1", TAG+="wired"\n',
    "securetty": "console\nttyAMA0\nhvc0\n",
}
"""The configuration of a guest that assumes nothing, in every way in which it can be written."""
_OS_RELEASE = (
    'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'
    'VERSION="12 (bookworm)"\nID=debian\n'
)


class Guest(Protocol):
    """A guest that can be edited: paths on the root start with ``/``, those on the ESP have none."""

    @property
    def state(self) -> ExecutionState: ...
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, content: bytes) -> None: ...
    def remove(self, path: str) -> None: ...


@dataclass(frozen=True)
class GuestTree:
    """A guest as folders."""

    folder: Path
    state: ExecutionState

    def _path(self, path: str) -> Path:
        return self.folder / ("root" if path.startswith("/") else "esp") / path.lstrip("/")

    def read(self, path: str) -> bytes:
        """A file's content."""
        return self._path(path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """Make a file, or another content of one."""
        place = self._path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # it may be a link to another tree's
        place.write_bytes(content)

    def remove(self, path: str) -> None:
        """Take a file away."""
        self._path(path).unlink()


@dataclass(frozen=True)
class GuestImage:
    """A guest on a raw disk image; edited by debugfs and mtools."""

    path: Path
    state: ExecutionState

    def read(self, path: str) -> bytes:
        """A file's content."""
        if not path.startswith("/"):
            return _run("mtype", "-i", self._esp, f"::{path}")
        return _run("debugfs", "-R", f"cat {path}", self._root)

    def write(self, path: str, content: bytes) -> None:
        """Make a file, or another content of one."""
        source = self.path.with_name(f"{self.path.name}.{os.getpid()}.file")
        source.write_bytes(content)
        source.chmod(0o755 if content.startswith(b"#!") else 0o644)
        parents = [parent.as_posix() for parent in reversed(Path(path).parents) if parent.name]
        try:
            if path.startswith("/"):
                # debugfs loses an inode when it is to make a folder that is there.
                missing = [parent for parent in parents if not _run("debugfs", "-R", f"stat {parent}", self._root)]
                commands = [*(f"mkdir {parent}" for parent in missing), f"rm {path}", f"write {source} {path}"]
                self._debugfs(*commands)
            else:
                for parent in parents:
                    subprocess.run(["mmd", "-D", "s", "-i", self._esp, f"::{parent}"], capture_output=True, check=False)
                _run("mcopy", "-o", "-i", self._esp, str(source), f"::{path}")
        finally:
            source.unlink()

    def remove(self, path: str) -> None:
        """Take a file away."""
        if path.startswith("/"):
            self._debugfs(f"rm {path}")
        else:
            _run("mdel", "-i", self._esp, f"::{path}")

    def _debugfs(self, *commands: str) -> None:
        script = self.path.with_name(f"{self.path.name}.{os.getpid()}.cmd")
        script.write_text("".join(f"{command}\n" for command in commands))
        try:
            _run("debugfs", "-w", "-f", str(script), self._root)
        finally:
            script.unlink()

    @property
    def layout(self) -> GptLayout:
        """The partitions as they were made."""
        return _layout(self.state, self.path.stat().st_size)

    @property
    def _esp(self) -> str:
        return f"{self.path}@@{self.layout.partitions[0].offset_bytes(512)}"

    @property
    def _root(self) -> str:
        return f"{self.path}?offset={self.layout.partitions[1].offset_bytes(512)}"


def guest_tree(folder: Path, state: ExecutionState = ExecutionState.AARCH64) -> GuestTree:
    """Lay the good guest out in ``folder``, which must not exist."""
    kernel = guest_kernel(state)
    tree = GuestTree(folder, state)
    root = folder / "root"
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "boot/efi", "usr/lib"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "lib").symlink_to("usr/lib")
    tree.write("/bin/busybox", busybox(state))
    (root / "bin/busybox").chmod(0o755)
    for link, target in applet_links().items():
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(target)
    for name, text in ETC.items():
        tree.write(f"/etc/{name}", text.encode())
    (root / "etc/init.d/rcS").chmod(0o755)
    tree.write("/usr/lib/os-release", _OS_RELEASE.encode())
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    tree.write("/var/lib/dpkg/info/ifupdown.list", b"/sbin/ifup\n")
    for name, content in module_tree(state, root=True).items():
        tree.write(f"/usr/lib/modules/{kernel.release}/{name}", content)
    tree.write(f"/boot/vmlinuz-{kernel.release}", kernel.kernel.image.read_bytes())
    tree.write(f"/boot/config-{kernel.release}", kernel.config.read_bytes())
    tree.write(f"/boot/initrd.img-{kernel.release}", initrd(state))
    config = _GRUB_CONFIG.format(uuid=ROOT_UUID, release=kernel.release, command_line=COMMAND_LINE)
    tree.write("/boot/grub/grub.cfg", config.encode())
    for path in (f"EFI/BOOT/{state.boot_file}", vendor_loader(state)):
        tree.write(path, grub(state))
    tree.write("EFI/debian/grub.cfg", ESP_CONFIG.encode())
    return tree


def copy_tree(tree: GuestTree, folder: Path) -> GuestTree:
    """A copy of a guest's folders that shares its files until they are written."""
    shutil.copytree(tree.folder, folder, symlinks=True, copy_function=os.link)
    return replace(tree, folder=folder)


def vendor_loader(state: ExecutionState) -> str:
    """Where Debian puts GRUB beside the removable path."""
    return f"EFI/debian/{_GRUB_FILES[state]}"


def pack(tree: GuestTree, path: Path) -> GuestImage:
    """Make a disk image at ``path`` out of a guest's folders; the same bytes from the same folders."""
    work = path.with_name(f"{path.name}.work")
    work.mkdir()
    try:
        with root_tree(tree.folder / "root", scratch=work, clamp_time=TIMESTAMP) as content:
            size = align_up(minimum_size(content), 4 * MIB)
            make_ext4(
                content, work / "root.ext4", size_bytes=size, label=ROOT_LABEL, uuid=ROOT_UUID, timestamp=TIMESTAMP
            )
        layout = _layout(tree.state, disk_size_for([ESP_BYTES, size, SWAP_BYTES]))
        esp_files = sorted(path for path in (tree.folder / "esp").rglob("*") if path.is_file())
        esp = plan_fat32(
            ESP_BYTES,
            512,
            [FatFile(each.relative_to(tree.folder / "esp").as_posix(), RawDisk(each)) for each in esp_files],
            label="ESP",
            volume_id=ESP_VOLUME_ID,
            timestamp=TIMESTAMP,
            hidden_sectors=layout.partitions[0].first_lba,
        )
        with RawDisk(work / "root.ext4") as root:
            contents: list[Disk] = [esp, root, MemoryDisk(swap_area(SWAP_BYTES, SWAP_UUID.bytes))]
            pieces = [(p.offset_bytes(512), disk) for p, disk in zip(layout.partitions, contents, strict=True)]
            pieces += [(offset, MemoryDisk(data)) for offset, data in serialise(layout)]
            with path.open("wb") as file:
                write_raw(file, ComposedDisk("guest", layout.size_bytes, pieces))
        esp.close()
    finally:
        shutil.rmtree(work)
    return GuestImage(path, tree.state)


def good_guest(folder: Path, state: ExecutionState = ExecutionState.AARCH64) -> GuestImage:
    """The good guest in ``folder``, made once there (safe for several processes at once)."""
    path = folder / f"guest-{state.value}.img"
    if not path.exists():
        own = folder / f"guest-{state.value}.{os.getpid()}"
        own.mkdir(parents=True)
        image = pack(guest_tree(own / "tree", state), own / "disk.img")
        image.path.replace(path)
        shutil.rmtree(own)
    return GuestImage(path, state)


def copy_guest(guest: GuestImage, path: Path) -> GuestImage:
    """A copy of an image, sparse as it is."""
    _run("cp", "--sparse=always", "--reflink=auto", str(guest.path), str(path))
    return replace(guest, path=path)


def _layout(state: ExecutionState, size_bytes: int) -> GptLayout:
    root_bytes = size_bytes - disk_size_for([ESP_BYTES, SWAP_BYTES])
    return plan_partitions(
        [
            PartitionRequest(ESP_TYPE, UUID(int=0xE5F), "ESP", ESP_BYTES),
            PartitionRequest(_ROOT_TYPES[state], UUID(int=0x2007), "root", root_bytes),
            PartitionRequest(_SWAP_TYPE, UUID(int=0x5A5), "swap", SWAP_BYTES),
        ],
        disk_guid=_DISK_GUID,
        sector_size=512,
        size_bytes=size_bytes,
    )


def _run(*command: str) -> bytes:
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(TIMESTAMP), "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment).stdout
