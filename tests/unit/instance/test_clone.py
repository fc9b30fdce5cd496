from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from armvm.disk import copying
from armvm.disk.copying import copy_file
from armvm.errors import BusyError, InputError, OutputError, UsageError
from armvm.instance import events, machine_toml, seed, store
from armvm.instance.clone import clone, rename
from armvm.instance.cloud_init import CloudInit
from armvm.instance.create import Storage, Wishes
from armvm.instance.lock import HolderKind
from armvm.instance.remove import loss, remove
from armvm.instance.store import Instance
from armvm.machine.definition import PortForward, UserNetwork
from armvm.units import MIB
from tools.instances import made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(b"boot" + bytes(2 * MIB - 4))
    return path


def written(instance: Instance, pattern: int) -> None:
    """Have the whole disk of ``instance`` hold ``pattern``, as a guest would."""
    command = f"write -P {pattern} 0 2M"
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, str(instance.disk)], check=True, timeout=60, capture_output=True
    )


def holds(instance: Instance, pattern: int) -> bool:
    command = f"read -P {pattern} 0 2M"
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, str(instance.disk)], check=False, timeout=60, capture_output=True
    )
    return done.returncode == 0


def with_snapshot(instance: Instance, name: str) -> None:
    """A snapshot of a stopped instance: its files, and a snapshot of that name in its disk."""
    folder = instance.snapshots / name
    folder.mkdir(parents=True, mode=0o700)
    (folder / "machine.toml").write_bytes(instance.description.read_bytes())
    (folder / "vars.qcow2").write_bytes(instance.variables.read_bytes())
    subprocess.run(["qemu-img", "snapshot", "-c", name, str(instance.disk)], check=True, timeout=60)


def forwards(instance: Instance) -> list[PortForward]:
    return [one for nic in instance.machine().nics if isinstance(nic, UserNetwork) for one in nic.forwards]


def test_a_clone_is_another_machine(image: Path) -> None:
    wishes = Wishes(cloud_init=CloudInit("web", user="ada", commands=("true",)))
    web = made("web", image, wishes=wishes, nics=(UserNetwork((PortForward(2222, 22), PortForward(8080, 80))),))
    written(web, 7)
    (web.folder / "known_hosts").write_text("whom web's ssh knows")
    (web.folder / "console.log").write_text("what web said")
    web2 = store.find("web2")
    told: list[tuple[str, int, int]] = []
    new = clone(web, web2, progress=lambda *step: told.append(step))
    assert holds(web2, 7)
    written(web2, 9)
    assert holds(web, 7)
    old = web.definition()
    assert new.instance_id != old.instance_id
    files, before = seed.read(web2.folder / "seed.img"), seed.read(web.folder / "seed.img")
    assert files.user_data == before.user_data
    assert b"local-hostname: web2" in files.meta_data
    assert f"instance-id: {new.instance_id}".encode() in files.meta_data
    assert {port.guest_port for port in forwards(web2)} == {22, 80}
    assert not {port.host_port for port in forwards(web2)} & {port.host_port for port in forwards(web)}
    assert not {"known_hosts", "console.log"} & {path.name for path in web2.folder.iterdir()}
    assert (web2.folder / "id_ed25519").read_bytes() == (web.folder / "id_ed25519").read_bytes()
    assert [event["event"] for event in events.read(web2.events)] == ["created"]
    assert told[-1][1] == told[-1][2] > 0
    assert web2.definition() == new
    assert [one.path for one in new.images] == [image]


def test_a_clone_of_an_image_in_place_has_a_copy(image: Path) -> None:
    web = made("web", image, wishes=Wishes(Storage.IN_PLACE))
    web2 = store.find("web2")
    (disk,) = clone(web, web2).machine.disks
    assert disk.path == web2.folder / "disk0.img"
    assert disk.path.read_bytes() == image.read_bytes()


def test_a_clone_of_a_snapshot_is_as_it_was_then(image: Path) -> None:
    web = made("web", image, ssh=True)
    for pattern, name in ((1, "one"), (2, "two")):
        written(web, pattern)
        with_snapshot(web, name)
    written(web, 3)
    old = web.snapshots / "one" / "vars.qcow2"
    (web.snapshots / "one" / "vars.qcow2").write_bytes(old.read_bytes() + bytes(512))
    web2 = store.find("web2")
    new = clone(web, web2, snapshot="one")
    assert holds(web2, 1)
    assert holds(web, 3)
    assert web2.variables.read_bytes() == old.read_bytes()
    assert [path.name for path in web2.snapshots.iterdir()] == ["one"]
    listed = subprocess.run(["qemu-img", "snapshot", "-l", str(web2.disk)], check=True, capture_output=True, text=True)
    assert "one" in listed.stdout
    assert "two" not in listed.stdout
    then = machine_toml.parse((web2.snapshots / "one" / "machine.toml").read_text(), web2.description)
    assert then.machine.nics == new.machine.nics
    subprocess.run(["qemu-img", "check", "-q", str(web2.disk)], check=True, timeout=60)
    with pytest.raises(UsageError, match="no snapshot three"):
        clone(web, store.find("web3"), snapshot="three")
    for odd in ("..", "", "../snapshots/one", "."):
        with pytest.raises(UsageError, match="no snapshot"):
            clone(web, store.find("web3"), snapshot=odd)


