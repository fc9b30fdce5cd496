from __future__ import annotations

import gzip
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from armvm.errors import InputError, OutputError, UsageError
from armvm.execution import ExecutionState
from armvm.probe import debian, kernels
from armvm.probe.debian import unpack_kernel_package
from armvm.probe.kernels import GuestKernel, find_guest_kernel, kernel_state, open_kernel
from tools.kernel_modules import COMPRESSORS, debian_package, module, write_ar
from tools.pe_images import linux_kernel

AARCH64, AARCH32 = ExecutionState
MODULE = module("depends=")


def install(folder: Path, release: str, state: ExecutionState = AARCH64) -> Path:
    """An installed kernel below ``folder``, with one module."""
    image = folder / f"boot/vmlinuz-{release}"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(linux_kernel(state))
    modules = folder / "lib/modules" / release / "kernel"
    modules.mkdir(parents=True)
    (modules / "virtio.ko").write_bytes(MODULE)
    return image


def package_files(state: ExecutionState = AARCH64) -> dict[str, bytes]:
    return {
        "./boot/vmlinuz-6.1": linux_kernel(state),
        "./boot/System.map-6.1": b"not taken",
        "./usr/share/doc/copyright": b"not taken",
        "./lib/modules/6.1/kernel/a/virtio.ko": MODULE,
        "./lib/modules/6.1/modules.builtin": b"kernel/x.ko\n",
    }


def find(state: ExecutionState, tmp_path: Path, kernel: Path | None = None, **more: Path) -> GuestKernel | None:
    return find_guest_kernel(state, home=tmp_path / "home", kernel=kernel, **more)


@pytest.mark.parametrize("state", ExecutionState)
def test_a_kernel_says_what_it_is_for(state: ExecutionState, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(linux_kernel(state))
    assert kernel_state(path) is state
    path.write_bytes(gzip.compress(linux_kernel(state)))
    assert kernel_state(path) is state
    with open_kernel(path) as disk:
        assert disk.read(0, disk.size_bytes) == linux_kernel(state)


@pytest.mark.parametrize("content", [b"", b"MZ", b"MZ" + b"\xff" * 62, bytes(5000), b"MZ" + bytes(5000), b"\x1f"])
def test_what_is_no_kernel(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    assert kernel_state(path) is None
    with pytest.raises(InputError, match="no kernel that firmware can start in AArch64"):
        find(AARCH64, tmp_path, path)


def test_a_damaged_or_endless_gzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(gzip.compress(linux_kernel(AARCH64))[:200])
    with pytest.raises(InputError, match="cannot be decompressed"):
        open_kernel(path)
    monkeypatch.setattr(kernels, "_MOST_IMAGE_BYTES", 1 << 20)
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    start = time.process_time()
    with pytest.raises(InputError, match="larger than any kernel"):
        open_kernel(path)
    assert time.process_time() - start < 1


def test_a_kernel_file_finds_its_modules(tmp_path: Path) -> None:
    image = install(tmp_path / "root", "6.1")
    assert find(AARCH64, tmp_path, image) == GuestKernel(image, tmp_path / "root/lib/modules/6.1", str(image))
    other = tmp_path / "other"
    found = find(AARCH64, tmp_path, image, modules=other)
    assert found is not None
    assert found.modules == other
    alone = tmp_path / "Image"
    alone.write_bytes(linux_kernel(AARCH64))
    assert find(AARCH64, tmp_path, alone) == GuestKernel(alone, None, str(alone))


def test_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, "6.1.0-9")
    newest = install(root, "6.1.0-10")
    narrow = install(root, "6.1.0-99-armmp", AARCH32)
    assert find(AARCH64, tmp_path, root) == GuestKernel(newest, root / "lib/modules/6.1.0-10", str(root))
    found = find(AARCH32, tmp_path, root)
    assert found is not None
    assert found.image == narrow
    with pytest.raises(InputError, match="no kernel for AArch64 in this folder"):
        find(AARCH64, tmp_path, root / "lib")


def test_the_kernel_of_the_other_state_is_refused(tmp_path: Path) -> None:
    image = install(tmp_path / "root", "6.1", AARCH32)
    with pytest.raises(InputError, match="a kernel for AArch32"):
        find(AARCH64, tmp_path, image)


def test_modules_without_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without the kernel"):
        find(AARCH64, tmp_path, modules=tmp_path)


def test_what_is_kept(tmp_path: Path) -> None:
    assert find(AARCH64, tmp_path) is None
    kept = tmp_path / "home/kernels/aarch64"
    install(kept / "linux-6.1.0-9", "6.1.0-9")
    image = install(kept / "linux-6.1.0-10", "6.1.0-10")
    (kept / "linux-7-empty").mkdir()
    (kept / ".linux-8.part").mkdir()
    install(kept / "linux-9-narrow", "9", AARCH32)
    found = find(AARCH64, tmp_path)
    assert found is not None
    assert found.image == image
    assert find(AARCH32, tmp_path) is None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_hosts_own(machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.release", lambda: "no-such-release")
    assert find(AARCH64, tmp_path) is None


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_a_debian_package(compression: str, tmp_path: Path) -> None:
    package = debian_package(tmp_path / "linux-image-6.1_1_arm64.deb", package_files(), compression)
    found = find(AARCH64, tmp_path, package)
    folder = tmp_path / "home/kernels/aarch64/linux-image-6.1_1_arm64"
    assert found == GuestKernel(folder / "boot/vmlinuz-6.1", folder / "lib/modules/6.1", str(package))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "boot/vmlinuz-6.1",
        "lib/modules/6.1/kernel/a/virtio.ko",
        "lib/modules/6.1/modules.builtin",
    ]
    again = find(AARCH64, tmp_path)
    assert again is not None
    assert again.image == found.image
    package.unlink()
    package.write_bytes(b"nobody reads it twice")
    assert find(AARCH64, tmp_path, package) == found


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="only Debian's relatives have dpkg-deb")
def test_a_package_that_dpkg_made(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, "6.1")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: linux-image\nVersion: 1\nArchitecture: arm64\nMaintainer: N <n@example.org>\nDescription: -\n"
    )
    package = tmp_path / "linux.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, package], check=True, capture_output=True, timeout=60)
    found = find(AARCH64, tmp_path, package)
    assert found is not None
    assert found.image.read_bytes() == linux_kernel(AARCH64)
    assert found.modules is not None
    assert (found.modules / "kernel/virtio.ko").read_bytes() == MODULE


def test_a_metapackage_is_told_from_a_kernel(tmp_path: Path) -> None:
    package = debian_package(tmp_path / "meta.deb", {"./usr/share/doc/copyright": b""})
    with pytest.raises(InputError, match="neither a kernel nor modules"):
        find(AARCH64, tmp_path, package)
    assert not list((tmp_path / "home/kernels/aarch64").iterdir())


def test_nothing_leaves_the_folder(tmp_path: Path) -> None:
    bad = {"./lib/modules/../../../../../evil.ko": b"x", "/boot/vmlinuz-1": b"x", "./boot/../vmlinuz-x": b"x"}
    package = debian_package(tmp_path / "evil.deb", {**bad, **package_files()})
    folder = tmp_path / "deep/er/folder"
    unpack_kernel_package(package, folder)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        *("evil.deb", "vmlinuz-6.1", "virtio.ko", "modules.builtin")
    }


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_damaged_packages(compression: str, tmp_path: Path) -> None:
    package = debian_package(tmp_path / "linux.deb", package_files(), compression)
    good = package.read_bytes()
    data = good.index(b"data.tar") + 60
    for bad in (
        b"",
        b"!<arch>\n",
        good[:-100],
        good.replace(b"data.tar", b"date.tar"),
        good.replace(b"data.tar", b"data.tax"),
        good[:data] + bytes(len(good) - data),
        good[: data + 20] + b"\xff" * 40 + good[data + 60 :],
        good[:66] + b"\x00\x00" + good[68:],
    ):
        package.write_bytes(bad)
        with pytest.raises(InputError, match=r"linux\.deb"):
            unpack_kernel_package(package, tmp_path / "out")
        assert not [path for path in tmp_path.iterdir() if path != package]


def test_a_package_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_MOST_UNPACKED_BYTES", 8 << 20)
    files = {"./usr/zeros": bytes(32 << 20)}
    for compression in (".gz", ".xz", ".zst"):
        package = debian_package(tmp_path / "bomb.deb", files, compression)
        with pytest.raises(InputError, match="unpacks to more than"):
            unpack_kernel_package(package, tmp_path / "out")


def test_a_header_that_claims_gigabytes(tmp_path: Path) -> None:
    import tarfile

    entry = tarfile.TarInfo("./x")
    entry.type = tarfile.GNUTYPE_LONGNAME
    entry.size = 1 << 30
    package = write_ar(tmp_path / "long.deb", {"data.tar": entry.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)})
    with pytest.raises(InputError, match="damaged"):
        unpack_kernel_package(package, tmp_path / "out")


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    package = debian_package(tmp_path / "linux.deb", package_files())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot unpack"):
        unpack_kernel_package(package, tmp_path / "file/out")
    with pytest.raises(InputError, match=r"gone\.deb"):
        find(AARCH64, tmp_path, tmp_path / "gone.deb")
