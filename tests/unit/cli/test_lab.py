from __future__ import annotations

import json
from pathlib import Path

import pytest

from armvm.cli import lab
from armvm.errors import GuestError, MachineError
from armvm.execution import ExecutionState
from armvm.lab.boot import BootResult
from armvm.lab.recipe import HostKind
from armvm.lab.store import Frozen, host_folder, make_folder, write_frozen
from armvm.spec.verdict import Finding, Level, Verdict
from conftest import Armvm

RESULT = BootResult(
    HostKind.KVM, Path("disk.raw"), ExecutionState.AARCH64, "the guest was still running", "Loading", 5.0, 1.0,
    lacking=(Finding("guest.virtio-pci", Level.MUST, Verdict.FAIL, "the initial RAM disk lacks virtio_blk"),),
)  # fmt: skip


def test_nothing_is_made_yet(armvm: Armvm, tmp_path: Path) -> None:
    done = armvm("lab", "list", env={"XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode == 0
    assert "not made: armvm lab up kvm" in done.stdout
    value = json.loads(armvm("lab", "list", "--json", env={"XDG_CACHE_HOME": str(tmp_path)}).stdout)
    assert value == {"schema": "armvm.lab/1", "hosts": {"kvm": None, "xen": None}, "cache_bytes": 0}


def test_down_asks_and_removes(armvm: Armvm, tmp_path: Path) -> None:
    folder = make_folder(host_folder(HostKind.KVM))
    (folder / "state").write_bytes(b"state")
    write_frozen(HostKind.KVM, Frozen("k", "6.1", "QEMU", 1, 5, 1, 1.0))
    asked = armvm("lab", "down", "kvm")
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert (folder / "state").exists()
    assert armvm("lab", "down", "kvm", "--yes").returncode == 0
    assert not (folder / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "kvm"), 2, "nothing to do"),
        (("run", "kvm", "no-such.raw"), 65, "no-such.raw"),
        (("run", "kvm", "--probe", "--json"), 2, "-o json:FILE"),
        (("run", "bhyve", "x"), 2, "invalid choice"),
        (("run", "kvm", "x", "--timeout", "0"), 2, "not a time"),
        (("run", "kvm", "x", "--memory", "much"), 2, "much"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    armvm: Armvm, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = armvm("lab", *arguments, cwd=tmp_path)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_a_guest_that_is_too_large_is_refused_before_anything(armvm: Armvm, tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(bytes(1 << 20))
    done = armvm("lab", "run", "kvm", tmp_path / "x.raw", "--arch", "aarch64", "--memory", "4G")
    assert done.returncode == 2
    assert "at most" in done.stderr


def test_the_failure_says_what_the_image_lacks() -> None:
    import argparse

    with pytest.raises(GuestError, match="on nested kvm, the guest was still running") as caught:
        lab._judge(RESULT, argparse.Namespace(json=False))
    assert caught.value.hint == "guest.virtio-pci: the initial RAM disk lacks virtio_blk"
    assert not isinstance(caught.value, MachineError)
    value = lab._result_value(RESULT)
    assert value["booted"] is False
    assert value["lacking"][0]["requirement"] == "guest.virtio-pci"
