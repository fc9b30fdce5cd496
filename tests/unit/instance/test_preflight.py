from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from armvm.disk.qcow2_write import write_overlay
from armvm.errors import BusyError, InputError, MissingError
from armvm.instance.preflight import checked
from armvm.instance.store import Instance
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import PortForward, UserNetwork
from armvm.units import MIB
from tools.instances import made_small


@pytest.fixture
def web(image: Path, behave: Callable[[str], None]) -> Instance:
    return made_small("web", image)


def overlay(path: Path, backing: Path, form: str = "raw") -> Path:
    with path.open("wb") as file:
        write_overlay(file, backing_path=str(backing), backing_format=form, size_bytes=MIB)
    return path


def test_what_is_sound_passes(web: Instance) -> None:
    definition, qemu = checked(web, {"accelerator": "tcg", "cpu": "max"})
    assert definition == web.definition()
    assert (qemu.accelerator, qemu.cpu) == (AcceleratorKind.TCG, "max")


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
    overlay(web.disk, secret)
    with pytest.raises(InputError, match="stands on another image than recorded"):
        checked(web, {})
    for name in ("nbd://host/x", "json:{}", f"file:{image}"):
        rebase = ["qemu-img", "rebase", "-u", "-F", "raw", "-b", name, str(web.disk)]
        subprocess.run(rebase, check=True, timeout=60)
        with pytest.raises(InputError, match=r"is no plain file: found (nbd|json|file):"):
            checked(web, {})
    web.disk.unlink()
    with pytest.raises(InputError, match="cannot be read"):
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
        busy = made_small("busy", image, nics=(UserNetwork((PortForward(port, 22),)),))
        with pytest.raises(BusyError, match=f"port {port} of this host is in use by another program"):
            checked(busy, {})
    checked(busy, {})
