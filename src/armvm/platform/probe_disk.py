"""The probe's disk: a portable image whose boot programs are the probe, and what the probe left on it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from armvm.atomic import replacing
from armvm.disk.formats import DiskFormat, OutputFormat, write_disk
from armvm.disk.storage import Disk
from armvm.efi import EfiProgram, program_path
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.image.build import plan_image
from armvm.image.contents import ImageContents
from armvm.image.recipe import EspFile, Recipe
from armvm.probe.wire import Run, decode
from armvm.units import MIB

FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vhd")
"""What a probe disk can be written as."""

_FOLDER = "\\ARMVM\\"
_MOST_RUN_FILE_BYTES = 16 * MIB
_MOST_RUN_FILES = 1000


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    r"""What the probe is told by \ARMVM\CONFIG.TXT (docs/probe-wire.md); the defaults are the probe's own."""

    runs: int = 2
    brief: int = 0
    end: str = "shutdown"
    skip: frozenset[str] = field(default_factory=frozenset)

    def serialise(self) -> str:
        """The file's text."""
        lines = [f"runs={self.runs}", f"end={self.end}"]
        if self.brief:
            lines.append(f"brief={self.brief}")
        if self.skip:
            lines.append(f"skip={','.join(sorted(self.skip))}")
        return "".join(f"{line}\n" for line in lines)


def build_probe_disk(
    output: Path,
    *,
    format: str = "raw",
    config: ProbeConfig | None = None,
    states: Collection[ExecutionState] = tuple(ExecutionState),
    timestamp: int,
    overwrite: bool = False,
) -> None:
    """Write the probe disk that serves ``states`` to ``output``, whole or not at all.

    Raises OutputError when it cannot be written, MissingError when ``format`` needs qemu-img and it is not installed.
    """
    programs = {state: program_path(EfiProgram.PROBE, state) for state in states}
    with tempfile.TemporaryDirectory(prefix=".armvm-probe-", dir=output.parent) as scratch:
        settings = Path(scratch) / "CONFIG.TXT"
        settings.write_text((config or ProbeConfig()).serialise(), encoding="ascii")
        recipe = Recipe(efi=programs, esp_files=(EspFile(settings, "/ARMVM/CONFIG.TXT"),), esp_label="ARMVM-PROBE")
        with (
            plan_image(recipe, timestamp=timestamp, scratch_folder=Path(scratch)) as disk,
            replacing(output, overwrite=overwrite) as file,
        ):
            write_disk(file, disk, OutputFormat(DiskFormat(format)), name=output.name)


def read_probe_disk(disk: Disk) -> tuple[Run, ...]:
    """What the probe left on its disk, run by run. Raises InputError when no ESP of it holds the probe's files."""
    contents = ImageContents(disk)
    for esp in contents.esps:
        if esp.volume is None:
            continue
        names = sorted(
            path
            for path, entry in contents.files(esp)
            if path.upper().startswith(f"{_FOLDER}RUN") and path.upper().endswith(".TXT")
        )
        runs: list[Run] = []
        for path in names[:_MOST_RUN_FILES]:
            entry = esp.volume.lookup(path)
            if entry is not None:
                runs += decode(esp.volume.read(entry, max_bytes=_MOST_RUN_FILE_BYTES))
        if names or esp.volume.lookup(f"{_FOLDER}CONFIG.TXT") is not None:
            return tuple(runs)
    raise InputError("no probe has written to this disk", subject=disk.name, expected="\\ARMVM\\RUN00001.TXT on an ESP")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for the disks of a trial; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="armvm-probe-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
