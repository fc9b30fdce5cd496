"""Images of other hypervisors (vmdk, vhdx, vhd, vdi), written by ``qemu-img convert`` from a sparse raw copy.

Neither file needs a name for that: on Linux, qemu-img reaches both through /proc, so nothing is left behind whatever
happens. (A vmdk tells the name of its own file: qemu-img is shown a symbolic link that is called so.)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from armvm.disk.compare import data_bytes
from armvm.disk.formats import DiskFormat
from armvm.disk.raw import RawDisk
from armvm.disk.scratch import scratch_file, visible_path
from armvm.disk.storage import Disk
from armvm.disk.write import write_raw
from armvm.process import require_program, run
from armvm.units import MIB

_LEAST_SECONDS = 120.0
_LEAST_BYTES_PER_SECOND = 4 * MIB
_PLAIN_NAME = re.compile(r"[\w .,+=@()-]+")


def write_foreign(
    file: BinaryIO,
    source: Disk,
    format: DiskFormat,
    subformat: str,
    *,
    name: str,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``source`` in ``format`` into the regular file ``file``, which is to be called ``name``.

    A VHD has exactly the size of the disk, not one rounded up to a geometry of cylinders: the backup GPT has to be at
    the end. ``progress`` is told how many bytes of the disk have been copied.
    Raises MissingError without qemu-img, ProgramError when it fails.
    """
    require_program("qemu-img")  # before the copying, not after
    folder = _folder_of(file)
    with scratch_file(folder) as (raw, raw_path):
        write_raw(raw, source, progress=progress)
        raw.flush()
        with RawDisk(raw_path) as copy:
            seconds = _LEAST_SECONDS + data_bytes(copy) / _LEAST_BYTES_PER_SECOND
        file.truncate(0)
        file.flush()
        shown = name if _PLAIN_NAME.fullmatch(name) else f"disk.{format.value}"
        links = Path(tempfile.mkdtemp(prefix="armvm-"))
        try:
            target = links / shown
            through_link = os.path.exists(visible_path(file))  # noqa: PTH110
            if through_link:
                target.symlink_to(visible_path(file))
            _convert(raw_path, target, format, subformat, seconds)
            if not through_link:
                with RawDisk(target) as written:
                    write_raw(file, written)
        finally:
            shutil.rmtree(links, ignore_errors=True)
    file.seek(0)


def _convert(source: Path, target: Path, format: DiskFormat, subformat: str, timeout_seconds: float) -> None:
    node = {"driver": "raw", "read-only": True, "file": {"driver": "file", "filename": str(source)}}
    options = ["-O", format.qemu_name, "-o", _options(format, subformat)]
    arguments = ["convert", "-q", *options, f"json:{json.dumps(node)}", str(target)]
    run("qemu-img", arguments, timeout_seconds=timeout_seconds)


def _options(format: DiskFormat, subformat: str) -> str:
    if format is DiskFormat.VDI:
        return f"static={'on' if subformat == 'static' else 'off'}"
    return f"subformat={subformat}" + (",force_size=on" if format is DiskFormat.VHD else "")


def _folder_of(file: BinaryIO) -> Path:
    """A folder on the file system that ``file`` is on: where there is room for it there is room for its source."""
    name = file.name
    if isinstance(name, str):
        return Path(name).parent
    try:
        return Path(os.readlink(visible_path(file))).parent  # noqa: PTH115 - of a nameless file "/folder/#123 (deleted)"
    except OSError:
        return Path(tempfile.gettempdir())
