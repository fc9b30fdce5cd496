"""Kept instances for tests that start none: a folder as ``armvm vm create`` makes it, and what is in its store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from armvm.disk.detect import open_disk
from armvm.firmware.variables import FLASH_SIZE_BYTES, Variable
from armvm.firmware.varstore import serialise_store
from armvm.instance.create import create
from armvm.instance.store import Instance, find
from armvm.machine.definition import Machine
from tools.machines import machine_of

_EDK2 = bytes(0x28) + b"_FVH" + bytes(100)
"""As much of a firmware as tells that it is EDK2."""


def kept_instance(folder: Path, name: str = "web", machine: Machine | None = None, *, code: bytes = _EDK2) -> Instance:
    """An instance below $ARMVM_HOME, on an image of 1 MiB in ``folder``; ``code`` is its firmware."""
    image = folder / "image.raw"
    image.write_bytes(bytes(1 << 20))
    machine = machine or machine_of(disk=image)
    code_file = folder / "code.fd"
    code_file.write_bytes(code)
    instance = find(name)
    firmware = replace(machine.firmware, code=code_file)
    with open_disk(image) as disk:
        create(instance, replace(machine, firmware=firmware), disk, firmware_file=code_file)
    return instance


def put_flash(instance: Instance, content: bytes) -> None:
    """Make ``content`` the start of its flash, with a qcow2 image that qemu-img writes."""
    raw = instance.folder.parent / "raw"
    raw.write_bytes(content)
    os.truncate(raw, max(FLASH_SIZE_BYTES, len(content)))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, instance.variables], check=True, timeout=60)
    raw.unlink()


def put_variables(instance: Instance, variables: Iterable[Variable]) -> None:
    """Make ``variables`` the whole content of its store."""
    put_flash(instance, serialise_store(variables))


def raw_flash(instance: Instance, folder: Path) -> Path:
    """Its flash as a raw file, as qemu-img reads it."""
    raw = folder / f"{instance.name}.fd"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", instance.variables, raw], check=True, timeout=60)
    return raw


def virt_fw_vars(*arguments: str | Path) -> str:
    """What virt-firmware's program prints."""
    program = Path(sys.executable).with_name("virt-fw-vars")
    done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout
