from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.disk.qcow2_write import write_overlay
from armvm.errors import BusyError, InputError, MissingError
from armvm.instance.definition import BackingImage, Definition
from armvm.instance.preflight import checked
from armvm.instance.store import Instance
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import PortForward, UserNetwork
from armvm.units import MIB
from tools.instances import make


@pytest.fixture
def web(image: Path, behave: Callable[[str], None]) -> Instance:
    return make("web", image)


def overlay(path: Path, backing: Path, form: str = "raw") -> Path:
    with path.open("wb") as file:
        write_overlay(file, backing_path=str(backing), backing_format=form, size_bytes=MIB)
    return path


def rebased(path: Path, backing: str) -> None:
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", backing, str(path)], check=True, timeout=60)


def backed(instance: Instance, image: Path, form: str) -> Definition:
    """The definition of ``instance`` on another image, which its first disk is made to stand on."""
    overlay(instance.disk, image, form)
    status = image.stat()
    backing = BackingImage("disk0", image, form, status.st_size, status.st_mtime_ns)
    return replace(instance.definition(), images=(backing,))


def test_what_is_sound_passes(web: Instance, tmp_path: Path, image: Path) -> None:
    definition, qemu = checked(web, {"accelerator": "tcg", "cpu": "max"})
    assert definition == web.definition()
    assert (qemu.accelerator, qemu.cpu) == (AcceleratorKind.TCG, "max")
    web.save(backed(web, overlay(tmp_path / "middle.qcow2", image), "qcow2"))  # an image that is an overlay itself
    checked(web, {})


def test_an_image_that_has_changed_or_is_gone(web: Instance, image: Path) -> None:
    os.utime(image, ns=(0, 0))
    with pytest.raises(InputError, match="has changed since instance web was made"):
        checked(web, {})
    image.unlink()
    with pytest.raises(InputError, match="the image of instance web is gone"):
        checked(web, {})


def test_an_overlay_on_another_file(web: Instance, image: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(image.read_bytes())
    for backing, form in ((secret, "raw"), (image, "qcow2"), (tmp_path / "none", "raw")):
        overlay(web.disk, backing, form)
        with pytest.raises(InputError, match="disk0 of instance web does not stand on the image"):
            checked(web, {})
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(web.disk), "1M"], check=True, timeout=60)
    with pytest.raises(InputError, match="found nothing"):
        checked(web, {})
    web.disk.write_bytes(image.read_bytes())
    with pytest.raises(InputError, match="no qcow2 image"):
        checked(web, {})


@pytest.mark.parametrize("name", ["nbd://host/x", "json:{}", "file:/etc/passwd"])
def test_what_qemu_would_take_for_a_protocol(web: Instance, image: Path, tmp_path: Path, name: str) -> None:
    rebased(web.disk, name)
    with pytest.raises(InputError, match="its backing file is no plain file"):
        checked(web, {})
    middle = overlay(tmp_path / "middle.qcow2", image)
    rebased(middle, name)
    web.save(backed(web, middle, "qcow2"))
    with pytest.raises(InputError, match="its backing file is no plain file"):
        checked(web, {})


def test_a_chain_in_a_circle(web: Instance, tmp_path: Path) -> None:
    one, two = tmp_path / "one.qcow2", tmp_path / "two.qcow2"
    overlay(one, two, "qcow2")
    overlay(two, one, "qcow2")
    web.save(backed(web, one, "qcow2"))
    with pytest.raises(InputError, match="more than 16 images"):
        checked(web, {})


def test_a_disk_of_its_own_stands_on_nothing(web: Instance) -> None:
    text = web.description.read_text()
    web.description.write_text(text[: text.index("[disks.image]")])
    with pytest.raises(InputError, match=r"stands on a file that machine\.toml does not name"):
        checked(web, {})
    web.disk.unlink()
    with pytest.raises(InputError, match="disk disk0 of instance web cannot be read"):
        checked(web, {})


def test_missing_firmware(web: Instance, tmp_path: Path) -> None:
    web.description.write_text(f'firmware = "{tmp_path / "none.fd"}"\n{web.description.read_text()}')
    with pytest.raises((MissingError, InputError), match=r"none\.fd"):
        checked(web, {})


def test_a_variable_store_that_is_gone(web: Instance) -> None:
    web.variables.unlink()
    with pytest.raises(InputError, match="the variable store of instance web is gone") as caught:
        checked(web, {})
    assert caught.value.hint == "armvm vars reset web makes a new one"


def test_a_port_that_is_in_use_is_named(image: Path, behave: Callable[[str], None]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = make("busy", image, nics=(UserNetwork((PortForward(port, 22),)),))
        with pytest.raises(BusyError, match=f"port {port} of this host is in use by another program"):
            checked(busy, {})
    checked(busy, {})
