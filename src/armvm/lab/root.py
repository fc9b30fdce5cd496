"""A host's initial RAM disk: what was taken out of the packages, and behind it armvm, /init and the recipe's files."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from armvm import version
from armvm.atomic import replacing
from armvm.errors import MissingError
from armvm.lab.initramfs import CpioWriter
from armvm.lab.packages import Extracted
from armvm.lab.recipe import PYTHON_FOLDER, HostFile, HostFiles, HostRecipe

_SUFFIXES = frozenset({".py", ".toml", ".efi", ".sh"})
_PROGRAMS = "programs"
_CHUNK = 1 << 20


def own_archive(recipe: HostRecipe) -> bytes:
    """The part of the initial RAM disk that is ours. Raises MissingError when this copy of armvm was not built."""
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.add_folder("dev")
    writer.add_device("dev/console", 5, 1)
    files = {
        "init": HostFile(Path(__file__).with_name("init.sh").read_bytes(), program=True),
        "lab/setup": HostFile(recipe.setup.encode()),
        "usr/bin/armvm": HostFile(b'#!/bin/sh\nexec python3 -m armvm "$@"\n', program=True),
        **recipe.files,
        **{f"{PYTHON_FOLDER}/armvm/{name}": file for name, file in _armvm()},
    }
    for path in sorted(files):
        writer.add_file(path, files[path].content, program=files[path].program)
    writer.finish()
    return out.getvalue()


def _armvm() -> Iterator[tuple[str, HostFile]]:
    """This armvm, by path below its folder: the code, its data, the probe's programs."""
    top = Path(version.__file__).parent
    programs = 0
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            inside = path.relative_to(top)
            is_program = inside.parts[-2:-1] == (_PROGRAMS,) and not name.startswith(".")
            programs += is_program or path.suffix == ".efi"
            if is_program or path.suffix in _SUFFIXES:
                yield str(inside), HostFile(path.read_bytes())
    if not programs:
        raise MissingError(
            "armvm's own EFI and Linux programs were not built",
            component="armvm",
            hint="install armvm anew: pip install --force-reinstall armvm (in a source tree: pip install -e .)",
        )


def build_host(folder: Path, extracted: Extracted, own: bytes, beside: Iterable[str]) -> HostFiles:
    """Put the initial RAM disk into ``folder``; the rest stands where it was extracted. Raises OutputError."""
    initrd = folder / "initrd"
    with replacing(initrd, mode=0o600) as file:
        with extracted.root.open("rb") as source:
            shutil.copyfileobj(source, file, _CHUNK)
        file.write(own)
    return HostFiles(extracted.kernel, initrd, {name: extracted.folder / name for name in beside})
