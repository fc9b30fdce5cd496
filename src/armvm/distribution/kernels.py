"""The kernel that a root tree of any distribution has installed, and the initial RAM disk that belongs to it."""

from __future__ import annotations

from armvm.distribution.grub import version_key
from armvm.image.staging import StagedTree

_PREFIXES = ("vmlinuz-", "Image-", "zImage-", "vmlinux-")
_PLAIN = ("vmlinuz", "Image", "zImage")
_MODULES = ("usr/lib/modules", "lib/modules")


def find_installed(tree: StagedTree) -> tuple[str, str | None] | None:
    """(kernel, initial RAM disk) as paths in the tree, the newest version; None where there is no kernel.

    It is looked for in /boot under the names of Debian, Fedora, SUSE, Arch and Alpine, then below /usr/lib/modules
    (Fedora, where /boot is filled by kernel-install). Rescue kernels do not count.
    """
    names = tree.names("boot")
    found: list[tuple[str, str]] = [
        (name.removeprefix(prefix), f"boot/{name}")
        for name in names
        for prefix in _PREFIXES
        if name.startswith(prefix) and "rescue" not in name and not name.endswith((".old", ".hmac", ".bak"))
    ]
    for folder in _MODULES:
        for version in tree.names(folder):
            path = f"{folder}/{version}/vmlinuz"
            entry = tree.lookup(path)
            if entry is not None and entry.is_file and version not in {known for known, _ in found}:
                found.append((version, path))
    if not found:
        plain = next((name for name in _PLAIN if name in names), None)
        return None if plain is None else (f"boot/{plain}", _initrd(tree, names, ""))
    found.sort(key=lambda item: version_key(item[0]), reverse=True)
    for version, kernel in found:  # the newest that can start
        initrd = _initrd(tree, names, version)
        if initrd is not None:
            return kernel, initrd
    return found[0][1], None


def _initrd(tree: StagedTree, names: tuple[str, ...], version: str) -> str | None:
    candidates: tuple[str, ...] = (
        *(f"initrd.img-{version}", f"initramfs-{version}.img", f"initrd-{version}", f"initramfs-{version}"),
        *(f"initrd-{version}.img", f"initramfs.img-{version}"),
    )
    if not version:
        candidates = ("initrd.img", "initrd", "initramfs.img", "initramfs")
    for name in candidates:
        if name in names:
            return f"boot/{name}"
    for folder in _MODULES:
        for name in ("initrd", "initramfs.img"):
            if version and tree.lookup(f"{folder}/{version}/{name}") is not None:
                return f"{folder}/{version}/{name}"
    return None
