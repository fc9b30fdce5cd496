"""Images that other programs compressed and packed."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

from armvm.disk import temporary
from armvm.disk.detect import open_disk
from armvm.errors import InputError, OutputError
from conftest import Armvm
from tools import disk_images
from tools.containers import MIB, assert_reads_as, converted, scattered_raw
from tools.web_servers import Request, misbehaving, nginx

_PROGRAMS = {
    "gz": "gzip -c",
    "xz": "xz -c -0",
    "zst": "zstd -q -c",
    "bz2": "bzip2 -c",
    "lz4": "lz4 -q -c",
}
_NAMES = {"gz": "gzip", "xz": "xz", "zst": "zstd", "bz2": "bzip2", "lz4": "lz4"}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made; that none is left there, at the end of every test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def _packed(source: Path, kind: str, *options: str) -> Path:
    target = source.with_name(f"{source.name}.image")  # a name that tells nothing
    with target.open("wb") as file:
        subprocess.run([*_PROGRAMS[kind].split(), *options, str(source)], check=True, stdout=file, timeout=120)
    return target


def _tar(folder: Path, *arguments: str) -> Path:
    target = folder / "packed.image"
    subprocess.run(["tar", "-C", str(folder), "-cf", str(target), *arguments], check=True, timeout=120)
    return target


def _allocated_bytes(descriptor_of: Path) -> int:
    """What the files without a name that this process holds below a folder take on the disk."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if str(link.readlink()).startswith(str(descriptor_of)):
                total += link.stat().st_blocks * 512
        except OSError:
            continue
    return total


@pytest.mark.parametrize("kind", _PROGRAMS)
@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vpc"])
def test_every_compression_of_every_kind_of_container(tmp_path: Path, scratch: Path, kind: str, format: str) -> None:
    content = scattered_raw(tmp_path / "raw", 6 * MIB + 512)
    if format == "vpc":
        content = scattered_raw(tmp_path / "raw", 17 * 16 * 63 * 512)  # a size that a VHD's geometry has
    image = converted(tmp_path / "raw", tmp_path / "image", format) if format != "raw" else tmp_path / "raw"
    told: list[tuple[str, int, int]] = []
    packed = _packed(image, kind)
    with open_disk(packed, progress=lambda *step: told.append(step)) as disk:
        assert (disk.format, disk.name) == (format, str(packed))
        assert_reads_as(disk, content)
    assert told[-1] == ("decompressing", packed.stat().st_size, packed.stat().st_size)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", _PROGRAMS)
def test_streams_one_behind_the_other(tmp_path: Path, kind: str) -> None:
    content = scattered_raw(tmp_path / "raw", 3 * MIB)
    whole = tmp_path / "whole"
    with whole.open("wb") as file:
        for number, part in enumerate((content[:MIB], content[MIB : MIB + 1], content[MIB + 1 :])):
            (tmp_path / f"{number}").write_bytes(part)
            file.write(_packed(tmp_path / f"{number}", kind).read_bytes())
    with open_disk(whole) as disk:
        assert disk.read(0, disk.size_bytes) == content
    if kind in {"gz", "xz"}:  # padding, of which xz wants multiples of four bytes
        with whole.open("ab") as file:
            file.write(bytes(2048))
        with open_disk(whole) as disk:
            assert disk.read(0, disk.size_bytes) == content


def test_variants_of_the_formats(tmp_path: Path) -> None:
    content = scattered_raw(tmp_path / "raw", 3 * MIB)
    for kind, options in (
        ("xz", ("-T2", "--block-size=1MiB")),
        ("xz", ("--check=sha256", "-9")),
        ("xz", ("--check=none",)),
        ("gz", ("-n", "-9")),
        ("zst", ("-19", "--long=27")),
        ("zst", ("--no-check", "-1")),
        ("lz4", ("-9", "-BD", "-B4", "--no-frame-crc")),
        ("lz4", ("--content-size", "-BX")),
    ):
        with open_disk(_packed(tmp_path / "raw", kind, *options)) as disk:
            assert disk.read(0, disk.size_bytes) == content
    packed = tmp_path / "skippable"
    packed.write_bytes(_packed(tmp_path / "raw", "zst").read_bytes() + b"\x50\x2a\x4d\x18\x04\0\0\0seek")
    with open_disk(packed) as disk:
        assert disk.read(0, disk.size_bytes) == content


