"""Instances whose QEMU is a stand-in: everything of a run but the guest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from armvm.errors import ArmvmError
from armvm.instance import control, store
from armvm.instance.store import Instance
from armvm.units import MIB
from tools import fake_qemu
from tools.instances import made_small

Made = Callable[..., Instance]


@pytest.fixture
def behave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts the stand-in in QEMU's place; called with words, it behaves as they say (see ``tools.fake_qemu``)."""
    fake_qemu.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_QEMU", str(tmp_path / "words"))

    def say(words: str) -> None:
        (tmp_path / "words").write_text(words)

    say("")
    return say


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def web(image: Path, behave: Callable[[str], None]) -> Iterator[Instance]:
    """An instance that is not running. Whatever runs at the end is killed."""
    yield made_small("web", image)
    for instance in store.every():
        with suppress(ArmvmError):
            control.kill(instance)
