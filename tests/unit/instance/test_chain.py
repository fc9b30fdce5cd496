from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import InputError
from armvm.instance.chain import check_chain, image_under
from armvm.instance.definition import BackingImage, Definition, LowerImage
from armvm.machine.definition import DiskDevice, Writes
from tools.machines import machine_of


def qcow2(path: Path, *arguments: str) -> Path:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *arguments, str(path)]
    subprocess.run(command if "-b" in arguments else [*command, "1M"], check=True, timeout=60)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(1 << 20))
    return path


def definition(disk: Path, image: Path | None, form: str = "raw") -> Definition:
    machine = machine_of(disk=disk)
    machine = replace(machine, disks=(DiskDevice(disk, "qcow2", writes=Writes.KEPT, name="disk0"),))
    images = () if image is None else (BackingImage("disk0", image, form, 0, 0),)
    return Definition(machine, images)


def test_what_is_recorded_is_what_is_there(tmp_path: Path, image: Path) -> None:
    overlay = qcow2(tmp_path / "disk.qcow2", "-b", str(image), "-F", "raw")
    check_chain(definition(overlay, image))
    check_chain(definition(qcow2(tmp_path / "own.qcow2"), None))
    relative = qcow2(tmp_path / "relative.qcow2", "-b", "image.raw", "-F", "raw")
    check_chain(definition(relative, image))


def test_another_image_is_refused(tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(1 << 20))
    overlay = qcow2(tmp_path / "disk.qcow2", "-b", str(other), "-F", "raw")
    for recorded, why in ((image, "another image than recorded"), (None, "which is not recorded")):
        with pytest.raises(InputError, match=why):
            check_chain(definition(overlay, recorded))
    with pytest.raises(InputError, match="stands on no image"):
        check_chain(definition(qcow2(tmp_path / "own.qcow2"), image))
    with pytest.raises(InputError, match="another format than recorded"):
        check_chain(definition(qcow2(tmp_path / "as.qcow2", "-b", str(image), "-F", "raw"), image, "qcow2"))


def test_an_image_leads_to_plain_files_only(tmp_path: Path, image: Path) -> None:
    middle = qcow2(tmp_path / "middle.qcow2", "-b", str(image), "-F", "raw")
    top = qcow2(tmp_path / "top.qcow2", "-b", str(middle), "-F", "qcow2")
    check_chain(definition(top, middle, "qcow2"))
    found = image_under(top, "qcow2", "data")
    assert found is not None
    assert (found.disk, found.path, found.format, found.size_bytes) == ("data", middle, "qcow2", middle.stat().st_size)
    assert found.below == (LowerImage(image, 1 << 20, image.stat().st_mtime_ns),)
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-b", "nbd://127.0.0.1/x", "-F", "raw", str(middle)], check=True, timeout=60
    )
    with pytest.raises(InputError, match="no plain file"):
        check_chain(definition(top, middle, "qcow2"))
    loop = qcow2(tmp_path / "loop.qcow2")
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "loop.qcow2", "-F", "qcow2", str(loop)], check=True, timeout=60)
    with pytest.raises(InputError, match="more than 16 images"):
        check_chain(definition(loop, loop, "qcow2"))


@pytest.mark.parametrize(("bit", "why"), [(1, "not closed in order"), (2, "corrupt")])
def test_a_damaged_disk_is_refused(bit: int, why: str, tmp_path: Path) -> None:
    disk = qcow2(tmp_path / "disk.qcow2")
    content = bytearray(disk.read_bytes())
    content[79] |= bit
    disk.write_bytes(content)
    with pytest.raises(InputError, match=why):
        check_chain(definition(disk, None))
    disk.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        check_chain(definition(disk, None))
