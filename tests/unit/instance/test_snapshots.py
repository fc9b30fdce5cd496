from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from armvm import atomic
from armvm.disk.detect import open_disk
from armvm.errors import InputError, UsageError
from armvm.instance import hotplug, snapshot_file, snapshots
from armvm.instance import store as instances
from armvm.instance.create import create
from armvm.instance.snapshot_file import Memory, Snapshot
from armvm.instance.store import Instance
from armvm.instance.variables import edit_variables, reset_variables
from armvm.machine.definition import DiskDevice, Writes
from armvm.units import MIB
from tools.machines import machine_of


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    image = tmp_path / "image, x.img"
    image.write_bytes(bytes(2 * MIB))
    made = instances.find("web")
    with open_disk(image) as disk:
        create(made, machine_of(disk=image), disk)
    data = made.folder / "data.qcow2"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", str(data), "1M")
    definition = made.definition()
    disks = (*definition.machine.disks, DiskDevice(data, "qcow2", writes=Writes.KEPT, name="data"))
    made.save(replace(definition, machine=replace(definition.machine, disks=disks)))
    write(made, "first")
    return made


def qemu(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def write(instance: Instance, text: str) -> None:
    """Make both disks and the variables say ``text``."""
    pattern = str(sum(text.encode()) % 255 + 1)
    for path in (instance.disk, instance.folder / "data.qcow2"):
        qemu("qemu-io", "-f", "qcow2", "-c", f"write -q -P {pattern} 0 64k", str(path))
    qemu("qemu-io", "-f", "qcow2", "-c", f"write -q -P {pattern} 8M 64k", str(instance.variables))


def says(instance: Instance, text: str) -> bool:
    """Whether both disks and the variables do; one without the other is an error."""
    pattern = sum(text.encode()) % 255 + 1
    # qemu-io, for armvm itself follows no overlay to an image in another folder.
    told = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"read -q -P {pattern} 0 64k", str(instance.disk)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    found = {told.returncode == 0}
    for path, at in ((instance.folder / "data.qcow2", 0), (instance.variables, 8 * MIB)):
        with open_disk(path) as disk:
            found.add(disk.read(at, 512) == bytes([pattern]) * 512)
    assert len(found) == 1, "disks and variables are not of one moment"
    return found.pop()


def inside(path: Path) -> set[str]:
    return {
        one["name"] for one in json.loads(qemu("qemu-img", "info", "--output=json", str(path))).get("snapshots", [])
    }


def require_in_order(instance: Instance) -> None:
    """What the folders name is inside both disks, and nothing else; nothing is under way."""
    held = set(snapshots.names(instance))
    assert inside(instance.disk) == inside(instance.folder / "data.qcow2") == held
    assert not list(instance.snapshots.glob(".*"))
    assert {one.name for one in snapshots.every(instance)} == held


def test_disks_and_variables_come_back_together(instance: Instance) -> None:
    with instance.locked():
        made = snapshots.take(instance, "clean", comment="before")
    assert (made.disks, made.memory, made.comment) == (("disk0", "data"), None, "before")
    write(instance, "second")
    definition = instance.definition()
    instance.save(replace(definition, machine=replace(definition.machine, disks=definition.machine.disks[:1])))
    with instance.locked():
        snapshots.restore(instance, "clean")
    assert says(instance, "first")
    assert len(instance.definition().machine.disks) == 2
    require_in_order(instance)
    with instance.locked():
        snapshots.delete(instance, "clean")
    assert snapshots.every(instance) == ()
    require_in_order(instance)


def test_what_cannot_be_is_refused_before_anything(instance: Instance) -> None:
    with instance.locked():
        snapshots.take(instance, "clean")
        for name, why in (("clean", "already"), ("../x", "not a name"), ("17", "not a name"), (".x", "not a name")):
            with pytest.raises(UsageError, match=why):
                snapshots.take(instance, name)
        for act in (snapshots.restore, snapshots.delete, snapshots.definition_of):
            with pytest.raises(UsageError, match="no snapshot other"):
                act(instance, "other")
    qemu("qemu-img", "snapshot", "-c", "own", str(instance.folder / "data.qcow2"))
    with instance.locked(), pytest.raises(UsageError, match="of its own"):
        snapshots.take(instance, "own")
    assert inside(instance.disk) == {"clean"}


@pytest.mark.parametrize(
    ("form", "writes", "why"),
    [("raw", Writes.KEPT, "written in place"), ("qcow2", Writes.DISCARDED, "is discarded")],
)
def test_disks_that_cannot_be_part_of_one(form: str, writes: Writes, why: str, instance: Instance) -> None:
    definition = instance.definition()
    first = definition.machine.disks[0]
    other = DiskDevice(instance.folder / "other", form, writes=writes, name="other")
    instance.save(replace(definition, machine=replace(definition.machine, disks=(first, other))))
    with instance.locked(), pytest.raises(UsageError, match=why):
        snapshots.take(instance, "clean")
    assert inside(instance.disk) == set()
    assert not instance.snapshots.exists()


def test_one_that_is_not_whole_changes_nothing(instance: Instance) -> None:
    with instance.locked():
        snapshots.take(instance, "clean")
    write(instance, "second")
    qemu("qemu-img", "snapshot", "-d", "clean", str(instance.folder / "data.qcow2"))
    with instance.locked(), pytest.raises(InputError, match="not in it any more"):
        snapshots.restore(instance, "clean")
    assert says(instance, "second")
    (instance.folder / "data.qcow2").unlink()
    with instance.locked(), pytest.raises(InputError, match=r"data\.qcow2.*cannot be read"):
        snapshots.restore(instance, "clean")


def test_going_back_that_cannot_be_finished_is_said(instance: Instance) -> None:
    with instance.locked():
        snapshots.take(instance, "clean")
    snapshots.announce(instance, "clean")
    (instance.folder / "data.qcow2").rename(instance.folder / "away")
    with instance.locked(), pytest.raises(InputError, match="cut off while it went back to its snapshot clean"):
        snapshots.require_settled(instance)
    # What would be undone by going back in the end is refused.
    with pytest.raises(InputError, match="cut off"):
        edit_variables(instance, lambda store: store)
    with pytest.raises(InputError, match="cut off"):
        reset_variables(instance)
    with instance.locked(), pytest.raises(InputError, match="cut off"):
        hotplug.detach_stopped(instance, "data")
    (instance.folder / "away").rename(instance.folder / "data.qcow2")
    with instance.locked():
        snapshots.require_settled(instance)
    assert says(instance, "first")
    require_in_order(instance)


def test_what_a_killed_qemu_img_leaves_is_put_right(instance: Instance) -> None:
    with instance.locked():
        snapshots.take(instance, "clean")
        snapshots.hide(instance, "clean")
    qemu("qemu-img", "snapshot", "-d", "clean", str(instance.disk))
    with instance.disk.open("r+b") as file:  # a cluster that is taken and that nothing leads to (QEMU, interop/qcow2)
        start = file.read(72)
        table = int.from_bytes(start[48:56], "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        cluster = -(-instance.disk.stat().st_size // 65536)
        file.seek(block + 2 * cluster)
        file.write(b"\0\1")
        file.truncate((cluster + 1) * 65536)
    check = ["qemu-img", "check", "-q", str(instance.disk)]
    assert subprocess.run(check, check=False, timeout=60).returncode == 3, "nothing has leaked"
    with instance.locked():
        require_in_order(instance)
    assert subprocess.run(check, check=False, timeout=60).returncode == 0


def test_the_description_is_read_as_it_was_written() -> None:
    memory = Memory("disk0", 1 << 30, "virt-7.2", "tcg", "cortex-a72", "7.2.22")
    snapshot = Snapshot("a-b.c", datetime(2026, 1, 2, 3, 4, 5, 6000, UTC), ("disk0", "x"), memory, 'say "é"\\\x7f\n')
    folder = Path(os.environ["ARMVM_HOME"])
    folder.mkdir()
    (folder / "snapshot.toml").write_bytes(snapshot_file.serialise(snapshot))
    assert snapshot_file.read(folder) == snapshot


@pytest.mark.parametrize(
    "change",
    [
        ("format = 1", "format = 2"),
        ("created = ", "created = 7 # "),
        ('disks = ["disk0"]', "disks = 3"),
        ('platform = "virt-7.2"', 'platform = "virt,dumpdtb=/x"'),
        ("size_bytes = 5", "size_bytes = []"),
        ("[memory]", "[memory"),
    ],
)
def test_a_broken_description_is_said(change: tuple[str, str]) -> None:
    memory = Memory("disk0", 5, "virt-7.2", "tcg", "cortex-a72", "7.2.22")
    content = snapshot_file.serialise(Snapshot("a", datetime.now(UTC), ("disk0",), memory)).decode()
    assert change[0] in content
    folder = Path(os.environ["ARMVM_HOME"])
    folder.mkdir()
    (folder / "snapshot.toml").write_text(content.replace(*change))
    with pytest.raises(InputError, match=r"snapshot\.toml"):
        snapshot_file.read(folder)


STEPS = ("run", "write_file", "_rename", "_copy", "arrived", "announce")


def dying(at: int, act: Callable[[], object]) -> bool:
    """Do it in a process that dies, as if killed, at step ``at``; whether it got to its end before."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def step(*arguments: object, **keywords: object) -> object:
                nonlocal count
                if count == at:
                    os._exit(9)
                count += 1
                return function(*arguments, **keywords)

            return step

        for name in STEPS:
            setattr(snapshots, name, counted(getattr(snapshots, name)))
        setattr(snapshot_file, "write_file", counted(atomic.write_file))  # noqa: B010 - it is wrapped, not assigned
        try:
            act()
        except BaseException:  # noqa: BLE001 - said by the exit code
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 9}
    return status == 0


def each_death(
    instance: Instance, act: Callable[[], None], prepare: Callable[[], None], judge: Callable[[bool], None]
) -> None:
    """``act``, under the lock, dies at its first step, its second …; after each, everything must be in order."""

    def locked() -> None:
        with instance.locked():
            act()

    for at in range(100):
        prepare()
        whole = dying(at, locked)
        with instance.locked():  # puts in order what was left
            pass
        require_in_order(instance)
        judge(whole)
        if whole:
            assert at > 4
            for path in (instance.disk, instance.folder / "data.qcow2", instance.variables):
                qemu("qemu-img", "check", "-q", str(path))
            return
    pytest.fail("it never came to its end")


def test_whenever_it_dies_while_one_is_made(instance: Instance) -> None:
    def prepare() -> None:
        with instance.locked():
            for name in snapshots.names(instance):
                snapshots.delete(instance, name)

    def judge(whole: bool) -> None:
        assert says(instance, "first")
        assert not whole or snapshots.names(instance) == ("clean",)
        if snapshots.names(instance):
            with instance.locked():
                snapshots.restore(instance, "clean")
            assert says(instance, "first")

    each_death(instance, lambda: void(snapshots.take(instance, "clean")), prepare, judge)


def test_whenever_it_dies_while_it_goes_back(instance: Instance) -> None:
    with instance.locked():
        snapshots.take(instance, "clean")

    def judge(whole: bool) -> None:
        assert says(instance, "first") or (not whole and says(instance, "second"))

    each_death(instance, lambda: void(snapshots.restore(instance, "clean")), lambda: write(instance, "second"), judge)


def test_whenever_it_dies_while_one_is_deleted(instance: Instance) -> None:
    def prepare() -> None:
        with instance.locked():
            if not snapshots.names(instance):
                snapshots.take(instance, "clean")

    def judge(whole: bool) -> None:
        assert says(instance, "first")
        assert not whole or snapshots.names(instance) == ()

    each_death(instance, lambda: snapshots.delete(instance, "clean"), prepare, judge)


def void(_: object) -> None:
    pass
