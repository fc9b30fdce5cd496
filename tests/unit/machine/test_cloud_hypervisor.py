"""Cloud Hypervisor: its command line, and the conversation with a stand-in (there is no ARM host with KVM here)."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import MachineError, UsageError
from armvm.execution import ExecutionState
from armvm.machine.backend import ConsoleOutput, Ended, Ending, Event
from armvm.machine.cloud_hypervisor.command import plan, problems
from armvm.machine.cloud_hypervisor.session import CloudHypervisorSession
from armvm.machine.definition import DiskDevice, HardwareDescription, Machine, TapNetwork, UserNetwork, Writes
from armvm.machine.lifecycle import Child
from tools.machines import machine_of

STAND_IN = """
import http.server, os, socketserver, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self): return "unix"
    def log_message(self, *_): pass
    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        print(self.path, body, flush=True)
        self.send_response(400 if "refused" in body else 204); self.end_headers()
        if "refused" in body: self.wfile.write(b"no such disk")
        if "power-button" in self.path: threading.Timer(0.05, os._exit, (0,)).start()
socketserver.UnixStreamServer(sys.argv[1], Handler).serve_forever()
"""


def able(**changes: object) -> Machine:
    disk = DiskDevice(Path("/images/disk.raw"), "raw", writes=Writes.KEPT)
    base = replace(machine_of(), disks=(disk,), nics=(), description=HardwareDescription.ACPI)
    return replace(base, **changes)  # type: ignore[arg-type] # the fields of a Machine


def test_the_command_line() -> None:
    machine = able(nics=(TapNetwork("tap0", "52:54:00:00:00:01"),), rng=True)
    assert problems(machine) == ()
    words = " ".join(plan(machine, firmware=Path("/fw/CLOUDHV_EFI.fd")))
    assert words == (
        "cloud-hypervisor --kernel /fw/CLOUDHV_EFI.fd --cpus boot=2 --memory size=1024M --disk path=/images/disk.raw"
        " --net tap=tap0,mac=52:54:00:00:00:01 --serial tty --console off --rng src=/dev/urandom"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": ExecutionState.AARCH32}, "AArch64 guests with KVM"),
        ({"description": HardwareDescription.DT}, "ACPI tables"),
        ({"nics": (UserNetwork(),)}, "tap device"),
        ({"disks": (DiskDevice(Path("/a.raw"), "raw"),)}, "overlay or a copy"),
        ({"tpm": True}, "a TPM"),
    ],
)
def test_what_it_cannot_be_is_said(changes: dict[str, object], reason: str) -> None:
    (problem,) = problems(able(**changes))
    assert reason in problem


def test_a_path_that_its_options_cannot_hold_is_refused() -> None:
    disk = DiskDevice(Path("/images/a,b.raw"), "raw", writes=Writes.KEPT)
    with pytest.raises(UsageError, match="comma"):
        plan(able(disks=(disk,)), firmware=Path("/fw/CLOUDHV_EFI.fd"))


def test_the_conversation(tmp_path: Path) -> None:
    api = tmp_path / "api"
    child = Child([sys.executable, "-c", STAND_IN, str(api)], inherit=())
    with CloudHypervisorSession(child, api, ExitStack()) as session:
        deadline = time.monotonic() + 20
        while not api.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        disk = DiskDevice(tmp_path / "hot.img", "raw", writes=Writes.REFUSED, serial="s", name="hot")
        session.attach(disk)
        session.request_detach(disk)
        session.reset()
        with pytest.raises(MachineError, match="no such disk"):
            session.attach(replace(disk, name="refused"))
        session.request_power_off()
        events: list[Event] = []
        while not any(isinstance(event, Ended) for event in events):
            assert time.monotonic() < deadline
            events += session.poll(1)
    said = b"".join(event.data for event in events if isinstance(event, ConsoleOutput)).decode()
    assert events[-1] == Ended(Ending.POWERED_OFF)
    assert "/api/v1/vm.add-disk" in said
    assert '"readonly": true' in said
    assert "/api/v1/vm.remove-device" in said
    assert "/api/v1/vm.reboot" in said
