from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.errors import BusyError, InputError, OutputError, UsageError
from armvm.execution import ExecutionState
from armvm.instance import dependants
from armvm.instance import machine_toml as machine_file
from armvm.instance import store as instances
from armvm.instance.create import create
from armvm.instance.definition import BackingImage, Definition
from armvm.instance.lock import HolderKind
from armvm.instance.store import Instance
from armvm.machine.definition import (
    Bus,
    Console,
    DiskDevice,
    GicVersion,
    HardwareDescription,
    Machine,
    PortForward,
    UserNetwork,
    VariablesFile,
    Writes,
)
from armvm.units import MIB
from tools.machines import machine_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARMVM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / 'odd "name"\\ \u00e9\x7f, x.img'
    path.write_bytes(bytes(MIB) + b"content" + bytes(MIB - 7))
    return path


def made(name: str, image: Path, **fields: object) -> Instance:
    machine = machine_of(disk=image)
    instance = instances.find(name)
    with open_disk(image) as disk:
        create(instance, replace(machine, **fields), disk)  # type: ignore[arg-type]
    return instance


def parsed(instance: Instance) -> Machine:
    return instance.machine()


def test_it_is_private_and_whole(home: Path, image: Path) -> None:
    instance = made("web", image)
    assert instance.folder == home / "instances/web"
    assert sorted(path.name for path in instance.folder.iterdir()) == [
        "disk.qcow2",
        "events.jsonl",
        "machine.toml",
        "vars.qcow2",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in instance.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(instance.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(instance.folder.parent.stat().st_mode) == 0o700
    assert [path.name for path in instance.folder.parent.iterdir()] == ["web"]


def test_what_was_made_is_what_is_read(image: Path) -> None:
    fields = {
        "vcpus": 5,
        "gic": GicVersion.V2,
        "description": HardwareDescription.ACPI,
        "console": Console.VIRTIO,
        "bus": Bus.MMIO,
        "memory_bytes": 777 * MIB,
        "nics": (UserNetwork((PortForward(2222, 22), PortForward(8080, 80))), UserNetwork()),
        "disks": (DiskDevice(image, "raw", 4096),),
    }
    instance = made("all", image, **fields)
    machine = instance.machine()
    for field, value in fields.items():
        if field not in {"disks", "nics"}:
            assert getattr(machine, field) == value
    assert tuple(replace(nic, mac=None) for nic in machine.nics) == (
        UserNetwork((PortForward(2222, 22), PortForward(8080, 80)), name="net0"),
        UserNetwork(name="net1"),
    )
    assert machine.disks == (DiskDevice(instance.disk, "qcow2", 4096, Writes.KEPT, name="disk0"),)
    assert machine.variables == VariablesFile(instance.variables, "qcow2")
    assert [one.path for one in instance.definition().images] == [image]
    assert made("none", image, nics=(), state=ExecutionState.AARCH32).machine().nics == ()


def test_qemu_agrees_with_what_was_made(image: Path) -> None:
    instance = made("web", image)
    for path in (instance.disk, instance.variables):
        subprocess.run(["qemu-img", "check", "-q", str(path)], check=True, timeout=60)
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(instance.disk)], timeout=60))
    assert told["virtual-size"] == 2 * MIB
    assert told["full-backing-filename"] == str(image)
    assert told["backing-filename-format"] == "raw"
    flash = json.loads(
        subprocess.check_output(["qemu-img", "info", "--output=json", str(instance.variables)], timeout=60)
    )
    assert flash["virtual-size"] == 64 * MIB
    subprocess.run(["qemu-img", "compare", "-q", "-F", "raw", str(instance.disk), str(image)], check=True, timeout=60)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", ".hidden", "a/b", "../x", "a\0", "a b", "\u00e9", "a\n", "x" * 65, "/etc", "a\\b"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="not a name"):
        instances.find(name)


@pytest.mark.parametrize("name", ["a", "web-1", "Debian_12.5", "0", "x" * 64])
def test_what_is_a_name(name: str) -> None:
    assert not instances.find(name).exists


def test_one_process_at_a_time(image: Path) -> None:
    instance = made("web", image)
    with (
        instance.locked(),
        pytest.raises(BusyError, match=f"instance web is in use by process {os.getpid()}"),
        instance.locked(wait_seconds=0.05),
    ):
        pass
    with instance.locked():
        pass


