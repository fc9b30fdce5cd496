"""Whole images with bytes turned: every one comes to findings or a clear error, in bounded time and memory."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armvm.errors import InputError
from armvm.guest.check import check_image
from armvm.image.inspect import inspect_image
from armvm.report.json import render_json
from armvm.report.text import render_text
from tools.disk_images import disk_image
from tools.fat_images import PatchedDisk, save_sparse
from tools.gpt_images import MIB

# Where structures stand in the good image: tables, boot sector, FATs, the first folders, the boot programs' headers.
AREAS = (
    (0, 34 * 512),
    (MIB, MIB + 4096),
    (MIB + 32 * 512, MIB + 36 * 512),
    (MIB + 1074 * 512, MIB + 1100 * 512),
    (35 * MIB - 33 * 512, 35 * MIB),
)


@pytest.mark.parametrize("seed", range(150))
def test_turned_bytes(seed: int) -> None:
    rng = random.Random(seed)
    patches = []
    for _ in range(rng.choice((1, 2, 8, 64))):
        start, end = rng.choice(AREAS)
        patches.append((rng.randrange(start, end), rng.choice((b"\0", b"\xff", rng.randbytes(1), rng.randbytes(4)))))
    disk = PatchedDisk(disk_image(), *((offset, value[: 35 * MIB - offset]) for offset, value in patches))
    started = time.process_time()
    try:
        report = check_image(disk)
        inspect_image(disk)
    except InputError:
        return
    finally:
        assert time.process_time() - started < 5, "a second on this kind of machine, with room for a slow one"
    assert render_text(report, verbose=True)
    assert render_json([report], profile="vmspec-1.0", created="")


def test_memory_stays_small(tmp_path: Path) -> None:
    """A disk that claims to be enormous costs no more than a small one."""
    path = save_sparse(disk_image(), tmp_path / "huge.img")
    with path.open("r+b") as file:
        file.truncate(8 << 40)
    code = (
        "import sys; from armvm.cli.main import main; code = main(['check', sys.argv[1]]);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert int(result.stderr) < 100 * 1024, "KiB"
