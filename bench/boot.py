"""How long from the command to the guest's first line? ``armvm run`` beside the best hand-tuned QEMU command.

    .venv/bin/python bench/boot.py KERNEL [--runs N]

KERNEL is an AArch64 Linux kernel with an EFI stub; its stub's first words are what is waited for. Both are run in turn;
compare the ratio, not the times.
"""

from __future__ import annotations

import argparse
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

MARKER = b"EFI stub: Booting Linux"
DEADLINE_SECONDS = 120.0
FIRMWARE = "/usr/share/AAVMF/AAVMF_CODE.fd"
VARIABLES = "/usr/share/AAVMF/AAVMF_VARS.fd"


def seconds_to_marker(argv: Sequence[str]) -> float:
    """From the start of ``argv`` to the marker on its standard output; then it is killed."""
    started = time.perf_counter()
    said = b""
    with (
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        try:
            while MARKER not in said:
                remaining = started + DEADLINE_SECONDS - time.perf_counter()
                chunk = os.read(process.stdout.fileno(), 65536) if selector.select(max(remaining, 0)) else b""
                if not chunk:
                    raise SystemExit(f"{argv[0]} never said {MARKER.decode()!r}: {said[-500:]!r}")
                said += chunk
            return time.perf_counter() - started
        finally:
            process.kill()


def hand_tuned(image: Path, variables: Path) -> list[str]:
    """The fastest command that we know: no boot menu countdown, no network, firmware in flash."""
    return [
        *("qemu-system-aarch64", "-M", "virt,gic-version=3,acpi=off", "-cpu", "cortex-a72", "-smp", "2", "-m", "2048"),
        *("-accel", "tcg,thread=multi", "-nodefaults", "-display", "none", "-serial", "stdio"),
        *("-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"),
        *("-drive", f"if=pflash,format=raw,snapshot=on,file={variables}"),
        *("-drive", f"if=none,id=disk,format=raw,snapshot=on,file={image}"),
        *("-device", "virtio-blk-pci,drive=disk,bootindex=0", "-boot", "menu=on,splash-time=0"),
    ]


def main() -> int:
    """Print both medians and the ratio pair by pair."""
    parser = argparse.ArgumentParser(description="time to the guest's first line")
    parser.add_argument("kernel", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    armvm = (sys.executable, "-m", "armvm")
    with tempfile.TemporaryDirectory(prefix="armvm-bench-") as name:
        image = Path(name) / "disk.img"
        subprocess.run([*armvm, "build", "-q", "-o", image, "--kernel", options.kernel], check=True)
        ours = [*armvm, "run", str(image), "--accel", "tcg"]
        theirs = hand_tuned(image, Path(VARIABLES))
        pairs = [(seconds_to_marker(ours), seconds_to_marker(theirs)) for _ in range(options.runs + 1)][1:]
    ratios = [one / other for one, other in pairs]
    print(f"armvm run          {statistics.median(one for one, _ in pairs):.2f} s")
    print(f"hand-tuned QEMU    {statistics.median(other for _, other in pairs):.2f} s")
    print(f"ratio              {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
