"""The EFI probe in plain QEMU: its disk, the machine, and a strict decoder of what it says (docs/probe-wire.md)."""

from __future__ import annotations

import base64
import json
import os
import re
import selectors
import socket
import subprocess
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from armvm.efi import EfiProgram, read_program
from armvm.execution import ExecutionState
from tools.boot_images import esp_image
from tools.plain_qemu import PLATFORMS, Platform

DEADLINE_SECONDS = 120
TESTS = (
    *("system", "cpu", "tables", "fdt", "acpi", "smbios", "memory", "console", "block", "network", "pci"),
    *("variables", "rtc", "counter", "gic", "timer"),
)
MAC = "525400a1b2c3"
MOST_LINE_BYTES = 79

Record = dict[str, Any]

_LINE = re.compile(rb"@A1 (E ([0-9a-f]{4}) ([+.]) )([0-9a-f]{8}) ([^\r\n]*)")


@dataclass(frozen=True)
class Run:
    """The records of one run, from ``begin`` on."""

    records: list[Record]

    def all(self, kind: str) -> list[Record]:
        return [record for record in self.records if record["t"] == kind]

    def one(self, kind: str) -> Record:
        (record,) = self.all(kind)
        return record

    @property
    def results(self) -> dict[str, str]:
        """Test to its result."""
        return {record["id"]: record["result"] for record in self.all("test-end")}

    @property
    def fdt(self) -> bytes:
        parts = self.all("fdt-data")
        assert [(part["part"], part["parts"]) for part in parts] == [(i, len(parts)) for i in range(len(parts))]
        return b"".join(base64.b64decode(part["data_b64"], validate=True) for part in parts)


def decode(said: bytes) -> list[Run]:
    """The runs in a console log or file. Anything that is not as the document says fails the test."""
    runs: list[Run] = []
    record = b""
    expected = 0
    for line in said.splitlines():
        found = _LINE.search(line)
        if found is None:
            continue
        head, sequence, flag, crc, payload = found.groups()
        assert zlib.crc32(head + payload) == int(crc, 16), line
        assert len(found[0]) <= MOST_LINE_BYTES, line
        if int(sequence, 16) == 0:
            expected, record = 0, b""  # a new run; the last one may have been cut off
        assert int(sequence, 16) == expected, line
        expected = (expected + 1) % 65536
        record += payload
        if flag == b".":
            value = json.loads(record.decode("ascii"))
            record = b""
            if value["t"] == "begin":
                runs.append(Run([]))
            runs[-1].records.append(value)
    return runs


def probe_image(path: Path, config: str = "") -> Path:
    """A disk that boots the probe in both states."""
    files: dict[str, bytes | Path] = {
        f"EFI/BOOT/{state.boot_file}": read_program(EfiProgram.PROBE, state) for state in ExecutionState
    }
    if config:
        files["ARMVM/CONFIG.TXT"] = config.encode()
    return esp_image(path, files)


def with_machine(name: str, machine: str) -> Platform:
    """A platform of ``plain_qemu`` with another value of QEMU's -M."""
    platform = PLATFORMS[name]
    return replace(platform, machine=(platform.machine[0], "-M", machine, *platform.machine[3:]))


@dataclass
class ProbeMachine:
    """A virtual machine around the probe's disk."""

    platform: Platform
    image: Path
    options: Iterable[str] = ()
    disk: str = "virtio-blk-pci"
    cpus: int = 1
    memory_mib: int = 1024
    read_only: bool = False
    variables: Path | None = None
    """The file of its variable store; without one they last until QEMU ends."""
    _qmp: Path = field(init=False)

    def __post_init__(self) -> None:
        self._qmp = self.image.with_suffix(".qmp")

    @property
    def argv(self) -> list[str]:
        argv = [*self.platform.machine, *self.platform.firmware, "-m", str(self.memory_mib), "-smp", str(self.cpus)]
        if self.variables is not None:
            argv += ["-drive", f"if=pflash,format=raw,unit=1,file={self.variables}"]
        argv += ["-nographic", "-boot", "menu=on,splash-time=0", "-device", f"{self.disk},drive=disk,bootindex=0"]
        flag = "on" if self.read_only else "off"
        argv += ["-drive", f"if=none,id=disk,format=raw,readonly={flag},file={self.image}"]
        return [*argv, "-qmp", f"unix:{self._qmp},server=on,wait=off", *self.options]

    def run(self, *, reset_at: str | None = None, stop_at: str | None = None) -> bytes:
        """What it says until it powers off (or says ``stop_at``); at ``reset_at`` it is reset, once."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        said = b""
        argv = self.argv if "-net" in self.argv or "-netdev" in self.argv else [*self.argv, "-net", "none"]
        with (
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu,
            selectors.DefaultSelector() as selector,
        ):
            assert qemu.stdout is not None
            selector.register(qemu.stdout, selectors.EVENT_READ)
            try:
                while stop_at is None or stop_at.encode() not in said:
                    ready = selector.select(max(deadline - time.monotonic(), 0))
                    if not ready:
                        pytest.fail(f"not done in {DEADLINE_SECONDS} s: {said.decode(errors='replace')[-2000:]}")
                    chunk = os.read(qemu.stdout.fileno(), 65536)
                    if not chunk:
                        assert qemu.wait(10) == 0, said.decode(errors="replace")[-2000:]
                        break
                    said += chunk
                    if reset_at is not None and reset_at.encode() in said:
                        self._reset()
                        reset_at = None
            finally:
                qemu.kill()
        return said

    def dumped_fdt(self) -> bytes:
        """The device tree that QEMU makes for this very machine."""
        path = self.image.with_suffix(".dtb")
        argv = self.argv
        argv[argv.index("-M") + 1] += f",dumpdtb={path}"
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
        return path.read_bytes()

    def _reset(self) -> None:
        """What an impatient host does: the monitor's system_reset."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._qmp))
            with connection.makefile("rwb") as monitor:
                for command in ("qmp_capabilities", "system_reset"):
                    monitor.readline()  # the greeting, then the answer
                    monitor.write(json.dumps({"execute": command}).encode() + b"\n")
                    monitor.flush()
                monitor.readline()