@pytest.mark.parametrize("kind", _PROGRAMS)
def test_cut_short_damaged_and_followed_by_something(tmp_path: Path, scratch: Path, kind: str) -> None:
    scattered_raw(tmp_path / "raw", 3 * MIB)
    good = _packed(tmp_path / "raw", kind).read_bytes()
    bad = tmp_path / "bad"
    for left in (len(good) - 1, len(good) // 2, 600):
        bad.write_bytes(good[:left])
        with pytest.raises(InputError, match=f"ends in the middle of what is compressed with {_NAMES[kind]}") as caught:
            open_disk(bad)
        assert caught.value.offset_bytes == left
        assert "copied whole" in (caught.value.hint or "")
    for offset in (len(good) // 2, 20_000):
        damaged = bytearray(good)
        damaged[offset : offset + 64] = bytes(byte ^ 0xFF for byte in damaged[offset : offset + 64])
        bad.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{_NAMES[kind]}") as caught:
            open_disk(bad)
        assert caught.value.offset_bytes is not None
    bad.write_bytes(good + b"garbage")
    with pytest.raises(InputError, match=f"something else follows what is compressed with {_NAMES[kind]}"):
        open_disk(bad)
    assert list(scratch.iterdir()) == []
    assert _allocated_bytes(scratch) == 0


@pytest.mark.parametrize(("kind", "level"), [("zst", "-3"), ("xz", "-0"), ("gz", "-1"), ("bz2", "-1")])
def test_zeros_take_neither_disk_nor_memory(tmp_path: Path, scratch: Path, kind: str, level: str) -> None:
    """2 GiB of zeros (64 MiB for the slow ones) in a process that may take 200 MB more than it has."""
    size = (2 << 30) if kind == "zst" else 64 * MIB
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(size)
    packed = _packed(tmp_path / "zeros", kind, level)
    assert packed.stat().st_size < 2 * MIB
    program = (
        "import sys, resource\n"
        "from armvm.disk.detect import open_disk\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (200_000_000, 200_000_000))\n"
        "with open_disk(sys.argv[1]) as disk:\n"
        "    print(disk.size_bytes, sum(e.length for e in disk.extents() if e.data), any(disk.read(0, 9)))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program, packed], capture_output=True, text=True, timeout=120, check=False
    )
    assert completed.stderr == ""
    assert completed.stdout.split() == [str(size), "0", "False"]
    assert list(scratch.iterdir()) == []


def test_what_is_too_large_is_refused(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(9 * MIB)
    packed = _packed(tmp_path / "zeros", "zst")
    monkeypatch.setattr(temporary, "MOST_BYTES", 8 * MIB)
    with pytest.raises(InputError, match="too large to be unpacked: expected at most 8 MiB"):
        open_disk(packed)
    assert _allocated_bytes(scratch) == 0


def test_disk_that_is_full(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(random.Random(1).randbytes(9 * MIB))
    packed = _packed(tmp_path / "raw", "zst")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, limits[1]))
    try:
        with pytest.raises(OutputError, match=f"cannot unpack into {scratch}: File too large") as caught:
            open_disk(packed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "TMPDIR=" in (caught.value.hint or "")
    monkeypatch.setattr(temporary, "_LOOK_BYTES", 1 << 60)  # as if next to nothing were free
    with pytest.raises(OutputError, match="No space left"):
        open_disk(packed)
    assert _allocated_bytes(scratch) == 0
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="cannot unpack into"):
        open_disk(packed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(tmp_path: Path, scratch: Path, number: signal.Signals) -> None:
    """However the process ends, the temporary file is gone: it never had a name."""
    content = random.Random(1).randbytes(3 * MIB)
    (tmp_path / "raw").write_bytes(content)
    packed = _packed(tmp_path / "raw", "zst").read_bytes()

    def stuck(request: Request) -> None:
        start, end = request.asked
        request.part(body=packed[start : end // 2], length=end - start)
        time.sleep(60)

    with misbehaving(packed, *[lambda request: request.part()] * 2, stuck) as server:
        command = [sys.executable, "-m", "armvm", "check", f"{server.url}/disk.zst"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "no_proxy": "127.0.0.1"}) as process:
            try:
                deadline = time.monotonic() + 30
                while not any(str(scratch) in link for link in _links(process.pid)):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                assert list(scratch.iterdir()) == []
                process.send_signal(number)
                said = process.communicate(timeout=30)[1]
            finally:
                process.kill()
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    if number is signal.SIGINT:
        assert said == b"armvm: interrupted\n"
    assert list(scratch.iterdir()) == []


def _links(pid: int) -> list[str]:
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except OSError:
            continue
    return links


def test_check_of_a_compressed_image(tmp_path: Path, armvm: Armvm) -> None:
    with disk_images.disk_image() as disk:
        (tmp_path / "disk.img").write_bytes(disk.read(0, disk.size_bytes))
    qcow2 = converted(tmp_path / "disk.img", tmp_path / "disk.qcow2", "qcow2")
    here = armvm("check", "-v", qcow2)
    there = armvm("check", "-v", _packed(qcow2, "xz"))
    assert there.stdout.replace(f"{qcow2}.image", str(qcow2)) == here.stdout
    assert (there.returncode, there.stderr) == (here.returncode, "")
    refused = armvm("run", "--print-command", _packed(qcow2, "xz"))
    assert refused.returncode == 65
    assert "compressed with xz" in refused.stderr
    assert "xz -d" in refused.stderr


# Archives


@pytest.mark.parametrize("options", [(), ("--format=oldgnu", "-S"), ("--format=posix", "-S"), ("--format=ustar",)])
@pytest.mark.parametrize("kind", [None, "gz", "xz", "zst"])
def test_disk_raw_of_the_clouds(tmp_path: Path, kind: str | None, options: tuple[str, ...]) -> None:
    content = scattered_raw(tmp_path / "disk.raw", 8 * MIB + 512, pieces=8)
    (tmp_path / "readme").write_text("not this one")
    archive = _tar(tmp_path, *options, "readme", "./disk.raw")
    if "-S" in options:
        assert archive.stat().st_size < 4 * MIB  # it did find holes
    packed = archive if kind is None else _packed(archive, kind)
    with open_disk(packed) as disk:
        assert (disk.format, disk.name) == ("raw", f"{packed}, ./disk.raw")
        assert_reads_as(disk, content)
        if "-S" in options:
            assert any(not extent.data for extent in disk.extents())


def test_other_archives_with_one_image(tmp_path: Path) -> None:
    """An OVA, Azure's archive, and ones of which only the content tells which file is the image."""
    content = scattered_raw(tmp_path / "raw", 17 * 16 * 63 * 512)
    (tmp_path / "a.ovf").write_text("<xml/>")
    (tmp_path / "a.mf").write_text("SHA256(a.ovf)= 0")
    for kind, options in (
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vpc", ("-o", "subformat=fixed,force_size=on")),
        ("vhdx", ()),
        ("qcow2", ("-c",)),
    ):
        converted(tmp_path / "raw", tmp_path / "a.x", kind, *options)
        for files in (("a.x",), ("a.ovf", "a.x", "a.mf")):
            archive = _tar(tmp_path, *files)
            for packed in (archive, _packed(archive, "gz")):
                with open_disk(packed) as disk:
                    assert disk.format == kind
                    assert disk.read(0, len(content)) == content
    with open_disk(_tar(tmp_path, "raw")) as disk:  # no partition table, but nothing else either
        assert disk.read(0, disk.size_bytes) == content


def test_archives_without_the_one_image(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    for name in ("a.qcow2", "b.qcow2"):
        converted(tmp_path / "raw", tmp_path / name, "qcow2")
    (tmp_path / "text").write_text("text")
    (tmp_path / "more\x1b").write_text("text")
    (tmp_path / "empty").touch()
    for number in range(300):
        (tmp_path / "many" / f"{number}").parent.mkdir(exist_ok=True)
        (tmp_path / "many" / f"{number}").touch()
    for files, message in (
        (("a.qcow2", "b.qcow2"), "an archive of 2 disk images: found a.qcow2, b.qcow2, expected one"),
        (("text", "more\x1b", "empty"), r"an archive of no disk image: found text, more\\x1b, empty"),
        (("many",), "more than 256 files"),
        (("empty",), "is empty"),
    ):
        with pytest.raises(InputError, match=message):
            open_disk(_tar(tmp_path, *files))


def test_only_so_deep(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    _packed(tmp_path / "raw", "gz").rename(tmp_path / "once")
    for packed in (_packed(tmp_path / "once", "xz"), _packed(_tar(tmp_path, "once"), "xz")):
        with pytest.raises(InputError, match="compressed with gzip") as caught:
            open_disk(packed)
        assert "gzip -d" in (caught.value.hint or "")


def test_archive_cut_short(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    archive = _tar(tmp_path, "raw")
    os.truncate(archive, MIB // 2)
    with pytest.raises(InputError, match=r"unexpected end of data|ends in the middle"):
        open_disk(archive)


def test_archives_that_lie(tmp_path: Path) -> None:
    def header(name: bytes, size: bytes, kind: bytes) -> bytes:
        raw = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
        raw[0:100] = name.ljust(100, b"\0")
        raw[124:136], raw[156:157] = size, kind
        raw[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw)
        return bytes(raw)

    huge = b"\x80" + (1 << 60).to_bytes(11, "big")
    negative = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")
    sparse = bytearray(header(b"x", b"00000001000\0", b"S"))
    sparse[386:410] = b"00000000000\0" + b"77777777777\0"
    sparse[483:495] = b"00000001000\0"
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    for content, message in (
        (header(b"x", huge, b"0"), "unexpected end of data"),
        (header(b"x", negative, b"0"), "before the archive's start"),
        (header(b"x", huge, b"L"), "headers of absurd size"),
        (header(b"x", huge, b"x"), "headers of absurd size"),
        (header(b"x", b"77777777777\0", b"g"), "headers of absurd size"),
        (header(b"x", b"00000000010\0", b"L") * 4000, "headers follow on headers"),
        (bytes(sparse), "map of a sparse file contradicts itself"),
    ):
        path = tmp_path / "lie.tar"
        with path.open("wb") as file:
            file.write(content)
            file.truncate(64 * MIB)
        start = time.monotonic()
        with pytest.raises(InputError, match=message):
            open_disk(path)
        assert time.monotonic() - start < 5


def test_archive_and_compressed_image_behind_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = tmp_path / "root"
    root.mkdir()
    content = scattered_raw(tmp_path / "disk.raw", 24 * MIB)
    _tar(tmp_path, "disk.raw").rename(root / "a.tar")
    _packed(converted(tmp_path / "disk.raw", tmp_path / "x", "qcow2"), "xz").rename(root / "a.xz")
    _packed(root / "a.tar", "zst").rename(root / "a.tar.zst")
    converted(tmp_path / "disk.raw", tmp_path / "a.vmdk", "vmdk")
    _tar(tmp_path, "a.vmdk").rename(root / "a.ova")
    _packed(root / "a.ova", "gz").rename(root / "a.ova.gz")
    with nginx(root, tmp_path / "nginx") as server:
        with open_disk(f"{server.url}/a.tar") as disk:
            assert disk.read(20 * MIB, 99) == content[20 * MIB : 20 * MIB + 99]
            assert disk.traffic is not None
            assert disk.traffic.transferred_bytes < MIB
            assert disk.read(0, disk.size_bytes) == content
        for name, kind in (("a.xz", "qcow2"), ("a.tar.zst", "raw"), ("a.ova.gz", "vmdk")):
            told: list[tuple[str, int, int]] = []
            with open_disk(f"{server.url}/{name}", progress=lambda *step, told=told: told.append(step)) as disk:
                assert disk.format == kind
                assert disk.read(0, disk.size_bytes) == content
                assert disk.traffic is not None
                size = (root / name).stat().st_size
                assert size <= disk.traffic.transferred_bytes <= size + 2 * 65536
            assert told[-1] == ("decompressing", size, size)
        with pytest.raises(InputError, match="the format vmdk is not read from a server"):
            open_disk(f"{server.url}/a.ova")


def test_stream_cut_in_a_decoder_of_one_byte_pieces(tmp_path: Path) -> None:
    """Every decoder, fed byte by byte, gives the same: no state is lost between pieces."""
    from armvm.disk.compressed import _Decompressor
    from armvm.disk.storage import MemoryDisk
    from armvm.disk.wrapping import detect_wrapping

    content = scattered_raw(tmp_path / "raw", 96 * 1024, pieces=3)
    for kind in _PROGRAMS:
        packed = _packed(tmp_path / "raw", kind).read_bytes()
        wrapping = detect_wrapping(packed)
        assert wrapping is not None
        decoder = _Decompressor(MemoryDisk(packed * 2), wrapping, None)
        found = io.BytesIO()
        for byte in packed * 2:
            for piece in decoder._decode(bytes([byte])):
                found.write(piece)
        assert found.getvalue() == content * 2
