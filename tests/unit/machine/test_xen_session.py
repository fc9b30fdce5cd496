from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from armvm.errors import MachineError, UsageError
from armvm.machine.backend import ConsoleOutput, DeviceGone, Ended, Ending, Event, GuestReset
from armvm.machine.definition import DiskDevice, UserNetwork, Writes
from armvm.machine.xen.backend import Xen
from armvm.machine.xen.config import XenHost, adapt, xen_firmware
from armvm.machine.xen.session import XenSession, parse_list, telling
from armvm.process import ProgramError
from tools.fake_xen import bring_down, install_fake_xen
from tools.machines import machine_of

MACHINE = adapt(machine_of(), xen_firmware(Path("/fw/XEN_EFI.fd"))).machine
_SECONDS = 20.0


@pytest.fixture
def xen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake Xen's folder."""
    monkeypatch.setenv("PATH", install_fake_xen(tmp_path))
    return tmp_path


def until(session: XenSession, wanted: Callable[[Event], bool]) -> Event:
    """The first event that is wanted, within a deadline."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        for event in session.poll(0.5):
            if wanted(event):
                return event
    raise AssertionError("it never came")


def calls(xen: Path) -> list[str]:
    return (xen / "calls").read_text().splitlines()


def test_a_domain_runs_speaks_is_typed_to_and_powers_off(xen: Path) -> None:
    (xen / "says").write_text("hello\n")
    with Xen().start(MACHINE) as session:
        said = until(session, lambda event: isinstance(event, ConsoleOutput))
        assert said == ConsoleOutput(b"hello\n")
        session.send(b"typed\n")
        deadline = time.monotonic() + _SECONDS
        while not (xen / "typed").read_bytes() and time.monotonic() < deadline:
            session.poll(0.05)
        assert (xen / "typed").read_bytes() == b"typed\n"
        assert session.pending_bytes == 0
        bring_down(xen, "0")
        assert until(session, lambda event: isinstance(event, Ended)) == Ended(Ending.POWERED_OFF)
        assert session.poll(0.0) == []
    assert not (xen / "running").exists()
    order = [call.split()[0] for call in calls(xen)]
    assert order.index("create") < order.index("unpause") < order.index("destroy")
    assert 'type = "pvh"' in (xen / "config").read_text()


def test_a_reset_starts_it_anew(xen: Path) -> None:
    with Xen().start(MACHINE) as session:
        for count in (1, 2):
            bring_down(xen, "1")
            assert until(session, lambda event: isinstance(event, GuestReset)) == GuestReset(count)
            assert (xen / "running").exists()
    assert sum(call.startswith("create") for call in calls(xen)) == 3


@pytest.mark.parametrize(("reason", "said"), [("3", "crashed"), ("4", "watchdog"), ("99", "is gone")])
def test_a_crash_is_said(xen: Path, reason: str, said: str) -> None:
    with Xen().start(MACHINE) as session:
        bring_down(xen, reason)
        with pytest.raises(MachineError, match=said):
            until(session, lambda _event: False)
        assert not (xen / "running").exists()


def test_a_domain_that_somebody_took_away(xen: Path) -> None:
    with Xen().start(MACHINE) as session:
        (xen / "running").unlink()
        bring_down(xen, "0")
        with pytest.raises(MachineError, match="somebody else"):
            until(session, lambda _event: False)


def test_xl_says_why_it_refuses(xen: Path) -> None:
    (xen / "refuse").touch()
    with pytest.raises(ProgramError, match="xl create failed: libxl: error: no memory"):
        Xen().start(MACHINE)


def test_a_machine_that_cannot_be_is_refused_before_anything_starts(xen: Path) -> None:
    with pytest.raises(UsageError, match="Xen's own console"):
        Xen().start(machine_of())
    assert calls(xen) == []


def test_leaving_ends_it_whatever_happened(xen: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Xen().start(MACHINE):
        raise KeyboardInterrupt
    assert not (xen / "running").exists()


def test_a_killed_process_takes_its_domain_along(xen: Path) -> None:
    code = "from tests_xen import start; start()"
    (xen / "tests_xen.py").write_text(
        "import time\nfrom unit.machine.test_xen_session import MACHINE\nfrom armvm.machine.xen.backend import Xen\n"
        "def start():\n    s = Xen().start(MACHINE)\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    top = Path(__file__).parents[2]
    paths = os.pathsep.join([str(xen), str(top), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert (xen / "running").exists()
        process.kill()
    deadline = time.monotonic() + _SECONDS
    while (xen / "running").exists():
        assert time.monotonic() < deadline, "the domain outlived its process"
        time.sleep(0.05)


def test_hotplug_is_told_to_xl(xen: Path) -> None:
    host = XenHost(block_script="block-x", vif_script="vif-x")
    disk = DiskDevice(Path("/d.img"), "raw", writes=Writes.REFUSED, name="hot-disk")
    nic = UserNetwork(mac="52:54:00:AC:E0:01", name="hot-nic")
    with Xen(host=host).start(MACHINE) as session:
        for device in (disk, nic):
            session.attach(device)
            session.request_detach(device)
            assert DeviceGone(str(device.name)) in session.poll(0.0)
        told = [call for call in calls(xen) if "tach" in call]
        name = session.name
        assert told == [
            f"block-attach {name} format=raw,vdev=xvdb,access=ro,backendtype=phy,script=block-x,target=/d.img",
            f"block-detach {name} xvdb",
            f"network-attach {name} mac=52:54:00:ac:e0:01 script=vif-x",
            f"network-detach {name} 52:54:00:ac:e0:01",
        ]
        with pytest.raises(MachineError, match="no device hot-disk"):
            session.request_detach(disk)
        with pytest.raises(MachineError, match="without a name"):
            session.attach(UserNetwork(name="x"))
        session.attach(disk)
        assert "vdev=xvdc" in calls(xen)[-1]
        (xen / "refuse-block-detach").touch()
        with pytest.raises(MachineError, match="does not let go"):
            session.request_detach(disk)


def test_the_list_of_domains() -> None:
    head = "Name ID Mem VCPUs State Time(s) UUID Reason-Code Security Label\n"
    line = "web 1 512 1 {} 0.1 u-u {} -\n"
    assert parse_list(head + line.format("-b----", "-"), "web") is None
    assert parse_list(head + line.format("r-----", "-"), "web") is None
    down = parse_list(head + line.format("---s--", "1"), "web")
    assert down is not None
    assert down.reason == "1"
    gone = parse_list(head, "web")
    assert gone is not None
    assert gone.reason == ""


def test_the_line_of_xl_that_tells() -> None:
    assert telling("a\nlibxl: error: first\nlibxl: error: second\n") == "libxl: error: first"
    assert telling("only this") == "only this"
    assert telling("") == "it said nothing"
