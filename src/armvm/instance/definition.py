"""What a kept machine is: the Machine value, and what only an instance has beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from armvm.machine.definition import Machine


@dataclass(frozen=True, slots=True)
class LowerImage:
    """An image that another image stands on, as it was when an instance was made on that."""

    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class BackingImage:
    """The image under the disk ``disk`` of an instance (its name), as it was when the instance was made.

    ``below`` is what the image itself stands on, the next one first.
    """

    disk: str
    path: Path
    format: str
    size_bytes: int
    modified_ns: int
    below: tuple[LowerImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Definition:
    """A kept machine. Every path in ``machine`` is absolute; in machine.toml those of its own folder are relative.

    ``images`` are the images that its overlays stand on. ``firmware_file`` is the firmware that the user named, None
    for the system's own. ``user`` is who ``armvm vm ssh`` logs in as. ``instance_id`` is what cloud-init knows it by.
    """

    machine: Machine
    images: tuple[BackingImage, ...] = ()
    firmware_file: Path | None = None
    user: str | None = None
    instance_id: str | None = None

    def image(self, disk: str) -> BackingImage | None:
        """The image under the disk of that name, None when it stands on none."""
        return next((image for image in self.images if image.disk == disk), None)
