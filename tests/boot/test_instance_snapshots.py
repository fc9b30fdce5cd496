"""Snapshots of a Linux that runs: its files, its UEFI variables, its devices and its memory, of one moment."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.instance import snapshots
from armvm.instance.snapshot_file import MAKING, RESTORING
from tools.kept_guest import Kept
from tools.shell_guest import shell_image

VARIABLE = "/sys/firmware/efi/efivars/ArmvmTest-cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0"
"""Linux lets only few variables be written twice; those of this vendor are among them (LINUX_EFI_CRASH_GUID)."""
PLACE = "bs=512 seek=4096 conv=notrunc,fsync"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell_image(tmp_path_factory.mktemp("image") / "guest.img")


@pytest.fixture(scope="module")
def guest(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """One that has booted, has a second disk that came later, and a snapshot ``base`` of all that. It is stopped."""
    kept = Kept(tmp_path_factory.mktemp("snapshots") / "home")
    kept.vm("create", image, "--memory", "512M", "--vcpus", "1")
    kept.boot()
    say(kept, "first")
    kept.vm("attach", "--new-disk", "8M", "--name", "data")
    kept.run("echo data-first | dd of=/dev/vdb bs=512 conv=sync,fsync 2>/dev/null")
    kept.vm("snapshot", "base", "--comment", "as it was")
    kept.vm("kill")
    yield kept
    kept.end()


@pytest.fixture
def running(guest: Kept) -> Iterator[Kept]:
    """The same, gone on from ``base``, and with no other snapshot."""
    guest.end()
    for name in snapshots.names(guest.instance):
        if name != "base":
            guest.vm("snapshot", "--delete", name)
    guest.vm("start", "--from", "base")
    yield guest
    guest.end()


def say(kept: Kept, text: str) -> None:
    """Make memory, disk and variables say ``text``."""
    bytes_of_it = "".join(f"\\x{byte:02x}" for byte in text.encode())
    kept.run(
        f"echo {text} > /tmp/word; echo {text} | dd of=/dev/vda {PLACE} 2>/dev/null;"
        f" printf '\\x07\\0\\0\\0{bytes_of_it}' > /tmp/variable; cat /tmp/variable > {VARIABLE}; sync"
    )


def says(kept: Kept) -> set[str]:
    """What they say."""
    told = kept.run(
        "cat /tmp/word; echo 3 > /proc/sys/vm/drop_caches;"
        f" dd if=/dev/vda bs=512 skip=4096 count=1 2>/dev/null | head -n1; tail -c +5 {VARIABLE}; echo"
    )
    return set(told.split())


def on_disk(kept: Kept) -> set[str]:
    """What disk and variable store say, with nobody running."""
    disk = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-r", "-c", "read -v 2097152 512", kept.instance.disk],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    told = kept.armvm("vars", "get", kept.instance.name, "ArmvmTest").stdout
    return {word for word in ("first", "second", "third") if word in disk} | {
        word for word in ("first", "second", "third") if word in told or word.encode().hex() in told.replace(" ", "")
    }


def test_everything_comes_back_while_it_runs(running: Kept, image: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    assert says(running) == {"first"}
    assert running.run("dd if=/dev/vdb bs=512 count=1 2>/dev/null | head -n1") == "data-first"
    say(running, "second")
    running.vm("snapshot", "middle")
    say(running, "third")
    running.run("echo data-third | dd of=/dev/vdb bs=512 conv=sync,fsync 2>/dev/null")
    running.vm("detach", "data")
    running.vm("restore", "middle", "--yes")
    assert says(running) == {"second"}
    assert running.run("dd if=/dev/vdb bs=512 count=1 2>/dev/null | head -n1") == "data-first"
    running.vm("restore", "base", "--yes")
    assert says(running) == {"first"}
    told = running.json("snapshot")
    assert told["schema"] == "armvm.snapshots/1"
    listed = told["snapshots"]
    assert isinstance(listed, list)
    assert [(one["name"], one["comment"], one["disks"]) for one in listed] == [
        ("base", "as it was", ["disk0", "data"]),
        ("middle", "", ["disk0", "data"]),
    ]
    assert all(one["memory"]["size_bytes"] > 10_000_000 for one in listed)
    running.vm("snapshot", "--delete", "middle")
    say(running, "third")
    running.vm("kill")
    assert on_disk(running) == {"third"}
    assert snapshots.inside(running.instance.disk) == ("base",)
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before


def test_one_with_memory_can_be_gone_back_to_without_it(running: Kept) -> None:
    say(running, "second")
    running.vm("kill")
    refused = running.vm("restore", "base", expect=2)
    assert "nobody is there to be asked" in refused.stderr
    assert on_disk(running) == {"second"}
    running.vm("restore", "base", "--yes")
    assert on_disk(running) == {"first"}
    running.vm("snapshot", "cold")
    running.vm("start", "--from", "base")
    assert "holds no memory" in running.vm("restore", "cold", "--yes", expect=2).stderr
    assert says(running) == {"first"}


def test_memory_of_another_processor_is_refused_and_the_machine_runs_on(running: Kept) -> None:
    path = running.instance.snapshots / "base" / "snapshot.toml"
    content = path.read_text()
    say(running, "second")
    try:
        for old, new, why in (
            ('cpu = "cortex-a72"', 'cpu = "host"', "another processor"),
            ('accelerator = "tcg"', 'accelerator = "kvm"', "expected cortex-a72 by kvm"),
            ('platform = "virt-7.2"', 'platform = "virt-99.1"', "virt-99.1"),
        ):
            changed = content.replace(old, new)
            if old.startswith("platform"):
                head, _, rest = content.partition("platform = ")
                changed = f'{head}platform = "virt-99.1"{rest[rest.index(chr(10)) :]}'
            path.write_text(changed)
            assert why in running.vm("restore", "base", "--yes", expect=65).stderr
        assert says(running) == {"second"}
    finally:
        path.write_text(content)


def test_nvme_has_no_memory_snapshots(guest: Kept) -> None:
    """Refused before anything: the definition alone says it."""
    from armvm.errors import UsageError
    from armvm.instance.snapshot_live import _require_movable
    from armvm.machine.devices import DiskInterface

    machine = guest.instance.definition().machine
    disks = (replace(machine.disks[0], interface=DiskInterface.NVME),)
    with pytest.raises(UsageError, match="nvme"):
        _require_movable(replace(machine, disks=disks))


@pytest.mark.parametrize("moment", [MAKING, RESTORING])
def test_qemu_is_killed_in_the_middle(moment: str, running: Kept) -> None:
    """As soon as it is under way; what was acknowledged is held, and the machine starts again."""
    say(running, "second")
    if moment == MAKING:
        process = running.began("vm", "snapshot", "web", "middle")
    else:
        process = running.began("vm", "restore", "web", "base", "--yes")
    with process:
        deadline = time.monotonic() + 60
        while not any(path.name.endswith(moment) for path in running.instance.snapshots.glob(".*")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        running.kill_qemu()
        process.communicate(timeout=60)
    held = snapshots.names(running.instance)
    assert held == ("base",) or (process.returncode == 0 and moment == MAKING)
    running.vm("snapshot", "--list")
    expected = {"second"} if moment == MAKING else {"first"}
    with running.instance.locked():
        pass
    assert on_disk(running) == expected
    assert set(snapshots.inside(running.instance.disk)) == set(snapshots.names(running.instance))
    running.vm("start", "--from", "base")
    assert says(running) == {"first"}


def test_qemu_is_killed_while_a_disk_comes(running: Kept) -> None:
    say(running, "second")
    with running.began("vm", "attach", "web", "--new-disk", "1M", "--name", "late", "--persist") as process:
        deadline = time.monotonic() + 60
        while not (running.instance.folder / "late.qcow2").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        running.kill_qemu()
        process.communicate(timeout=60)
    names = [disk.name for disk in running.instance.definition().machine.disks]
    assert ("late" in names) == (process.returncode == 0)
    assert on_disk(running) == {"second"}
    running.vm("start", "--from", "base")
    assert says(running) == {"first"}
