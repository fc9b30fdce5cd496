"""The programs that make initial RAM disks: how each is known, and how it is told to put more modules in."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from armvm.disk.files import FileKind, FileSystem
from armvm.errors import InputError
from armvm.units import KIB

_MOST_SCRIPT_BYTES = 128 * KIB


class Generator(enum.Enum):
    """A program that makes initial RAM disks."""

    INITRAMFS_TOOLS = "initramfs-tools"
    DRACUT = "dracut"
    MKINITCPIO = "mkinitcpio"
    MKINITFS = "mkinitfs"
    BOOSTER = "booster"
    MKOSI = "mkosi-initrd"


_IN_INITRD: Mapping[Generator, tuple[str, ...]] = {
    Generator.INITRAMFS_TOOLS: ("/conf/initramfs.conf", "/scripts/init-top", "/scripts/local"),
    Generator.DRACUT: ("/usr/lib/dracut", "/lib/dracut", "/usr/lib/dracut-lib.sh", "/lib/dracut-lib.sh"),
    Generator.MKINITCPIO: ("/init_functions", "/buildconfig"),
    Generator.BOOSTER: ("/etc/booster.init.yaml",),
    Generator.MKOSI: ("/etc/initrd-release",),  # the last: others that run systemd leave it too
}
_ON_ROOT: Mapping[Generator, tuple[str, ...]] = {
    Generator.DRACUT: ("/usr/bin/dracut", "/usr/sbin/dracut"),
    Generator.INITRAMFS_TOOLS: ("/usr/sbin/update-initramfs", "/usr/sbin/mkinitramfs"),
    Generator.MKINITCPIO: ("/usr/bin/mkinitcpio",),
    Generator.MKINITFS: ("/sbin/mkinitfs", "/usr/sbin/mkinitfs"),
    Generator.BOOSTER: ("/usr/bin/booster",),
}


def generator_of_initramfs(initramfs: FileSystem) -> Generator | None:
    """The program that made an initial RAM disk; None when it bears no known mark."""
    return _known_by(initramfs, _IN_INITRD) or (Generator.MKINITFS if _is_alpine(initramfs) else None)


def _is_alpine(initramfs: FileSystem) -> bool:
    """Alpine's leaves no file behind but the script that it starts with."""
    try:
        entry = initramfs.lookup("/init")
        if entry is None or entry.kind is not FileKind.FILE or entry.size_bytes > _MOST_SCRIPT_BYTES:
            return False
        return b"Alpine Init" in initramfs.read(entry)
    except InputError:
        return False


def generator_on_root(root: FileSystem) -> Generator | None:
    """The program that is installed to make initial RAM disks; None when none of those known is."""
    return _known_by(root, _ON_ROOT)


def _known_by(files: FileSystem, marks: Mapping[Generator, tuple[str, ...]]) -> Generator | None:
    for generator, paths in marks.items():
        try:
            if any(files.lookup(path) is not None for path in paths):
                return generator
        except InputError:
            continue
    return None


def command_to_add(generator: Generator | None, modules: Iterable[str]) -> str:
    """What has to be done in the guest so that ``modules`` get into its initial RAM disks, as one sentence."""
    names = " ".join(modules)
    together = names.replace(" ", ", ")
    match generator:
        case Generator.INITRAMFS_TOOLS:
            lines = "\\n".join(names.split())
            return f"In the guest: printf '{lines}\\n' >> /etc/initramfs-tools/modules && update-initramfs -u -k all"
        case Generator.DRACUT:
            return (
                f"In the guest: echo 'add_drivers+=\" {names} \"' > /etc/dracut.conf.d/portable.conf"
                " && dracut --force --regenerate-all"
            )
        case Generator.MKINITCPIO:
            return (
                f"In the guest: mkdir -p /etc/mkinitcpio.conf.d && echo 'MODULES+=({names})'"
                " > /etc/mkinitcpio.conf.d/portable.conf && mkinitcpio -P"
            )
        case Generator.MKINITFS:
            paths = "\\n".join(f"kernel/drivers/*/{name.replace('_', '?')}.ko*" for name in names.split())
            return (
                f"In the guest: printf '{paths}\\n' > /etc/mkinitfs/features.d/portable.modules, add portable to the"
                " features in /etc/mkinitfs/mkinitfs.conf, and run mkinitfs for each kernel"
            )
        case Generator.BOOSTER:
            return (
                f"In the guest: echo 'modules: {together}' >> /etc/booster.yaml && /usr/lib/booster/regenerate_images"
            )
    return f"Make the initial RAM disk anew with {together} in it, and all modules needed for that."
