from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from armvm.errors import BusyError
from armvm.lab import store
from armvm.lab.recipe import HostKind
from armvm.lab.store import Frozen

KVM = HostKind.KVM
FROZEN = Frozen("key", "6.1.0", "QEMU 7.2", 1024, 5, 1_700_000_000, 12.5)


@pytest.fixture
def folder() -> Path:
    folder = store.make_folder(store.host_folder(KVM))
    (folder / "state").write_bytes(b"state")
    store.write_frozen(KVM, FROZEN)
    return folder


def test_a_host_is_found_again(folder: Path) -> None:
    assert store.read_frozen(KVM) == FROZEN
    assert folder.stat().st_mode & 0o777 == 0o700
    assert store.read_frozen(HostKind.XEN) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"key": None},
        {"created": "yesterday"},
        {"state_bytes": 6},
        {"state_bytes": None},
        {"made_in_seconds": []},
        {"kernel": 6},
        {"extra": 1},
    ],
)
def test_a_damaged_manifest_counts_as_none(folder: Path, damage: dict[str, object]) -> None:
    (folder / "manifest.json").write_text(json.dumps({**asdict(FROZEN), **damage}))
    assert store.read_frozen(KVM) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 60_000, b"\xff"])
def test_what_is_no_manifest_counts_as_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert store.read_frozen(KVM) is None


def test_a_state_that_was_cut_off_counts_as_none(folder: Path) -> None:
    (folder / "state").write_bytes(b"stat")
    assert store.read_frozen(KVM) is None


def test_what_is_used_or_made_is_not_removed(folder: Path) -> None:
    for name in ("in-use", "making"):
        with store.holding(folder / name, shared=True), pytest.raises(BusyError, match="another armvm"):
            store.remove_host(KVM)
    assert store.read_frozen(KVM) == FROZEN


def test_removing_takes_what_killed_commands_left(folder: Path) -> None:
    left = store.make_folder(folder / f"{store.SCRATCH}123")
    (left / "initrd").write_bytes(b"x" * 100)
    assert store.remove_host(KVM) > 100
    assert store.read_frozen(KVM) is None
    assert {path.name for path in folder.iterdir()} == {"in-use", "making"}
    assert store.remove_host(KVM) == 0


def test_a_scratch_folder_takes_over_from_killed_ones(folder: Path) -> None:
    left = store.make_folder(folder / f"{store.SCRATCH}123")
    with store.scratch_folder(folder) as scratch:
        assert scratch.is_dir()
        assert not left.exists()
    assert not scratch.exists()


def test_the_cache_goes_but_for_what_is_being_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.remove_cache() == 0
    packages = store.make_folder(store.cache_folder() / "packages-x")
    (packages / "kernel").write_bytes(bytes(10))
    with store.holding(store.cache_folder() / "making"), pytest.raises(BusyError):
        store.remove_cache()
    assert store.cache_bytes() == 10
    assert store.remove_cache() == 10
    assert not packages.exists()
