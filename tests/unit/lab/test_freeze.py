from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armvm.lab import freeze, kvm, store
from armvm.lab.freeze import ready_host
from armvm.lab.outer import machine_arguments
from armvm.lab.recipe import HostKind
from armvm.lab.store import Frozen

HOST = kvm.HOST


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the hosts that were made, in an instant."""
    keys: list[str] = []

    def make(host: Any, recipe: Any, own: bytes, emulator: str, key: str, **_: Any) -> Frozen:
        time.sleep(0.1)
        keys.append(key)
        (store.host_folder(host.kind) / "state").write_bytes(b"state of " + key.encode())
        frozen = Frozen(key, "6.1", emulator, recipe.memory_bytes, 9 + len(key), 1, 1.0)
        store.write_frozen(host.kind, frozen)
        return frozen

    monkeypatch.setattr(freeze, "_make", make)
    monkeypatch.setattr(freeze, "own_archive", lambda _recipe: b"ours")
    monkeypatch.setattr(freeze, "_emulator", lambda: "QEMU 7.2")
    return keys


def _key() -> str:
    with ready_host(HOST, notes=lambda _line: None) as ready:
        return ready.frozen.key


def test_a_host_is_made_once(made: list[str]) -> None:
    assert _key() == _key()
    assert len(made) == 1
    frozen = store.read_frozen(HostKind.KVM)
    assert frozen is not None
    assert freeze.is_current(HOST, frozen)


def test_two_at_once_make_one(made: list[str]) -> None:
    threads = [threading.Thread(target=_key) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


@pytest.mark.parametrize(("what", "value"), [("own_archive", lambda _: b"other"), ("_emulator", lambda: "QEMU 8")])
def test_another_armvm_or_qemu_makes_another(
    made: list[str], monkeypatch: pytest.MonkeyPatch, what: str, value: Any
) -> None:
    _key()
    monkeypatch.setattr(freeze, what, value)
    frozen = store.read_frozen(HostKind.KVM)
    assert frozen is not None
    assert not freeze.is_current(HOST, frozen)
    _key()
    assert len(set(made)) == 2


def test_it_is_made_anew_when_asked_or_damaged(made: list[str]) -> None:
    _key()
    with ready_host(HOST, renew=True, notes=lambda _line: None):
        assert len(made) == 2
    (store.host_folder(HostKind.KVM) / "state").write_bytes(b"")
    _key()
    assert len(made) == 3


def test_it_is_held_while_it_is_used(made: list[str]) -> None:
    from armvm.errors import BusyError

    with ready_host(HOST, notes=lambda _line: None) as ready, pytest.raises(BusyError):
        assert Path(f"/proc/self/fd/{ready.descriptor}").exists()
        store.remove_host(HostKind.KVM)
    assert store.remove_host(HostKind.KVM) > 0


def test_the_machine_has_el2_and_its_own_time() -> None:
    arguments = machine_arguments(replace(HOST.recipe(), vcpus=3))
    assert "virt,virtualization=on,gic-version=3" in arguments
    assert arguments[arguments.index("-icount") + 1] == "shift=0,sleep=on"
    assert arguments[arguments.index("-smp") + 1] == "3"
    assert "-drive" not in arguments
