from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.distribution.sources import Archive
from armvm.errors import InputError
from armvm.lab import kvm, packages
from armvm.lab.packages import Extracted, PackageChoice, choose_packages, find_extracted
from tools.kernel_modules import module

RELEASE = "6.1.0-1-arm64"
FLASH = b"code" + bytes(9 << 20)
CHOICE = PackageChoice(
    "bookworm", ("one",), ("usr/bin/tool", "usr/share/flash.fd", "usr/lib/x/test/kept"), ("virtio_mmio",),
    ("virtio_blk",), (("xen", "boot/xen-*"),), None,
)  # fmt: skip
MODULES = f"lib/modules/{RELEASE}/kernel/drivers"
FILES: dict[str, bytes | str] = {
    f"boot/vmlinuz-{RELEASE}": b"kernel",
    "boot/xen-4.17": b"xen",
    f"{MODULES}/virtio_mmio.ko": module("depends=virtio_ring"),
    f"{MODULES}/virtio_ring.ko": module("depends="),
    f"{MODULES}/virtio_blk.ko": module("depends="),
    f"{MODULES}/amdgpu.ko": module("depends="),
    "usr/bin/tool": b"\x7fELF",
    "usr/bin/other": b"no",
    "usr/share/flash.fd": FLASH,
    "usr/lib/python3.11/os.py": b"",
    "usr/lib/python3.11/test/big.py": b"no",
    "usr/lib/x/test/kept": b"yes",
    "lib/aarch64-linux-gnu/libc.so.6": "libc-2.so",
}


def _tar(path: Path, files: Mapping[str, bytes | str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.mode = 0o755 if name.startswith("usr/bin") else 0o644
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _take(tmp_path: Path, files: Mapping[str, bytes | str] = FILES) -> Extracted:
    _tar(tmp_path / "all.tar", files)
    folder = tmp_path / f"packages-{CHOICE.key}"
    folder.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return packages._take(CHOICE, tmp_path / "all.tar", scratch, folder)


def test_what_is_wanted_is_taken_and_nothing_else(tmp_path: Path) -> None:
    taken = _take(tmp_path)
    assert taken.kernel.read_bytes() == b"kernel"
    assert (taken.folder / "xen").read_bytes() == b"xen"
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], input=taken.root.read_bytes(), cwd=root, check=True, timeout=60)
    assert {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()} == {
        "lab/modules", "lab/sizes", "usr/bin/tool", "usr/share/flash.fd", "usr/lib/python3.11/os.py",
        "usr/lib/x/test/kept", "lib/aarch64-linux-gnu/libc.so.6",
        *(f"{MODULES}/{name}.ko" for name in ("virtio_mmio", "virtio_ring", "virtio_blk")),
    }  # fmt: skip
    assert (root / "usr/bin/tool").stat().st_mode & 0o100
    assert (root / "lab/sizes").read_text() == f"{len(FLASH)} usr/share/flash.fd\n"
    assert (root / "usr/share/flash.fd").read_bytes() == b"code"
    assert (root / "lab/modules").read_text() == f"/{MODULES}/virtio_ring.ko\n/{MODULES}/virtio_mmio.ko\n"
    assert find_extracted(CHOICE, tmp_path) == taken
    assert taken.kernel_release == RELEASE


@pytest.mark.parametrize("lacking", [f"boot/vmlinuz-{RELEASE}", "boot/xen-4.17", f"{MODULES}/virtio_mmio.ko"])
def test_packages_that_lack_something_are_refused(tmp_path: Path, lacking: str) -> None:
    with pytest.raises(InputError, match="Debian's packages"):
        _take(tmp_path, {name: content for name, content in FILES.items() if name != lacking})
    assert find_extracted(CHOICE, tmp_path) is None


def test_paths_that_lead_out_are_passed_over(tmp_path: Path) -> None:
    _take(tmp_path, {**FILES, "../usr/bin/tool2": b"", f"lib/modules/{RELEASE}/../../../../evil": b""})
    assert not (tmp_path.parent / "evil").exists()


def test_a_cache_that_is_not_whole_is_none(tmp_path: Path) -> None:
    taken = _take(tmp_path)
    manifest = taken.folder / "manifest.json"
    whole = manifest.read_text()
    for content in ("", "[]", "null", "{}", json.dumps({"sha256": [], "kernel": "x"}), json.dumps({"sha256": {}})):
        manifest.write_text(content)
        assert find_extracted(CHOICE, tmp_path) is None
    manifest.write_text(whole)
    taken.kernel.unlink()
    assert find_extracted(CHOICE, tmp_path) is None


def test_the_key_stands_for_the_whole_choice() -> None:
    recipe, archive = kvm.HOST.recipe(), Archive("http://mirror/debian")
    choice = choose_packages(recipe, archive=archive)
    assert choice.key == choose_packages(recipe, archive=archive).key
    others = [
        choose_packages(replace(recipe, release="trixie"), archive=archive),
        choose_packages(replace(recipe, packages=(*recipe.packages, "strace")), archive=archive),
        choose_packages(replace(recipe, modules=("loop",)), archive=archive),
        choose_packages(recipe, archive=Archive()),
    ]
    assert len({choice.key, *(other.key for other in others)}) == 5
    assert {"linux-image-arm64", "busybox-static", "python3", "qemu-system-arm"} <= set(choice.packages)