def test_a_clone_keeps_all_snapshots(image: Path) -> None:
    web = made("web", image)
    for name in ("one", "two"):
        with_snapshot(web, name)
    web2 = store.find("web2")
    clone(web, web2)
    assert sorted(path.name for path in web2.snapshots.iterdir()) == ["one", "two"]


def test_what_runs_is_not_cloned_renamed_or_deleted(image: Path) -> None:
    web, web2 = made("web", image), store.find("web2")
    with web.locked(kind=HolderKind.MACHINE):
        for attempt in (lambda: clone(web, web2), lambda: rename(web, web2), lambda: remove(web)):
            with pytest.raises(BusyError, match="is running"):
                attempt()
    assert store.every() == (web,)


def test_a_failed_clone_leaves_nothing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = made("web", image)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("armvm.instance.clone.copy_file", fail)
    with pytest.raises(OutputError, match="No space left"):
        clone(web, store.find("web2"))
    assert [path.name for path in store.instances_folder().iterdir()] == ["web"]


def test_rename(image: Path) -> None:
    web, db = made("web", image), made("db", image)
    with pytest.raises(UsageError, match="db is there already"):
        rename(web, db)
    other = store.find("other")
    rename(web, other)
    assert store.every() == (db, other)
    assert other.machine().disks[0].path == other.disk
    assert events.read(other.events)[-1]["before"] == "web"
    subprocess.run(["qemu-img", "check", "-q", str(other.disk)], check=True, timeout=60)
    with pytest.raises(UsageError, match="there is no instance web"), web.locked():
        pass


def test_who_waited_for_an_instance_that_was_renamed_gets_the_new_one(image: Path) -> None:
    """Its lock went with the folder: a lock of that name now is another file."""
    web, other = made("web", image), store.find("other")
    descriptor = os.open(web.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        rename(web, other)
        made("web", image)
        with web.locked():
            assert not os.path.samestat(os.fstat(descriptor), web.lock.stat())
    finally:
        os.close(descriptor)


def test_delete(image: Path) -> None:
    web, db = made("web", image), made("db", image)
    with_snapshot(web, "clean")
    lost = loss(web)
    assert (lost.snapshots, lost.dependants) == (("clean",), ())
    assert lost.size_bytes > 100_000
    remove(web)
    assert store.every() == (db,)
    assert [path.name for path in store.instances_folder().iterdir()] == ["db"]
    assert image.exists()
    with pytest.raises(UsageError, match="there is no instance web"):
        remove(web)


def test_a_broken_instance_can_be_deleted(image: Path) -> None:
    web = made("web", image)
    web.description.write_text("not toml")
    with pytest.raises(InputError):
        clone(web, store.find("web2"))
    remove(web)
    assert store.every() == ()


def test_a_disk_that_another_stands_on_is_not_deleted_unnoticed(image: Path) -> None:
    web = made("web", image, wishes=Wishes(Storage.COPY))
    made("db", web.disk)
    with pytest.raises(UsageError, match="db stand on its disks"):
        remove(web)
    remove(web, with_dependants=True)
    assert [one.name for one in store.every()] == ["db"]


@pytest.mark.parametrize("way", ["kernel", "by hand", "no holes"])
def test_copies_are_exact_and_sparse(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    content = bytearray(40 * MIB + 123)
    content[MIB : MIB + 5] = b"start"
    content[33 * MIB : 34 * MIB] = os.urandom(MIB)
    with source.open("wb") as file:
        file.truncate(len(content))
        for offset, length in ((MIB, 5), (33 * MIB, MIB)):
            file.seek(offset)
            file.write(content[offset : offset + length])
    if way == "by hand":
        monkeypatch.delattr(os, "copy_file_range")
    if way == "no holes":
        monkeypatch.setattr(copying, "_data", lambda _descriptor, size: iter([(0, size)]))
    told: list[int] = []
    target = tmp_path / "target"
    with source.open("rb") as one, target.open("w+b") as other:
        copy_file(one, other, progress=told.append)
    assert target.read_bytes() == content
    assert told[-1] == len(content)
    if way != "no holes":
        assert target.stat().st_blocks * 512 < 4 * MIB
