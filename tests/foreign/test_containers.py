"""Images of other hypervisors, made by QEMU and read through QEMU: equal, never led elsewhere, and no orphans."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.disk.foreign import ForeignDisk
from armvm.errors import InputError, MissingError, OutputError
from tools.containers import MIB, assert_reads_as, converted, patch, qemu_img, scattered_raw

_VARIANTS = [
    ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=streamOptimized"),
    ("vhdx", "subformat=dynamic"),
    ("vhdx", "subformat=fixed"),
    ("vpc", "subformat=dynamic,force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vpc", "subformat=fixed"),
    ("vdi", "static=off"),
    ("vdi", "static=on"),
]


@pytest.mark.parametrize(("format", "options"), _VARIANTS)
def test_reads_as_the_raw_disk(tmp_path: Path, format: str, options: str) -> None:
    content = scattered_raw(tmp_path / "raw", 6 * MIB)
    image = converted(tmp_path / "raw", tmp_path / 'odd, "name": 1 é.img', format, "-o", options)
    before = image.read_bytes()
    with open_disk(image) as disk:
        assert disk.format == format
        assert disk.size_bytes >= len(content)  # a VHD is rounded up to its geometry
        assert_reads_as(disk, content)
    assert image.read_bytes() == before


@pytest.mark.parametrize("format", ["vmdk", "vhdx", "vdi", "vpc"])
def test_sparse_image_has_few_extents(tmp_path: Path, format: str) -> None:
    (tmp_path / "raw").touch()
    os.truncate(tmp_path / "raw", 3000 * MIB)
    patch(tmp_path / "raw", 1600 * MIB, b"x" * 100)
    image = converted(tmp_path / "raw", tmp_path / "image", format)
    with open_disk(image) as disk:
        extents = list(disk.extents())
        assert sum(extent.length for extent in extents) == disk.size_bytes
        if format != "vhdx":  # of which QEMU tells nothing
            assert sum(extent.length for extent in extents if extent.data) <= 4 * MIB
        assert disk.read(1600 * MIB - 1, 3) == b"\0xx"


def test_image_in_use_can_be_read(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vmdk")
    with subprocess.Popen(["qemu-io", "-f", "vmdk", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.read(8) == b"qemu-io>"  # it holds QEMU's lock for writing
        with open_disk(image) as disk:
            assert_reads_as(disk, (tmp_path / "raw").read_bytes())
        user.stdin.close()
        user.stdout.read()


def test_parents_and_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scattered_raw(tmp_path / "raw", MIB)
    for options in ("subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse", "subformat=twoGbMaxExtentFlat"):
        flat = converted(tmp_path / "raw", tmp_path / "flat.vmdk", "vmdk", "-o", options)
        with pytest.raises(InputError, match="only describes other files"):
            open_disk(flat)
    converted(tmp_path / "raw", tmp_path / "base.vmdk", "vmdk")
    qemu_img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "child.vmdk")
    with pytest.raises(InputError, match=r"needs other files: found base\.vmdk"):
        open_disk("child.vmdk")


def test_sparse_vmdk_that_hands_over_to_a_descriptor(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vmdk")
    patch(image, 12, bytes(8))
    with pytest.raises(InputError, match="only describes other files"):
        open_disk(image)


@pytest.mark.parametrize("subformat", ["fixed", "dynamic"])
def test_differencing_vhd_is_refused(tmp_path: Path, subformat: str) -> None:
    """QEMU takes one for an image that stands alone."""
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vpc", "-o", f"subformat={subformat}")
    content = image.read_bytes()
    for offset in (0, len(content) - 512):
        footer = bytearray(content[offset : offset + 512])
        if footer.startswith(b"conectix"):
            footer[60:68] = struct.pack(">II", 4, 0)
            patch(image, offset, bytes(footer[:64]) + struct.pack(">I", ~sum(footer) & 0xFFFFFFFF))
    with pytest.raises(InputError, match="difference to a parent"):
        open_disk(image)


@pytest.mark.parametrize("format", ["vmdk", "vhdx", "vpc", "vdi"])
def test_damaged_images_in_the_words_of_qemu(tmp_path: Path, format: str) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", format)
    patch(image, 100, os.urandom(200_000))
    with pytest.raises(InputError, match=f"QEMU cannot read it as {format}: qemu-img: .") as caught:
        open_disk(image, format=format)
    assert "json:" not in str(caught.value)


@pytest.mark.parametrize("program", ["qemu-img", "qemu-nbd"])
def test_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vdi")
    found = {name: None if name == program else f"/usr/bin/{name}" for name in ("qemu-img", "qemu-nbd")}
    monkeypatch.setattr("armvm.process.find_program", found.get)
    with pytest.raises(MissingError, match=f"{program} is not installed"):
        open_disk(image)


def test_no_room_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vdi")
    far = tmp_path / ("deep" * 30)
    far.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(far))
    with pytest.raises(OutputError, match="cannot make a socket"):
        open_disk(image)
    assert not list(far.iterdir())


def test_name_that_is_not_utf_8(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.vdi")
    converted(tmp_path / "raw", Path(image), "vdi")
    with pytest.raises(InputError, match="not UTF-8"):
        open_disk(image)


def _alive(pid: int) -> bool:
    """Whether a process still runs; one that is dead and not yet collected does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def _children(session: int) -> list[int]:
    """The live processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _alive(int(entry.name)):
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue
            if int(status.rpartition(")")[2].split()[3]) == session:
                found.append(int(entry.name))
    return found


def _assert_gone(session: int) -> None:
    deadline = time.monotonic() + 10
    while _children(session):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.02)


def test_closing_ends_the_server(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vdi")
    before = len(list(Path("/dev/fd").iterdir()))
    disk = ForeignDisk(image, "vdi")
    session = disk._server._process.pid
    assert _children(session)
    disk.close()
    disk.close()
    _assert_gone(session)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_server_that_dies_is_an_input_error(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vdi")
    with ForeignDisk(image, "vdi") as disk:
        os.kill(disk._server._process.pid, signal.SIGKILL)
        with pytest.raises(InputError, match="qemu-nbd cannot read it"):
            disk.read(0, 1)


_VICTIM = """
import os, signal, sys
from armvm.disk import foreign
if sys.argv[2] == "early":  # killed before the handshake, when qemu-nbd would not notice
    class NbdClient:
        def __init__(self, connection, **_):
            connection.recv(1)
            print(os.getpid(), flush=True)
            signal.pause()
    foreign.NbdClient = NbdClient
launch = foreign._launch
def spied(*arguments):
    result = launch(*arguments)
    print(result[0].pid, flush=True)
    return result
foreign._launch = spied
disk = foreign.ForeignDisk(sys.argv[1], "vdi")
disk.read(0, 512)
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_no_orphan_when_we_are_killed(tmp_path: Path, when: str) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "vdi")
    command = [sys.executable, "-c", _VICTIM, str(image), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        session = int(victim.stdout.readline())
        assert int(victim.stdout.readline()) == victim.pid
        assert _children(session)
        victim.kill()
    _assert_gone(session)