def test_the_lock_lives_as_long_as_who_inherited_it(image: Path) -> None:
    instance = made("web", image)
    with instance.locked(kind=HolderKind.MACHINE) as held:
        hypervisor = subprocess.Popen(["sleep", "600"], pass_fds=[held.descriptor])
    try:
        with pytest.raises(BusyError), instance.locked(wait_seconds=0.05):
            pass
    finally:
        hypervisor.kill()
        hypervisor.wait()
    with instance.locked():
        pass


def test_a_liar_in_the_lock_file_is_made_printable(image: Path) -> None:
    instance = made("web", image)
    liar = {"kind": "machine", "pid": 1, "started": 0, "host": "\x1b[31mevil x"}
    for content, shown in (
        (json.dumps(liar).encode(), r"process 1 of host \\x1b\[31mevil"),
        (b"\xff", "another process"),
    ):
        instance.lock.write_bytes(content)
        with instance.lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(BusyError, match=shown), instance.locked(wait_seconds=0.05):
                pass


def test_a_changed_image_is_refused(image: Path) -> None:
    instance = made("web", image)
    status = image.stat()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(InputError, match="has changed since instance web was made") as caught:
        instance.machine()
    assert caught.value.hint
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    instance.machine()
    image.unlink()
    with pytest.raises(InputError, match="the image of instance web is gone"):
        instance.machine()


def test_a_change_far_below_is_refused_and_asked_about(image: Path, tmp_path: Path) -> None:
    """The image that the user gave stands on another one, and that on a third."""
    base, middle, top = tmp_path / "base.raw", tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    image.rename(base)
    for path, under, form in ((middle, base, "raw"), (top, middle, "qcow2")):
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", under.name, "-F", form, str(path)]
        subprocess.run(command, check=True, timeout=60, cwd=tmp_path)
    machine = machine_of(disk=top)
    instance = instances.find("web")
    with open_disk(top, allow_backing_files=True) as disk:
        made = create(instance, replace(machine, disks=(DiskDevice(top, "qcow2"),)), disk)
    assert [one.path for one in made.images[0].below] == [middle, base]
    assert instance.definition().images == made.images
    instance.machine()
    for path in (middle, base):
        assert dependants.of(path) == ("web",), "who would replace it is told"
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        with pytest.raises(InputError, match="has changed since instance web was made") as caught:
            instance.machine()
        assert caught.value.subject == str(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    base.unlink()
    with pytest.raises(InputError, match="the image of instance web is gone"):
        instance.machine()


def test_an_instance_is_not_made_twice(home: Path, image: Path) -> None:
    instance = made("web", image)
    before = instance.description.read_bytes()
    with pytest.raises(UsageError, match="instance web is there already"):
        made("web", image, vcpus=7)
    assert instance.description.read_bytes() == before
    assert [path.name for path in (home / "instances").iterdir()] == ["web"]


def test_what_fails_halfway_leaves_nothing(home: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("armvm.disk.qcow2_write.write_qcow2", fail)
    with pytest.raises(OutputError, match="No space left"):
        made("web", image)
    assert list((home / "instances").iterdir()) == []


def test_a_folder_that_cannot_be_made(home: Path, image: Path) -> None:
    home.write_text("in the way")
    with pytest.raises(OutputError, match="cannot make instance web"):
        made("web", image)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"not toml",
        b"format = 1",
        b'format = 2\nimage = "x"',
        b"format = 2\n[[disks]]\npath = 3",
        b'format = 2\n[[disks]]\npath = "/x"\n[disks.image]\nsize_bytes = "many"',
    ],
)
def test_a_broken_description_is_an_input_error(image: Path, content: bytes) -> None:
    instance = made("web", image)
    instance.description.write_bytes(content)
    with pytest.raises(InputError) as caught:
        instance.machine()
    assert "machine.toml" in str(caught.value)


def test_where_everything_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARMVM_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert instances.instances_folder() == Path("/data/armvm/instances")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert instances.instances_folder() == tmp_path / ".local/share/armvm/instances"


def test_an_image_whose_name_is_no_text(tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"\xff.img")
    image.write_bytes(bytes(MIB))
    with pytest.raises(InputError, match=r"no UTF-8"):
        made("web", image)


def test_names_survive_toml() -> None:
    odd = BackingImage("disk0", Path('/"\\\n\t\x7f\x01\u2028\U0001f4be'), "raw", 1, 2)
    content = machine_file.serialise(Definition(machine_of(), (odd,)), Path("/folder"))
    assert machine_file.parse(content.decode(), Path("/folder/machine.toml")).images == (odd,)
