from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from armvm.errors import MachineError
from armvm.lab.workers import work_through
from tools.instances import alive
from tools.lab_work import Notes, die, fail, meet, square, wait_for_ever


def test_results_come_in_the_order_of_the_arguments() -> None:
    said: list[str] = []
    assert work_through(square, [3, 1, 2], at_once=2, notes=said.append) == [9, 1, 4]
    assert sorted(said) == ["squaring 1", "squaring 2", "squaring 3"]


def test_they_work_beside_each_other(tmp_path: Path) -> None:
    tasks = [(tmp_path, 1), (tmp_path, 2)]
    assert work_through(meet, tasks, at_once=2, notes=print) == [True, True]


@pytest.mark.parametrize(("work", "why"), [(fail, "no such number: 7"), (die, "died")])
def test_one_that_fails_is_said(work: Callable[[int, Notes], int], why: str) -> None:
    with pytest.raises(MachineError, match=why):
        work_through(work, [7], at_once=1, notes=print)


def test_whatever_ends_the_wait_ends_the_workers(tmp_path: Path) -> None:
    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_through(wait_for_ever, [tmp_path], at_once=1, notes=interrupted)
    assert (tmp_path / "tidied up").exists()
    (pid,) = (int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert not alive(pid)


def test_workers_do_not_outlive_whoever_is_killed(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tools.lab_work import wait_for_ever
from armvm.lab.workers import work_through
if __name__ == "__main__":
    work_through(wait_for_ever, [Path(sys.argv[1])], at_once=1, notes=print)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    folder = tmp_path / "pids"
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    with subprocess.Popen([sys.executable, str(script), str(folder)], env=env) as process:
        deadline = time.monotonic() + 30
        while not list(folder.iterdir()):
            assert time.monotonic() < deadline, "no worker starts"
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    (pid,) = (int(path.name) for path in folder.iterdir() if path.name.isdigit())
    while alive(pid):
        assert time.monotonic() < deadline, f"the worker {pid} lives on"
        time.sleep(0.02)
    assert (folder / "tidied up").exists()
