"""``armvm convert`` as a user runs it; what it writes is judged in tests/foreign."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from armvm.cli.main import main
from armvm.disk import formats
from armvm.disk.storage import Disk
from conftest import Armvm
from tools.containers import MIB, qemu_img, scattered_raw
from tools.disk_images import disk_image
from tools.fat_images import save_sparse


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    scattered_raw(tmp_path / "disk.img", 3 * MIB)
    return tmp_path / "disk.img"


def test_it_says_what_it_made(armvm: Armvm, raw: Path, tmp_path: Path) -> None:
    result = armvm("convert", raw, tmp_path / "out.qcow2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{tmp_path / 'out.qcow2'}: qcow2, 3 MiB disk, ")
    assert result.stdout.endswith(", verified\n")
    assert armvm("convert", "-q", raw, tmp_path / "q.qcow2").stdout == ""


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--help"])
    assert caught.value.code == 0
    assert "armvm convert disk.qcow2 disk.vhd\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("out",), "what is out to be"),
        (("out.tar",), "what is out.tar to be"),
        (("out.img", "--compress"), "raw is not compressed"),
        (("out.img", "--subformat", "fixed"), "raw has no subformat fixed"),
        (("out.vmdk", "--subformat", "twoGbMaxExtentFlat"), "vmdk has no subformat"),
        (("out.img", "--size", "huge"), "not a size"),
        (("out.img", "--size", "min", "--grow-partition", "1"), "cannot grow"),
        (("out.img", "--grow-partition", "0"), "not a partition"),
        (("out.img", "--grow-partition", "first"), "not a partition"),
        (("out.img", "--shrink", "--size", "+1G"), "grow and shrink"),
    ],
)
def test_requests_that_make_no_sense(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main(["convert", str(raw), str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


def test_the_format_is_said_or_named(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "odd.name"
    assert main(["convert", "-q", str(raw), str(out), "--format", "qcow2"]) == 0
    assert out.read_bytes()[:4] == b"QFI\xfb"
    for name in ("A.RAW", "b.Img"):
        assert main(["convert", "-q", str(out), str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes() == raw.read_bytes()


def test_what_is_there_is_kept(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"precious")
    assert main(["convert", "-q", str(raw), str(out)]) == 69
    assert "--force replaces it" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert main(["convert", "-q", str(raw), str(out), "--force"]) == 0
    assert out.read_bytes() == raw.read_bytes()


def test_the_source_itself_is_refused(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = raw.read_bytes()
    (tmp_path / "hard.img").hardlink_to(raw)
    (tmp_path / "soft.img").symlink_to(raw)
    for name in ("disk.img", "hard.img", "soft.img"):
        assert main(["convert", str(raw), str(tmp_path / name), "--force"]) == 2
        assert "is the image that is to be converted" in capsys.readouterr().err
    assert raw.read_bytes() == before


def test_what_is_no_file_is_left_alone(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.img").mkdir()
    os.mkfifo(tmp_path / "pipe.img")
    for name in ("folder.img", "pipe.img", "no/such/folder.img"):
        assert main(["convert", str(raw), str(tmp_path / name), "--force"]) == 69
    assert (tmp_path / "folder.img").is_dir()
    assert (tmp_path / "pipe.img").is_fifo()


def test_a_backing_file_is_followed_only_when_allowed(raw: Path, tmp_path: Path) -> None:
    overlay, out = tmp_path / "overlay.qcow2", tmp_path / "out.img"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "disk.img", "-F", "raw", overlay)
    assert main(["convert", str(overlay), str(out)]) == 65
    assert main(["convert", "-q", str(overlay), str(out), "--allow-backing-files"]) == 0
    assert out.read_bytes() == raw.read_bytes()


def test_what_does_not_read_back_is_thrown_away(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = formats.write_disk

    def faulty(file: BinaryIO, source: Disk, *arguments: object, **more: object) -> None:
        write(file, source, *arguments, **more)  # type: ignore[arg-type]  # handed on as they come
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")

    monkeypatch.setattr("armvm.image.convert.write_disk", faulty)
    content = raw.read_bytes()
    raw.write_bytes(content[:-1] + b"\0")
    out = tmp_path / "out.img"
    assert main(["convert", "-q", str(raw), str(out)]) == 69
    assert "does not read back as it was written" in capsys.readouterr().err
    assert not out.exists()
    assert main(["convert", "-q", str(raw), str(out), "--no-verify"]) == 0
    assert out.exists()


def test_sizes_that_are_no_whole_sectors(raw: Path, tmp_path: Path) -> None:
    with raw.open("ab") as file:
        file.write(b"odd")
    for name in ("out.img", "out.qcow2", "out.vdi"):
        assert main(["convert", "-q", str(raw), str(tmp_path / name)]) == 0
    assert (tmp_path / "out.img").read_bytes() == raw.read_bytes()


def test_formats_without_large_sectors_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = save_sparse(disk_image(), tmp_path / "disk.img")
    assert main(["convert", str(image), str(tmp_path / "a.vhd"), "--sector-size", "4096"]) == 0
    assert "note: hypervisors show a vhd as a disk of 512-byte sectors" in capsys.readouterr().err
    assert main(["convert", str(image), str(tmp_path / "b.vhd"), "--size", "40000K"]) == 0
    assert "note: Azure takes only a VHD of whole MiB" in capsys.readouterr().err


def test_too_large_for_the_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = tmp_path / "huge.img"
    huge.touch()
    os.truncate(huge, 3 << 40)
    assert main(["convert", str(huge), str(tmp_path / "out.vhd")]) == 2
    assert "a vhd holds at most" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["huge.img"]


def test_missing_qemu_img(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armvm.process.find_program", lambda _name: None)
    assert main(["convert", "-q", str(raw), str(tmp_path / "out.vdi")]) == 69
    assert main(["convert", "-q", str(raw), str(tmp_path / "out.qcow2")]) == 0
