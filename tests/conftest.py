"""What every test may use: the installed command, and the real kernels that Debian's installer brings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from tools.installer import Installer, find_installer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background so, and everything that is started here would be deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Armvm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the state, the configuration or the clock of whoever runs it."""
    monkeypatch.setenv("ARMVM_HOME", str(tmp_path / "armvm-home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def armvm() -> Armvm:
    """Runs the command as a user would, in a process of its own: ``armvm("check", path)``."""

    def run(
        *arguments: str | Path, timeout_seconds: float = 60, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "armvm", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )

    return run


@pytest.fixture(scope="session")
def installer() -> Callable[[ExecutionState], Installer]:
    """The kernel and initial RAM disk of the Debian installer for an execution state."""
    return find_installer


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """What boots a VM is marked so by the folder that it stands in."""
    for item in items:
        if "boot" in item.path.parts[-2:]:
            item.add_marker(pytest.mark.boot)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes that gzip made hold the time: their ids would be others in every worker."""
    return f"gzip{len(val)}" if isinstance(val, bytes) and b"\x1f\x8b" in val else None
