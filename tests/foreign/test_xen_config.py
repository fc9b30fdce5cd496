"""xl's own parser, libxlutil, reads what we write for it: the configuration and every disk in it."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.machine.definition import DiskDevice, Writes
from armvm.machine.xen.config import XenHost, adapt, disk_specification, problems, render, xen_firmware
from tools.machines import machine_of

FIRMWARE = xen_firmware(Path("/fw/XEN_EFI.fd"))


class Judge:
    """libxlutil (Debian: libxenmisc4.N) by its C interface (Xen, tools/libs/util/libxlutil.h)."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("xlutil")
        assert name is not None, "libxlutil is missing: apt-get install libxen-dev"
        self._lib: Any = ctypes.CDLL(name)
        self._lib.xlu_cfg_init.restype = ctypes.c_void_p
        self._lib.xlu_cfg_get_listitem.restype = ctypes.c_char_p
        self._stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")

    def _new(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._lib.xlu_cfg_init(self._stderr, b"test"))

    def read(self, text: str) -> dict[str, Any] | None:
        """The values of the configuration; None when it is refused."""
        content = text.encode()
        config = self._new()
        try:
            if self._lib.xlu_cfg_readdata(config, content, len(content)):
                return None
            values: dict[str, Any] = {}
            for key in ("name", "type", "kernel", "gic_version", "on_reboot"):
                word = ctypes.c_char_p()
                if not self._lib.xlu_cfg_get_string(config, key.encode(), ctypes.byref(word), 0) and word.value:
                    values[key] = word.value.decode()
            for key in ("memory", "vcpus", "acpi"):
                number = ctypes.c_long()
                if not self._lib.xlu_cfg_get_long(config, key.encode(), ctypes.byref(number), 0):
                    values[key] = number.value
            for key in ("disk", "vif"):
                entries, count = ctypes.c_void_p(), ctypes.c_int()
                if not self._lib.xlu_cfg_get_list(config, key.encode(), ctypes.byref(entries), ctypes.byref(count), 0):
                    items = [self._lib.xlu_cfg_get_listitem(entries, index) for index in range(count.value)]
                    values[key] = [item.decode() for item in items]
            return values
        finally:
            self._lib.xlu_cfg_destroy(config)

    def takes_disk(self, specification: str) -> tuple[bytes, bytes] | None:
        """The file and the device's name that xl takes from a disk's description; None when it is refused."""
        config, disk = self._new(), ctypes.create_string_buffer(4096)
        try:
            words = (ctypes.c_char_p * 1)(specification.encode())
            if self._lib.xlu_disk_parse(config, 1, words, disk):
                return None
            # libxl_device_disk (libxl.h): a domain's id, its name, then char *pdev_path and char *vdev.
            path, name = struct.unpack_from("PP", disk, 2 * struct.calcsize("P"))
            return ctypes.string_at(path), ctypes.string_at(name)
        finally:
            self._lib.xlu_cfg_destroy(config)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_the_configuration_is_read_as_it_was_meant(judge: Judge) -> None:
    machine = adapt(machine_of(), FIRMWARE).machine
    machine = replace(machine, disks=(*machine.disks, DiskDevice(Path("/b.qcow2"), "qcow2", writes=Writes.REFUSED)))
    values = judge.read(render(machine, name="web-1"))
    assert values is not None
    assert values["name"] == "web-1"
    assert values["type"] == "pvh"
    assert values["kernel"] == "/fw/XEN_EFI.fd"
    assert (values["memory"], values["vcpus"]) == (1024, 2)
    assert values["on_reboot"] == "restart"
    assert len(values["disk"]) == 2
    assert values["vif"] == ["bridge=xenbr0"]
    for specification in values["disk"]:
        assert judge.takes_disk(specification) is not None


def test_the_judge_refuses_what_is_wrong(judge: Judge) -> None:
    assert judge.read('name = "a\n') is None
    assert judge.takes_disk("format=nonsense,vdev=xvda,target=/x") is None


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_file_name_arrives_or_is_refused(name: str) -> None:
    judge = Judge()
    path = Path("/images") / name.replace("/", "_").replace("\0", "_")
    disk = DiskDevice(path, "raw", writes=Writes.KEPT)
    machine = replace(adapt(machine_of(), FIRMWARE).machine, disks=(disk,))
    if problems(machine):
        assert not str(path).isprintable()
        return
    values = judge.read(render(machine, name="x"))
    assert values is not None
    (specification,) = values["disk"]
    assert specification == disk_specification(disk, 0, XenHost())
    taken = judge.takes_disk(specification)
    assert taken == (str(path.absolute()).encode(), b"xvda")
