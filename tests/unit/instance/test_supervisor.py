from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import BusyError, GuestError, InputError, MachineError, OutputError, UsageError
from armvm.instance import client, control, events, lock, protocol, sockets, store
from armvm.instance.control import State
from armvm.instance.dialogue import Dialogue
from armvm.instance.lock import HolderKind
from armvm.instance.store import Instance
from tools.instances import alive, made_small

Behave = Callable[[str], None]


def happened(instance: Instance) -> list[str]:
    return [event["event"] for event in events.read(instance.events)]


def gone(pid: int) -> None:
    """Wait until a process is over."""
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def untouched(instance: Instance) -> None:
    """Nothing runs, nobody holds it, and the next command finds nothing to clean up."""
    assert control.status(instance) == control.Status(State.STOPPED, None)
    assert not sockets.folder(instance).exists()
    with instance.locked(wait_seconds=0) as held:
        assert held.crashed is None


def test_a_life(web: Instance) -> None:
    assert control.status(web).state is State.STOPPED
    up = control.start(web)
    status = control.status(web)
    assert status.state is State.RUNNING
    assert status.holder is not None
    assert status.holder.pid == up["pid"]
    assert os.getsid(up["pid"]) == up["pid"]
    control_socket = sockets.control(web)
    assert stat.S_IMODE(control_socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(control_socket.parent.stat().st_mode) == 0o700
    told = control.details(web)
    assert (told["pid"], told["qemu_pid"], told["qemu_status"]) == (up["pid"], up["qemu_pid"], "running")
    assert (told["vcpus"], told["disks"], told["nics"], told["watchers"]) == (1, ["disk0"], [], 0)
    with pytest.raises(BusyError, match=f"web is running, in use by process {up['pid']}"), web.locked():
        pass
    control.stop(web, timeout_seconds=10)
    untouched(web)
    assert happened(web) == ["created", "started", "stopped"]
    assert [line[25:] for line in web.log.read_text().splitlines()] == ["READY", "POWER-BUTTON"]
    gone(up["pid"])
    gone(up["qemu_pid"])


def test_it_survives_who_started_it_and_holds_no_terminal(web: Instance) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "armvm", "vm", "start", "web"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    pid = control.details(web)["pid"]
    assert f"web runs (process {pid})" in done.stderr
    assert {Path(f"/proc/{pid}/fd/{number}").readlink() for number in (0, 1, 2)} == {Path("/dev/null")}
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")


def test_it_uses_no_processor_time_while_nothing_happens(web: Instance) -> None:
    pid = control.start(web)["pid"]

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return int(fields[11]) + int(fields[12])

    with Dialogue(web, scrollback=True) as dialogue:
        dialogue.expect("READY", timeout_seconds=10)
    before = ticks()
    time.sleep(0.4)
    assert ticks() == before


def test_qemu_killed(web: Instance) -> None:
    up = control.start(web)
    with Dialogue(web) as dialogue:
        os.kill(up["qemu_pid"], signal.SIGKILL)
        with pytest.raises(GuestError, match="ended and had not said"):
            dialogue.expect("nothing", timeout_seconds=10)
    control.settle(web)
    gone(up["pid"])
    untouched(web)
    last = events.read(web.events)[-1]
    assert (last["event"], last["what"], last["damaged"]) == ("crashed", "QEMU", None)
    assert "killed by signal 9" in last["message"]
    assert control.start(web)["pid"] != up["pid"]


def test_the_last_words_of_a_qemu_that_fails(web: Instance) -> None:
    control.start(web)
    with Dialogue(web) as dialogue:
        dialogue.send(b"die")
        with pytest.raises(GuestError):
            dialogue.expect("nothing", timeout_seconds=10)
    control.settle(web)
    last = events.read(web.events)[-1]
    assert last["event"] == "crashed"
    assert "out of ideas" in last["said"]
    assert "\x1b" not in last["said"]


def test_supervisor_killed(web: Instance) -> None:
    up = control.start(web)
    litter = web.folder / ".machine.toml.0123abcd.part"
    litter.write_text("half")
    os.kill(up["pid"], signal.SIGKILL)
    gone(up["qemu_pid"])
    gone(up["pid"])
    status = control.status(web)
    assert status.state is State.CRASHED
    assert status.holder is not None
    assert status.holder.pid == up["pid"]
    with pytest.raises(MachineError, match="web is not running"):
        control.stop(web)
    with web.locked() as held:
        assert held.crashed == status.holder
    assert not litter.exists()
    untouched(web)
    assert events.read(web.events)[-1]["process"] == f"process {up['pid']}"
    assert happened(web) == ["created", "started", "crashed"]
    control.start(web)


def test_the_control_socket_is_made_anew(web: Instance) -> None:
    up = control.start(web)
    sockets.control(web).unlink()
    assert control.details(web)["pid"] == up["pid"]
    sockets.control(web).unlink()
    sockets.folder(web).rmdir()
    control.stop(web, timeout_seconds=10)
    untouched(web)


def test_a_guest_that_ignores_the_power_button(web: Instance, behave: Behave) -> None:
    behave("deaf")
    up = control.start(web)
    began = time.monotonic()
    with pytest.raises(GuestError, match="has not powered off in time") as caught:
        control.stop(web, timeout_seconds=0.3)
    assert time.monotonic() - began < 5
    assert caught.value.console_tail == "READY"
    assert caught.value.hint == "armvm vm kill web ends it at once, as a power cut would"
    assert control.details(web)["pid"] == up["pid"]
    control.kill(web)
    untouched(web)
    assert events.read(web.events)[-1]["how"] == "killed"


def test_a_supervisor_that_does_not_answer(web: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_QUIT_SECONDS", 0.3)
    monkeypatch.setattr(control, "_ANSWER_SECONDS", 0.3)
    up = control.start(web)
    os.kill(up["pid"], signal.SIGSTOP)
    with pytest.raises(MachineError, match="does not answer") as caught:
        control.details(web)
    assert caught.value.hint == "armvm vm kill web ends it"
    with pytest.raises(MachineError, match="does not answer"):
        control.stop(web, timeout_seconds=0.1)
    control.kill(web)
    gone(up["qemu_pid"])
    untouched(web)


@pytest.mark.parametrize("running", [False, True])
def test_a_signal_asks_the_guest_first(web: Instance, behave: Behave, running: bool) -> None:
    behave("deaf" if running else "")
    up = control.start(web)
    os.kill(up["pid"], signal.SIGTERM)
    if running:
        assert control.details(web)["pid"] == up["pid"]
        os.kill(up["pid"], signal.SIGTERM)
    control.settle(web)
    untouched(web)
    assert ("POWER-BUTTON" in web.log.read_text()) != running


def test_a_foreground_run_is_named_and_can_be_killed(web: Instance) -> None:
    holding = (
        "import sys; from armvm.instance import store; from armvm.instance.lock import HolderKind\n"
        "with store.find('web').locked(kind=HolderKind.MACHINE): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        assert control.status(web).state is State.RUNNING
        with pytest.raises(MachineError, match=f"is run by process {run.pid}, an `armvm run`"):
            control.stop(web)
        control.kill(web)
        assert run.wait(10) == -signal.SIGTERM
    assert happened(web) == ["created", "crashed"]


def test_no_stranger_is_ever_killed(web: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_KILL_SECONDS", 0.2)
    with subprocess.Popen(["sleep", "600"]) as stranger:
        started = int(Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(") ")[2].split()[19])
        here = lock.this_process(HolderKind.MACHINE)
        try:
            for claim in (
                replace(here, pid=stranger.pid, started=started),  # it lives, and has nothing to do with the lock
                replace(here, pid=stranger.pid, started=started + 1),  # an earlier process of that number
                replace(here, pid=stranger.pid, started=started, host="elsewhere 1"),
            ):
                fields = {"kind": "machine", "pid": claim.pid, "started": claim.started, "host": claim.host}
                web.lock.write_text(json.dumps({**fields, "phase": None}))
                with web.lock.open() as held:
                    fcntl.flock(held, fcntl.LOCK_EX)
                    with pytest.raises((MachineError, BusyError)):
                        control.kill(web)
                    with pytest.raises(MachineError):
                        control.stop(web)
                assert stranger.poll() is None
                with web.locked():  # nobody holds it now: that was a crash, and no reason to signal anybody
                    pass
                assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_qemu_that_does_not_start(web: Instance, behave: Behave) -> None:
    behave("fail")
    with pytest.raises(MachineError, match="QEMU did not start") as caught:
        control.start(web)
    assert "No \\x1b[31m such thing" in caught.value.message
    untouched(web)
    assert happened(web) == ["created"]


def test_whoever_is_interrupted_at_the_start_leaves_nothing(web: Instance) -> None:
    starting = control.begin_start(web)
    starting.abandon()
    starting.abandon()
    with web.locked():
        pass
    untouched(web)
    # Killed while QEMU is on its way, it cannot tidy up; the supervisor finds nobody to report to.
    code = """
import os
from armvm.instance import control, store
web = store.find("web")
starting = control.begin_start(web)
while not (holder := web.holder[0]) or not holder.phase:
    pass
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    deadline = time.monotonic() + 20
    while "stopped" not in happened(web):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    control.settle(web)
    untouched(web)


def test_whoever_is_killed_while_its_start_waits_starts_nothing_later(web: Instance) -> None:
    with web.locked(), subprocess.Popen([sys.executable, "-m", "armvm", "vm", "start", "web"]) as starting:
        deadline = time.monotonic() + 30
        while not (children := children_of(starting.pid)):
            assert time.monotonic() < deadline, "it starts nothing"
            time.sleep(0.01)
        starting.kill()
    for child in children:  # an orphan that waits for the lock, or is about to
        gone(child)
    untouched(web)
    assert happened(web) == ["created"]


def test_two_starts_at_once(web: Instance) -> None:
    starts = [control.begin_start(web) for _ in range(3)]
    results = []
    for one in starts:
        try:
            results.append(one.wait())
        except BusyError:
            results.append({})
    assert sum(1 for result in results if result) == 1
    assert control.details(web)["pid"] in {result.get("pid") for result in results}


def test_what_is_in_the_way_is_said_before_anything_runs(web: Instance, image: Path) -> None:
    image.unlink()
    with pytest.raises(InputError, match="the image of instance web is gone"):
        control.start(web)
    untouched(web)
    assert happened(web) == ["created"]


def test_a_disk_of_the_host_that_is_full_pauses_the_guest_and_says_so(web: Instance, behave: Behave) -> None:
    behave("full")
    control.start(web)
    with Dialogue(web, scrollback=True) as dialogue:
        dialogue.expect("READY", timeout_seconds=10)
    assert control.status(web).state is State.PAUSED
    assert control.details(web)["reason"] == "no space left for disk0"
    assert events.read(web.events)[-1]["reason"] == "no space left for disk0"
    with pytest.raises(MachineError, match=r"web is paused \(no space left for disk0\)"):
        control.stop(web, timeout_seconds=10)
    control.resume(web)
    deadline = time.monotonic() + 10
    while control.status(web).state is not State.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert control.details(web)["reason"] is None


def test_what_is_asked_of_it_is_judged(web: Instance) -> None:
    control.start(web)
    for request, said in (
        ({"do": "nonsense"}, "knows no operation 'nonsense'"),
        ({}, "knows no operation None"),
        ({"do": "console", "index": 1}, "has one console, 0, and no console 1"),
        ({"do": "console", "index": "x"}, "no console 'x'"),
    ):
        with pytest.raises(UsageError, match=said):
            client.ask(web, request)
    for line in (b"\xff\n", b"[]\n", b"{" * 100_000 + b"\n", b"x" * (3 << 20)):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(os.fspath(sockets.control(web)))
            with pytest.raises(InputError):
                try:
                    raw.sendall(line)
                except OSError:
                    raise InputError("it has heard enough") from None
                answer = raw.recv(65536)
                protocol.result(protocol.decode(answer.partition(b"\n")[0]))
    silent = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    for one in silent:
        one.connect(os.fspath(sockets.control(web)))
    assert control.details(web)["watchers"] == 0
    for one in silent:
        one.close()


def test_every_watcher_sees_everything_and_may_type(web: Instance) -> None:
    control.start(web)
    with Dialogue(web, scrollback=True) as one, Dialogue(web, scrollback=True) as two, Dialogue(web) as late:
        one.expect("READY", timeout_seconds=10)
        two.expect("READY", timeout_seconds=10)
        two.send(b"hello from two\n")
        for dialogue in (one, two, late):
            dialogue.expect("HELLO FROM TWO", timeout_seconds=10)
        with pytest.raises(GuestError, match=r"has not said what matches 'READY' within 0\.1 s") as caught:
            late.expect("READY", timeout_seconds=0.1)
        assert caught.value.console_tail == "HELLO FROM TWO"
        assert control.details(web)["watchers"] == 3


def test_a_slow_watcher_misses_something_and_holds_nobody_up(web: Instance) -> None:
    control.start(web)
    with client.attach(web, scrollback=False) as slow, Dialogue(web) as quick:
        quick.send(b"flood\n")
        quick.expect("039999 x+\nFLOOD", timeout_seconds=30)  # 3 MB, which the slow one has not read
        received = b""
        quick.send(b"and then\n")
        quick.expect("AND THEN", timeout_seconds=10)
        deadline = time.monotonic() + 20
        while b"AND FINALLY" not in received and time.monotonic() < deadline:
            select.select([slow], [], [], 1.0)
            received += slow.receive() or b""
            if b"said too fast for this terminal" not in received and len(received) > 1 << 19:
                quick.send(b"and finally\n")
    assert b"000000 x" in received
    assert b"said too fast for this terminal" in received
    assert b"039999 x" not in received


def test_what_the_guest_said_last_reaches_who_watches(web: Instance) -> None:
    control.start(web)
    with Dialogue(web) as dialogue:
        control.stop(web, timeout_seconds=10)
        dialogue.expect("POWER-BUTTON", timeout_seconds=10)


def test_a_path_too_long_for_a_socket(
    image: Path, web: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path(f"/tmp/armvm-test-{os.getpid()}")
    short.mkdir(mode=0o700)
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        monkeypatch.setenv("ARMVM_HOME", str(tmp_path / ("x" * 100)))
        far = made_small("far", image)
        assert sockets.folder(far).parent == short / "armvm"
        control.start(far)
        control.stop(far, timeout_seconds=10)
        untouched(far)
        (short / "armvm").chmod(0o750)
        with pytest.raises(OutputError, match="is no private folder"):
            control.start(far)
        untouched(far)
    finally:
        subprocess.run(["rm", "-r", str(short)], check=True)


def test_what_runs_is_not_started_again_and_what_does_not_is_not_stopped(web: Instance) -> None:
    from armvm.cli.main import main

    assert main(["vm", "stop", "web"]) == 0
    assert main(["vm", "start", "web"]) == 0
    pid = control.details(web)["pid"]
    assert main(["vm", "start", "web", "--wait-for", "READY"]) == 0
    assert main(["vm", "start", "web", "--accel", "tcg"]) == 69
    assert main(["vm", "start", "web", "nobody"]) == 2
    assert main(["vm", "restart", "web"]) == 0
    assert control.details(web)["pid"] != pid
    assert main(["vm", "kill", "web"]) == 0
    assert main(["vm", "kill", "web"]) == 0
    assert control.status(store.find("web")).state is State.STOPPED
