"""What does the command line cost? CPU of the whole process over ``python -c pass``, beside peers in the same run.

    .venv/bin/python bench/cost.py [--runs N]

Every figure is the median of N runs, taken in turn, so that a machine whose speed drifts drifts for all. Compare the
ratios: absolute times belong to the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tools.pe_images import linux_kernel

ARMVM = (sys.executable, "-m", "armvm")
BARE = "python -c pass"


@dataclass(frozen=True)
class Case:
    """A command; ``limit_ms`` is the most CPU over bare Python that it may cost.

    ``path`` goes before PATH: what stands there for QEMU writes into its file ``spent`` what its parent has used till
    then, and that is what counts: what is done beside a QEMU that runs, and after it, is nobody's waiting time.
    """

    name: str
    argv: tuple[str, ...]
    limit_ms: float | None = None
    path: Path | None = None


def measure(case: Case) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one run, its children included but for one that is cut off (``path``)."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed command has its bytecode: compiling is not its cost
    if case.path is not None:
        environment["PATH"] = f"{case.path}:{environment['PATH']}"
    started = time.perf_counter()
    process = subprocess.Popen(
        case.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, _, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = 0  # reaped above
    if case.path is not None:
        return int((case.path / "spent").read_text()) / 1e9, wall
    return usage.ru_utime + usage.ru_stime, wall


def compare(cases: Sequence[Case], runs: int) -> dict[str, tuple[float, float]]:
    """The medians of all cases, run in turn."""
    samples: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    for round_number in range(runs + 1):
        for case in cases:
            sample = measure(case)
            if round_number:  # the first round warms the caches
                samples[case.name].append(sample)
    return {
        name: (statistics.median(cpu for cpu, _ in found), statistics.median(wall for _, wall in found))
        for name, found in samples.items()
    }


def prepare(folder: Path) -> list[Case]:
    """Make the images, and say what is to be run on them."""
    kernel = folder / "kernel"
    kernel.write_bytes(linux_kernel())
    image, large, small = folder / "disk.img", folder / "large.qcow2", folder / "small.qcow2"
    for path, size in ((image, "66M"), (small, "100M"), (large, "20G")):
        subprocess.run(
            [*ARMVM, "build", "-q", "-o", path, "--kernel", kernel, "--size", size, "--esp-size", "64M"], check=True
        )
    nothing = folder / "bin"
    nothing.mkdir()
    stand_in = nothing / "qemu-system-aarch64"  # proc(5), /proc/PID/schedstat: nanoseconds on a processor
    stand_in.write_text(f"#!/bin/sh\nread spent rest </proc/$PPID/schedstat\necho $spent >{nothing}/spent\n")
    stand_in.chmod(0o755)
    sgdisk = shutil.which("sgdisk") or "/usr/sbin/sgdisk"
    peer = f"{sgdisk} -v {image} && mdir -/ -i {image}@@1M ::"
    return [
        Case(BARE, (sys.executable, "-c", "pass")),
        Case("armvm --version", (*ARMVM, "--version"), 60),
        Case("armvm --help", (*ARMVM, "--help"), 120),
        Case("armvm check, 64 MiB ESP", (*ARMVM, "check", str(image)), 200),
        Case("  peer: sgdisk -v && mdir -/", ("sh", "-c", peer)),
        Case("armvm run, up to QEMU's start", (*ARMVM, "run", str(image)), 150, nothing),
        Case("armvm check, 100 MiB qcow2", (*ARMVM, "check", str(small))),
        Case("armvm check, 20 GiB qcow2", (*ARMVM, "check", str(large))),
        Case("  peer: qemu-img check, 20 GiB", ("qemu-img", "check", str(large))),
    ]


def main() -> int:
    """Print the table; exit 1 when a limit is passed."""
    parser = argparse.ArgumentParser(description="CPU cost of armvm beside its peers")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="armvm-bench-") as name:
        cases = prepare(Path(name))
        results = compare(cases, options.runs)
    bare = results[BARE][0]
    print(f"{'':<34}{'CPU ms':>8}{'over bare':>11}{'limit':>8}{'wall ms':>9}")
    passed = True
    for case in cases:
        cpu, wall = results[case.name]
        over = (cpu - bare) * 1000
        passed = passed and (case.limit_ms is None or over <= case.limit_ms)
        limit = f"{case.limit_ms:.0f}" if case.limit_ms is not None else ""
        print(f"{case.name:<34}{cpu * 1000:>8.0f}{over:>11.0f}{limit:>8}{wall * 1000:>9.0f}")
    large, small = (results[f"armvm check, {size} qcow2"][0] for size in ("20 GiB", "100 MiB"))
    print(f"\n20 GiB over 100 MiB: {large / small:.2f}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
