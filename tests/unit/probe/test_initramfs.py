from __future__ import annotations

from pathlib import Path

import pytest

from armvm.errors import InputError, MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.probe import initramfs as subject
from armvm.probe.initramfs import build_initramfs, linux_probe
from armvm.probe.modules import ModuleFile
from armvm.version import __version__
from tools.kernel_modules import COMPRESSORS, module

STATES = pytest.mark.parametrize("state", ExecutionState)


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Path to (mode, content), read as the kernel's init/initramfs.c does: in order, folders before what is in them."""
    found: dict[str, tuple[int, bytes]] = {}
    numbers = set()
    position = 0
    while True:
        head = archive[position : position + 110]
        assert head[:6] == b"070701"
        fields = [int(head[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        number, mode, uid, gid, _, mtime, size = fields[:7]
        name_size = fields[11]
        name = archive[position + 110 : position + 110 + name_size]
        assert name[-1:] == b"\0"
        path = name[:-1].decode()
        start = position + (110 + name_size + 3) // 4 * 4
        if path == "TRAILER!!!":
            assert len(archive) == start
            return found
        assert (uid, gid, mtime) == (0, 0, 0)
        assert number not in numbers
        numbers.add(number)
        assert path not in found
        parent = path.rpartition("/")[0]
        assert not parent or found[parent][0] & 0o170000 == 0o040000
        found[path] = (mode, archive[start : start + size])
        position = (start + size + 3) // 4 * 4


def whole(state: ExecutionState, modules: list[ModuleFile], extra: dict[str, bytes] | None = None) -> bytes:
    with build_initramfs(state, modules=modules, extra=extra) as disk:
        return disk.read(0, disk.size_bytes)


@STATES
def test_what_is_in_it(state: ExecutionState, tmp_path: Path) -> None:
    files = []
    for name, suffix in (("virtio", ""), ("virtio_blk", ".xz"), ("virtio_net", ".zst"), ("nvme", ".gz")):
        path = tmp_path / f"{name}.ko{suffix}"
        path.write_bytes(COMPRESSORS[suffix](module(f"name={name}")))
        files.append(ModuleFile(name, path))
    files.append(ModuleFile("xen_blkfront", None))
    found = unpacked(whole(state, files, {"etc/armvm/config": b"x"}))
    assert found["init"] == (0o100755, linux_probe(state))
    assert found["version"] == (0o100644, f"{__version__}\n".encode())
    assert found["dev/console"][0] == 0o020600
    assert found["etc/armvm/config"] == (0o100644, b"x")
    assert {"proc", "sys", "modules"} <= set(found)
    assert found["modules/load.list"][1] == b"virtio\nvirtio_blk\nvirtio_net\nnvme\nxen_blkfront\n"
    for name in ("virtio", "virtio_blk", "virtio_net", "nvme"):
        assert found[f"modules/{name}.ko"] == (0o100644, module(f"name={name}"))
    assert "modules/xen_blkfront.ko" not in found


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    path = tmp_path / "a.ko"
    path.write_bytes(module("name=a"))
    one = whole(ExecutionState.AARCH64, [ModuleFile("a", path)], {"one": b"1", "two": b"2"})
    path.write_bytes(module("name=a"))
    assert one == whole(ExecutionState.AARCH64, [ModuleFile("a", path)], {"two": b"2", "one": b"1"})


@STATES
def test_the_probe_is_a_static_program_of_its_state(state: ExecutionState) -> None:
    program = linux_probe(state)
    assert program[:4] == b"\x7fELF"
    assert program[4] == (2 if state is ExecutionState.AARCH64 else 1)
    assert int.from_bytes(program[18:20], "little") == (183 if state is ExecutionState.AARCH64 else 40)
    assert b"/ld-musl" not in program
    assert len(program) < 256 * 1024


def test_a_probe_that_was_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armvm.probe.initramfs.__file__", str(tmp_path / "initramfs.py"))
    with pytest.raises(MissingError, match="linux-probe-aarch32 was not built"):
        build_initramfs(ExecutionState.AARCH32)


@pytest.mark.parametrize("path", ["init", "version", "/etc/x", "etc/../x", "modules/x", "dev/null", "", "a//b", "a/."])
def test_paths_that_cannot_be_added(path: str) -> None:
    with pytest.raises(UsageError, match="not a path"):
        build_initramfs(ExecutionState.AARCH64, extra={path: b""})


def test_modules_that_cannot_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"gone\.ko"):
        build_initramfs(ExecutionState.AARCH64, modules=[ModuleFile("gone", tmp_path / "gone.ko")])
    path = tmp_path / "large.ko"
    path.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(subject, "_MOST_BYTES", 1 << 20)
    with pytest.raises(InputError, match="the modules take more than 1 MiB"):
        build_initramfs(ExecutionState.AARCH64, modules=[ModuleFile("large", path)])
