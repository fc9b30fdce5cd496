"""Instances for tests: made in process, without firmware in the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from armvm.disk.detect import open_disk
from armvm.instance import store
from armvm.instance.create import create
from armvm.instance.store import Instance
from tools.machines import machine_of


def make(name: str, image: Path, **fields: object) -> Instance:
    """An instance on ``image`` with these fields of its Machine; else one vCPU and no network."""
    chosen: dict[str, object] = {"vcpus": 1, "memory_bytes": 256 << 20, "nics": (), **fields}
    instance = store.find(name)
    with open_disk(image) as disk:
        create(instance, replace(machine_of(disk=image), **chosen), disk)  # type: ignore[arg-type]
    return instance


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
