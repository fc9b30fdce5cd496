from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from armvm.execution import ExecutionState
from armvm.machine.accelerators import AcceleratorKind, available, survey

_API_VERSION = 0xAE00

Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Pretends to be a host: its system, its processor, what opening /dev/kvm comes to, what KVM answers."""

    def pretend(
        system: str, machine: str, *, error: type[OSError] | None = None, version: int = 12, narrow: int = 1
    ) -> None:
        def open_device(path: str, flags: int) -> int:
            assert path == "/dev/kvm"
            assert flags & os.O_RDWR
            if error:
                raise error(5, "refused")
            return real_open(os.devnull, os.O_RDWR)

        def ioctl(_device: int, request: int, argument: int) -> int:
            if request == _API_VERSION:
                return version
            assert (request, argument) == (0xAE03, 93)
            return narrow

        real_open = os.open
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
        monkeypatch.setattr(os, "open", open_device)
        monkeypatch.setattr(fcntl, "ioctl", ioctl)

    return pretend


def kinds(state: str) -> list[str]:
    return [one.kind.value for one in available(ExecutionState(state))]


def why_not(kind: AcceleratorKind, state: str) -> str:
    (one,) = (one for one in survey(ExecutionState(state)) if one.kind is kind)
    assert not one.available
    return one.detail


@pytest.mark.parametrize(
    ("system", "machine", "aarch64", "aarch32"),
    [
        ("linux", "aarch64", ["kvm", "tcg"], ["kvm", "tcg"]),
        ("linux", "armv7l", ["tcg"], ["kvm", "tcg"]),
        ("linux", "armv8l", ["tcg"], ["kvm", "tcg"]),
        ("linux", "x86_64", ["tcg"], ["tcg"]),
        ("darwin", "arm64", ["hvf", "tcg"], ["tcg"]),
        ("darwin", "x86_64", ["tcg"], ["tcg"]),
        ("freebsd14", "arm64", ["tcg"], ["tcg"]),
    ],
)
def test_hosts(host: Host, system: str, machine: str, aarch64: list[str], aarch32: list[str]) -> None:
    host(system, machine)
    assert (kinds("aarch64"), kinds("aarch32")) == (aarch64, aarch32)


def test_a_wide_host_narrows_its_processor(host: Host) -> None:
    host("linux", "aarch64")
    assert available(ExecutionState.AARCH32)[0].narrows
    assert not available(ExecutionState.AARCH64)[0].narrows


def test_a_processor_without_aarch32_kernels(host: Host) -> None:
    host("linux", "aarch64", narrow=0)
    assert (kinds("aarch64"), kinds("aarch32")) == (["kvm", "tcg"], ["tcg"])
    assert "AArch32" in why_not(AcceleratorKind.KVM, "aarch32")


@pytest.mark.parametrize(
    ("error", "words"), [(FileNotFoundError, "there is no"), (PermissionError, "group"), (OSError, "refused")]
)
def test_a_device_that_cannot_be_opened(host: Host, error: type[OSError], words: str) -> None:
    host("linux", "aarch64", error=error)
    assert kinds("aarch64") == ["tcg"]
    assert words in why_not(AcceleratorKind.KVM, "aarch64")


def test_a_device_that_is_not_kvm(host: Host) -> None:
    host("linux", "aarch64", version=-1)
    assert "does not answer" in why_not(AcceleratorKind.KVM, "aarch64")


def test_an_ioctl_that_fails(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host("linux", "aarch64")

    def fail(*_arguments: object) -> int:
        raise OSError(25, "not a typewriter")

    monkeypatch.setattr(fcntl, "ioctl", fail)
    assert kinds("aarch64") == ["tcg"]


def test_every_reason_is_said() -> None:
    for state in ExecutionState:
        assert [one.kind for one in survey(state)] == list(AcceleratorKind)
        assert all(one.detail for one in survey(state))
        assert available(state)[-1].kind is AcceleratorKind.TCG
