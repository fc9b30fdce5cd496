"""The console of ``armvm run`` on a real terminal (a pseudo terminal that pexpect holds)."""

from __future__ import annotations

import os
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tools.boot_images import READY, guest_image


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("images")

    def image(mode: str) -> Path:
        path = folder / f"{mode}.img"
        return path if path.exists() else guest_image(path, "aarch64", mode=mode)

    return image


class Terminal:
    """A shell on a pseudo terminal, so that the terminal's state can be looked at once armvm is gone."""

    def __init__(self) -> None:
        self.child = pexpect.spawn("/bin/sh", ["-i"], timeout=60, encoding="utf-8", env={**os.environ, "PS1": "$$ "})
        self.child.setecho(False)
        self.settings = termios.tcgetattr(self.child.child_fd)

    def run(self, *arguments: str) -> None:
        self.child.sendline(" ".join([sys.executable, "-m", "armvm", "run", *arguments]) + "; echo STATUS=$?")

    def restored(self) -> bool:
        return termios.tcgetattr(self.child.child_fd) == self.settings

    def expect_status(self, status: int) -> None:
        self.child.expect(r"STATUS=(\d+)")
        assert int(self.child.match.group(1)) == status
        assert self.restored()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.child.close(force=True)


def test_keys_reach_the_guest_and_ctrl_c_too(terminal: Terminal, images: Callable[[str], Path]) -> None:
    terminal.run(str(images("w")))
    terminal.child.expect("Ctrl-] powers the guest off")
    terminal.child.expect(READY)
    assert not terminal.restored()
    terminal.child.send("z")
    terminal.child.expect("KEY 122")
    terminal.child.send("\x03")
    terminal.child.expect("KEY 3\r")
    terminal.child.send("q")
    terminal.expect_status(0)


def test_ctrl_bracket_presses_the_power_button(terminal: Terminal, images: Callable[[str], Path]) -> None:
    terminal.run(str(images("w")))
    terminal.child.expect(READY)
    terminal.child.send("\x1d")
    terminal.child.expect("asking the guest to power off")
    terminal.child.expect("POWER-BUTTON")
    terminal.expect_status(0)


def test_a_deaf_guest_is_left_by_a_second_one(terminal: Terminal, images: Callable[[str], Path]) -> None:
    terminal.run(str(images("h")))
    terminal.child.expect(READY)
    terminal.child.send("\x1d")
    terminal.child.expect("asking the guest to power off")
    started = time.monotonic()
    terminal.child.send("\x1d")
    terminal.expect_status(0)
    assert time.monotonic() - started < 8


def test_or_after_ten_seconds(terminal: Terminal, images: Callable[[str], Path]) -> None:
    terminal.run(str(images("h")))
    terminal.child.expect(READY)
    terminal.child.send("\x1d")
    terminal.expect_status(0)


def armvm_below(shell: int) -> int:
    """The process that runs in the foreground of the shell's terminal."""
    children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    return int(children[-1])


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_give_the_terminal_back(
    how: signal.Signals, status: int, terminal: Terminal, images: Callable[[str], Path]
) -> None:
    terminal.run(str(images("w")))
    terminal.child.expect(READY)
    os.kill(armvm_below(terminal.child.pid), how)
    terminal.expect_status(status)


def test_stopping_gives_the_terminal_back_and_continuing_takes_it(
    terminal: Terminal, images: Callable[[str], Path]
) -> None:
    terminal.run(str(images("w")))
    terminal.child.expect(READY)
    os.kill(armvm_below(terminal.child.pid), signal.SIGTSTP)
    terminal.child.expect("Stopped")
    assert terminal.restored()
    terminal.child.sendline("fg")
    deadline = time.monotonic() + 20
    while terminal.restored() and time.monotonic() < deadline:
        time.sleep(0.05)
    terminal.child.send("z")
    terminal.child.expect("KEY 122")
    terminal.child.send("q")
    # The shell has given up the rest of its line when the job was stopped.
    while not terminal.restored() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert terminal.restored()


def test_with_until_the_terminal_gets_plain_text_and_keeps_its_keys(
    terminal: Terminal, images: Callable[[str], Path]
) -> None:
    terminal.run(str(images("w")), "--until", READY)
    terminal.child.expect("STATUS=0")
    assert "\x1b[2J" not in terminal.child.before
    assert "BdsDxe" in terminal.child.before
    terminal.run(str(images("w")), "--until", "never")
    terminal.child.expect(READY)
    terminal.child.send("\x03")
    terminal.child.expect("interrupted")
    assert terminal.restored()


def test_a_fault_of_ours_gives_the_terminal_back(tmp_path: Path) -> None:
    script = tmp_path / "fault.py"
    script.write_text(
        "import os\n"
        "from armvm.machine.terminal import RawTerminal\n"
        "with RawTerminal(0, screen=1):\n"
        "    os.write(1, b'RAW')\n"
        "    raise RuntimeError('fault')\n"
    )
    child = pexpect.spawn("/bin/sh", ["-c", f"{sys.executable} {script}; echo OVER; cat"], timeout=60, encoding="utf-8")
    child.expect("RAW")
    child.expect("OVER")
    assert termios.tcgetattr(child.child_fd)[3] & termios.ICANON
    child.close(force=True)
