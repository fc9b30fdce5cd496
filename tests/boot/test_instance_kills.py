"""Three hundred SIGKILLs of the command line, of QEMU, and of the process that runs it, at random moments.

Whatever was killed, afterwards every instance is listed, starts, and holds its last acknowledged state: variables, the
disk's content, its devices and its snapshots. What was under way when it was killed is there whole, or not at all.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from armvm.instance import control, snapshots
from tools.boot_images import guest_image
from tools.kept_guest import Kept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]

KILLS = int(os.environ.get("ARMVM_KILLS", "300"))
SEED = int(os.environ.get("ARMVM_KILLS_SEED", "5"))
CHECKED_EVERY = 10
GUID = "6d5cd3a1-29b5-4ae0-9b0e-518c5d2f3370"
RUNNING = {"running", "paused", "starting"}


@dataclass
class Known:
    """What an instance was last told to be; ``maybe`` is what it may be instead, for its command was killed."""

    exists: set[bool] = field(default_factory=lambda: {False})
    value: set[str | None] = field(default_factory=lambda: {None})
    disks: set[tuple[str, ...]] = field(default_factory=lambda: {("disk0",)})
    snapshots: dict[str, set[tuple[str | None, tuple[str, ...]]]] = field(default_factory=dict)
    maybe_snapshots: dict[str, set[tuple[str | None, tuple[str, ...]]]] = field(default_factory=dict)
    maybe_gone: set[str] = field(default_factory=set)


class Chaos:
    """Commands that are killed, and what is known after each."""

    def __init__(self, home: Path, image: Path) -> None:
        self.random = random.Random(SEED)
        self.image = image
        self.kept = {name: Kept(home, name) for name in ("one", "two")}
        self.known = {name: Known() for name in self.kept}
        self.kills = 0
        self.victim = ""
        self.numbers = 0
        self.done: dict[str, int] = {}
        self.last: object = None
        self.history: dict[str, list[object]] = {name: [] for name in self.kept}

    def step(self) -> None:
        """One action on one instance, which is killed in its middle more often than not."""
        name = self.random.choice(sorted(self.kept))
        kept, known = self.kept[name], self.known[name]
        if True not in known.exists:
            self.create(kept, known)
            return
        actions: list[Callable[[Kept, Known], None]] = [
            *(self.set_variable, self.start, self.stop, self.snapshot, self.attach, self.detach, self.restore),
            *(self.delete_snapshot, self.start_from),
        ]
        if self.random.random() < 0.03:
            actions = [self.delete]
        self.random.choice(actions)(kept, known)

    def run(self, kept: Kept, *arguments: str) -> bool | None:
        """Whether the command said that it is done; None when it was killed, or its QEMU was."""
        self.done[arguments[1] if arguments[0] == "vm" else arguments[0]] = (
            self.done.get(arguments[1] if arguments[0] == "vm" else arguments[0], 0) + 1
        )
        killed = False
        with kept.began(*arguments) as process:
            if self.random.random() < 0.75:
                time.sleep(self.random.random() ** 2 * 2.5)
                killed = self.kill(kept, process)
            try:
                out, error = process.communicate(timeout=240)
            except subprocess.TimeoutExpired:
                process.kill()
                pytest.fail(f"{arguments} hangs")
        self.history[kept.instance.name].append((arguments[:4], self.victim if killed else "", process.returncode))
        assert "Traceback" not in error, (arguments, error)
        assert "fault of ours" not in error, (arguments, error)
        if process.returncode == 0:
            return True
        if killed or process.returncode < 0:
            return None
        assert "could not be loaded" not in error, (arguments, error)
        self.last = (arguments, process.returncode, out, error)
        return False

    def kill(self, kept: Kept, process: subprocess.Popen[str]) -> bool:
        """Kill one of those that have a part in it."""
        holder, held = kept.instance.holder
        victims = [process.pid]
        if held and holder is not None:
            victims += [holder.pid, *_children(holder.pid)]
        victim = self.random.choice(victims)
        if victim == process.pid and process.poll() is not None:
            return False
        self.victim = "command" if victim == process.pid else "machine" if victim == victims[1] else "QEMU"
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            self.kills += 1
            return True
        return False

    def create(self, kept: Kept, known: Known) -> None:
        arguments = ("vm", "create", kept.instance.name, str(self.image), "--memory", "192M", "--vcpus", "1")
        if kept.instance.exists:
            known.exists = {True}
            return
        done = self.run(kept, *arguments)
        assert done is not False, self.last
        known.__init__()  # type: ignore[misc] # as it is when it is new
        known.exists = {True} if done else {True, False}

    def set_variable(self, kept: Kept, known: Known) -> None:
        if self.runs(kept):
            return
        self.numbers += 1
        value = f"{self.numbers:08x}"
        done = self.run(kept, "vars", "set", kept.instance.name, "Chaos", value, "--vendor", GUID, "--ascii")
        if done is not False:
            known.value = {value} if done else known.value | {value}

    def start(self, kept: Kept, _: Known) -> None:
        if not self.runs(kept):
            self.run(kept, "vm", "start", kept.instance.name)

    def stop(self, kept: Kept, _: Known) -> None:
        if self.runs(kept):
            self.run(kept, "vm", "kill", kept.instance.name)

    def snapshot(self, kept: Kept, known: Known) -> None:
        if len(known.snapshots) > 3:
            self.delete_snapshot(kept, known)
            return
        self.numbers += 1
        name = f"s{self.numbers}"
        done = self.run(kept, "vm", "snapshot", kept.instance.name, name)
        states = {(value, disks) for value in known.value for disks in known.disks}
        if done:
            known.snapshots[name] = states
        elif done is None:
            known.maybe_snapshots[name] = states

    def delete_snapshot(self, kept: Kept, known: Known) -> None:
        if not known.snapshots:
            return
        name = self.random.choice(sorted(known.snapshots))
        done = self.run(kept, "vm", "snapshot", kept.instance.name, "--delete", name)
        if done:
            del known.snapshots[name]
        elif done is None:
            known.maybe_snapshots[name] = known.snapshots.pop(name)

    def restore(self, kept: Kept, known: Known) -> None:
        self.go_back(kept, known, lambda name: ("vm", "restore", kept.instance.name, name, "--yes"))

    def start_from(self, kept: Kept, known: Known) -> None:
        if not self.runs(kept):
            self.go_back(kept, known, lambda name: ("vm", "start", kept.instance.name, "--from", name))

    def go_back(self, kept: Kept, known: Known, command: Callable[[str], tuple[str, ...]]) -> None:
        if not known.snapshots:
            return
        name = self.random.choice(sorted(known.snapshots))
        done = self.run(kept, *command(name))
        values, disks = {value for value, _ in known.snapshots[name]}, {disks for _, disks in known.snapshots[name]}
        if done:
            known.value, known.disks = values, disks
        elif done is None:
            known.value, known.disks = known.value | values, known.disks | disks

    def attach(self, kept: Kept, known: Known) -> None:
        if any(len(disks) > 3 for disks in known.disks):
            self.detach(kept, known)
            return
        self.numbers += 1
        name = f"d{self.numbers}"
        # While it runs, an EFI program is the guest, which takes no device: it is refused, and all is as before.
        # (One whose supervisor was killed is about to be over, though its QEMU still holds the lock.)
        holder, _ = kept.instance.holder
        stopped = not self.runs(kept) or holder is None or not Path(f"/proc/{holder.pid}").exists()
        done = self.run(
            kept,
            "vm",
            "attach",
            kept.instance.name,
            "--new-disk",
            "1M",
            "--name",
            name,
            "--persist",
            "--timeout",
            "0.3",
        )
        if done:
            known.disks = {(*disks, name) for disks in known.disks}
        elif done is None and stopped:
            known.disks = known.disks | {(*disks, name) for disks in known.disks}

    def detach(self, kept: Kept, known: Known) -> None:
        if self.runs(kept) or len(known.disks) > 1:
            return
        (disks,) = known.disks
        if len(disks) < 2:
            return
        done = self.run(kept, "vm", "detach", kept.instance.name, disks[-1])
        if done:
            known.disks = {disks[:-1]}
        elif done is None:
            known.disks = {disks, disks[:-1]}

    def delete(self, kept: Kept, known: Known) -> None:
        done = self.run(kept, "vm", "delete", kept.instance.name, "--yes", "--kill")
        if done:
            known.exists = {False}
        elif done is None:
            known.exists = {True, False}

    def runs(self, kept: Kept) -> bool:
        return control.status(kept.instance).state.value in RUNNING

    def check(self) -> None:
        """Everything is listed, and is what it was last acknowledged to be; what was open is known now."""
        first = next(iter(self.kept.values()))
        listed = {one["name"] for one in json.loads(first.armvm("vm", "list", "--json").stdout)["instances"]}
        for name, kept in self.kept.items():
            known = self.known[name]
            assert (name in listed) in known.exists
            known.exists = {name in listed}
            if name in listed:
                self.check_one(kept, known)

    def check_one(self, kept: Kept, known: Known) -> None:
        if self.runs(kept):
            kept.vm("kill")
        control.settle(kept.instance)
        with kept.instance.locked():
            assert not list(kept.instance.snapshots.glob(".*"))
        disks = tuple(disk.name or "" for disk in kept.instance.definition().machine.disks)
        assert set(disks) in [set(one) for one in known.disks], (disks, known)
        known.disks = {disks}
        with kept.began("vars", "get", kept.instance.name, "Chaos", "--vendor", GUID, "--raw") as told:
            out, error = told.communicate(timeout=60)
        value = None if told.returncode else out.strip("\0\n")
        assert value in known.value, (value, told.returncode, error, known, self.history[kept.instance.name][-30:])
        assert value is not None or "there is no variable" in error, (told.returncode, error)
        known.value = {value}
        there = set(snapshots.names(kept.instance))
        assert set(known.snapshots) <= there <= set(known.snapshots) | set(known.maybe_snapshots)
        known.snapshots |= {name: states for name, states in known.maybe_snapshots.items() if name in there}
        known.maybe_snapshots.clear()
        for disk in kept.instance.definition().machine.disks:
            assert set(snapshots.inside(disk.path)) <= there
            subprocess.run(["qemu-img", "check", "-q", disk.path], check=True, timeout=60)
        assert there <= set(snapshots.inside(kept.instance.disk))
        kept.vm("start")
        kept.vm("kill")


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def test_whatever_is_killed_nothing_is_lost(tmp_path: Path) -> None:
    image = guest_image(tmp_path / "wait.img", "aarch64")
    before = image.read_bytes()
    chaos = Chaos(tmp_path / "home", image)
    steps = 0
    try:
        while chaos.kills < KILLS:
            chaos.step()
            steps += 1
            if steps % CHECKED_EVERY == 0:
                chaos.check()
        chaos.check()
    finally:
        print(f"seed {SEED}: {chaos.kills} kills in {steps} steps: {chaos.done}")  # noqa: T201 - to be run again as it was
        for kept in chaos.kept.values():
            kept.end()
    assert image.read_bytes() == before
