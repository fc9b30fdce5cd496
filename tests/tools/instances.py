"""Kept instances for tests that start none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
