from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest

from armvm.errors import InputError
from armvm.lab.initramfs import CpioWriter


def test_cpio_reads_what_was_written(tmp_path: Path) -> None:
    """Judged by GNU cpio, as a second archive behind a first: that is how a host has them."""
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.add_file("usr/bin/tool", b"#!/bin/sh\n", program=True)
    writer.add_file("usr/share/data", b"12345")
    writer.add_link("bin", "usr/bin")
    writer.add_folder("usr/share")
    writer.finish()
    assert len(out.getvalue()) % 4 == 0
    subprocess.run(["cpio", "-idm", "--quiet"], input=out.getvalue(), cwd=tmp_path, check=True, timeout=30)
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "usr/share/data").read_bytes() == b"12345"
    assert (tmp_path / "usr/share/data").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("path", ["/etc/passwd", "a//b", "../a", "a/./b", "", "a\0b", "a" * 1025])
def test_paths_stay_below_the_root(path: str) -> None:
    with pytest.raises(InputError):
        CpioWriter(io.BytesIO()).add_file(path, b"")


def test_nothing_is_there_twice_or_below_a_file() -> None:
    writer = CpioWriter(io.BytesIO())
    writer.add_file("a", b"")
    with pytest.raises(InputError, match="twice"):
        writer.add_file("a", b"")
    with pytest.raises(InputError, match="a file stands where a folder"):
        writer.add_file("a/b", b"")
