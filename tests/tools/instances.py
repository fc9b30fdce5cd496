"""Kept instances for tests, and whether a process of one lives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from armvm.disk.detect import open_disk
from armvm.instance import store
from armvm.instance.create import Wishes, create
from armvm.instance.store import Instance
from tools.machines import machine_of


def made(name: str, image: Path, *, wishes: Wishes | None = None, ssh: bool = False, **fields: object) -> Instance:
    """An instance of ``image``, its machine the default one but for ``fields``."""
    instance = store.find(name)
    with open_disk(image) as disk:
        machine = machine_of(disk=image)
        first = replace(machine.disks[0], format=disk.format)
        machine = replace(machine, **{"disks": (first,), **fields})  # type: ignore[arg-type]
        create(instance, machine, disk, wishes=wishes, ssh=ssh)
    return instance


def made_small(name: str, image: Path, **fields: object) -> Instance:
    """An instance that a stand-in for QEMU can be: one vCPU, and no network but what ``fields`` name."""
    small: dict[str, Any] = {"vcpus": 1, "memory_bytes": 256 << 20, "nics": ()}
    return made(name, image, **{**small, **fields})


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
