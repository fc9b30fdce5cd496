from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armvm.errors import InputError
from armvm.probe import modules as subject
from armvm.probe.modules import ModuleFile, find_kernel_modules, modinfo, read_module
from tools.kernel_modules import COMPRESSORS, module, modules_folder

TREE = {
    "drivers/virtio/virtio_ring": "",
    "drivers/virtio/virtio": "virtio_ring",
    "drivers/net/net_failover": "",
    "drivers/net/virtio_net": "virtio_ring,virtio,net_failover",
    "drivers/block/xen-blkfront": "",
    "drivers/block/virtio_blk": "virtio,virtio_ring",
}


def names(found: tuple[ModuleFile, ...]) -> list[str]:
    return [module.name for module in found]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_what_modules_say_themselves(suffix: str, tmp_path: Path) -> None:
    folder = modules_folder(tmp_path, TREE, suffix)
    found = find_kernel_modules(folder, ["virtio_net", "virtio_blk", "xen_blkfront"])
    order = ["virtio_ring", "virtio", "net_failover", "virtio_net", "virtio_blk", "xen_blkfront"]
    assert names(found) == order
    assert all(one.path is not None and read_module(one.path).startswith(b"\x7fELF") for one in found)


def test_what_depmod_says_goes_before(tmp_path: Path) -> None:
    folder = modules_folder(tmp_path, dict.fromkeys(TREE, ""))
    (folder / "modules.dep").write_text(
        "kernel/drivers/net/virtio_net.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n"
        "kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\n"
    )
    assert names(find_kernel_modules(folder, ["virtio-net"])) == ["virtio_ring", "virtio", "virtio_net"]


def test_built_in_and_missing(tmp_path: Path) -> None:
    folder = modules_folder(tmp_path, {"drivers/block/virtio_blk": "virtio"})
    (folder / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\nkernel/drivers/rtc/rtc-efi.ko\n")
    found = find_kernel_modules(folder, ["rtc_efi", "virtio_blk", "nvme"])
    assert names(found) == ["virtio_blk", "nvme"]
    assert found[1].path is None


def test_soft_dependencies(tmp_path: Path) -> None:
    folder = modules_folder(tmp_path, {"lib/crc64": "", "lib/late": ""})
    (folder / "kernel/sd_mod.ko").write_bytes(module("depends=", "softdep=pre: crc64 absent post: late"))
    assert names(find_kernel_modules(folder, ["sd_mod"])) == ["crc64", "sd_mod"]


def test_an_update_replaces_the_kernels_own(tmp_path: Path) -> None:
    folder = modules_folder(tmp_path, TREE)
    updated = folder / "updates/dkms/virtio_blk.ko"
    updated.parent.mkdir(parents=True)
    updated.write_bytes(module("depends="))
    assert find_kernel_modules(folder, ["virtio_blk"]) == (ModuleFile("virtio_blk", updated),)


def test_a_circle_ends(tmp_path: Path) -> None:
    folder = modules_folder(tmp_path, {"a": "b", "b": "c", "c": "a", "d": "d"})
    assert names(find_kernel_modules(folder, ["a", "d"])) == ["c", "b", "a", "d"]


def test_too_many(tmp_path: Path) -> None:
    chain = {f"m{number}": f"m{number + 1}" for number in range(200)}
    folder = modules_folder(tmp_path, {**chain, "m200": ""})
    with pytest.raises(InputError, match="needs more than 128 modules"):
        find_kernel_modules(folder, ["m0"])


def test_no_modules(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kernel modules"):
        find_kernel_modules(tmp_path, ["virtio_blk"])


@pytest.mark.parametrize("wide", [True, False])
def test_modinfo(wide: bool) -> None:
    assert modinfo(module("depends=a,b", "name=c", wide=wide), "c.ko") == ("depends=a,b", "name=c")


def test_modinfo_of_damaged_files() -> None:
    good = module("depends=")
    for bad, message in (
        (b"", "no ELF file"),
        (b"MZ" + good[2:], "no ELF file"),
        (good[:5] + b"\x02" + good[6:], "no ELF file"),
        (good[:-1], "section table goes past the end"),
        (good[:40] + b"\xff" * 8 + good[48:], "section table goes past the end"),
        (good[:62] + b"\xff\xff", "section table goes past the end"),
        (good[:62] + b"\x09\x00" + good[64:], "no section names"),
        (good.replace(b".modinfo", b".modinfx"), "no section .modinfo"),
    ):
        with pytest.raises(InputError, match=message):
            modinfo(bad, "bad.ko")


@given(st.binary(max_size=300), st.integers(0, 250))
def test_modinfo_of_anything(noise: bytes, place: int) -> None:
    good = bytearray(module("depends=a", "name=b"))
    good[place : place + len(noise)] = noise
    with suppress(InputError):
        modinfo(bytes(good), "noise.ko")


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSORS if suffix])
def test_damaged_compression(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.ko{suffix}"
    whole = COMPRESSORS[suffix](module("depends=" + "x" * 500))
    for bad in (b"", b"no such thing", whole[:-20], whole[:12] + b"\xff\xff\xff" + whole[15:]):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"a\.ko"):
            modinfo(read_module(path), str(path))


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESSORS if suffix])
def test_a_bomb_is_refused_early(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MOST_MODULE_BYTES", 1 << 20)
    path = tmp_path / f"bomb.ko{suffix}"
    path.write_bytes(COMPRESSORS[suffix](bytes(64 << 20)))
    start = time.process_time()
    with pytest.raises(InputError, match="larger than any module"):
        read_module(path)
    assert time.process_time() - start < 1
