"""How fast is ``armvm convert`` beside ``qemu-img convert``? Wall time and CPU, taken in turn in the same run.

    .venv/bin/python bench/convert.py [--runs N] [--size-mib N]

The disk is half data (a third of that compresses well), half holes. ``--no-verify`` is the like of what qemu-img does;
with verification every byte is read twice more. armvm flushes its file to the disk before it gets its name;
qemu-img does that only with ``-t writeback``. Compare the ratios: absolute times belong to the machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.cost import ARMVM, Case, measure

MIB = 1 << 20


def make_disk(path: Path, size_mib: int) -> Path:
    """A sparse raw image: runs of 1 to 16 MiB of data, and holes of the same kind."""
    chance = random.Random(1)  # noqa: S311 - the same disk every time
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
        position = 0
        while position < size_mib:
            length = min(chance.randrange(1, 17), size_mib - position)
            file.seek(position * MIB)
            for _ in range(length):
                file.write(b"armvm convert " * (MIB // 14) if chance.random() < 1 / 3 else chance.randbytes(MIB))
            position += length + chance.randrange(1, 17)
    return path


def pairs(folder: Path, raw: Path) -> list[tuple[str, Case, list[Case]]]:
    """What is compared: a title, the peer, and ours."""
    qcow2 = folder / "disk.qcow2"
    armvm = (*ARMVM, "convert", "-q", "--force")
    peer = ("qemu-img", "convert", "-q")

    def ours(name: str, source: Path, target: Path, *options: str) -> Case:
        return Case(name, (*armvm, str(source), str(target), *options))

    out, back = folder / "out.qcow2", folder / "out.img"
    plain = ("-f", "raw", "-O", "qcow2", str(raw), str(out))
    plain_back = ("-f", "qcow2", "-O", "raw", str(qcow2), str(back))
    return [
        (
            "raw to qcow2",
            Case("qemu-img", (*peer, *plain)),
            [
                Case("qemu-img, flushed", (*peer, "-t", "writeback", *plain)),
                ours("armvm --no-verify", raw, out, "--no-verify"),
                ours("armvm", raw, out),
            ],
        ),
        (
            "qcow2 to raw",
            Case("qemu-img", (*peer, *plain_back)),
            [
                Case("qemu-img, flushed", (*peer, "-t", "writeback", *plain_back)),
                ours("armvm --no-verify", qcow2, back, "--no-verify"),
                ours("armvm", qcow2, back),
            ],
        ),
        (
            "raw to qcow2, zlib",
            Case("qemu-img -c", (*peer, "-c", *plain)),
            [ours("armvm --compress --no-verify", raw, out, "--compress", "--no-verify")],
        ),
        (
            "raw to qcow2, zstd",
            Case("qemu-img -c", (*peer, "-c", "-o", "compression_type=zstd", *plain)),
            [ours("armvm --compress zstd --no-verify", raw, out, "--compress", "zstd", "--no-verify")],
        ),
    ]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="armvm convert beside qemu-img convert")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--folder", type=Path, help="where the images are made (default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="armvm-bench-", dir=options.folder) as scratch:
        folder = Path(scratch)
        raw = make_disk(folder / "disk.img", options.size_mib)
        first = Case("", (*ARMVM, "convert", "-q", str(raw), str(folder / "disk.qcow2")))
        measure(first)
        print(f"{'':<36}{'wall ms':>9}{'ratio':>7}{'CPU ms':>9}{'ratio':>7}")
        for title, peer, ours in pairs(folder, raw):
            samples: dict[str, list[tuple[float, float]]] = {}
            for _ in range(options.runs):
                for case in (peer, *ours):
                    samples.setdefault(case.name, []).append(measure(case))
            print(title)
            medians = {
                case: tuple(statistics.median(sample[index] for sample in taken) for index in (0, 1))
                for case, taken in samples.items()
            }
            cpu_peer, wall_peer = medians[peer.name]
            for name, (cpu, wall) in medians.items():
                print(
                    f"  {name:<34}{wall * 1000:>9.0f}{wall / wall_peer:>7.2f}{cpu * 1000:>9.0f}{cpu / cpu_peer:>7.2f}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
