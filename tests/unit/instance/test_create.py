from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.errors import OutputError, UsageError
from armvm.instance import addresses, beside, lock, seed, store
from armvm.instance.cloud_init import CloudInit
from armvm.instance.create import Storage, Wishes
from armvm.instance.lock import HolderKind
from armvm.machine.definition import Bus, PortForward, UserNetwork, Writes
from armvm.units import MIB
from tools.instances import made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(b"boot" + bytes(MIB) + b"content" + bytes(MIB - 11))
    return path


def qemu_info(path: Path) -> dict[str, object]:
    told: dict[str, object] = json.loads(
        subprocess.check_output(["qemu-img", "info", "--output=json", str(path)], timeout=60)
    )
    return told


def require_equal(one: Path, other: Path) -> None:
    subprocess.run(["qemu-img", "compare", "-q", str(one), str(other)], check=True, timeout=60)


def test_an_overlay_can_be_larger_than_its_image(image: Path) -> None:
    instance = made("web", image, wishes=Wishes(size_bytes=16 * MIB))
    assert qemu_info(instance.disk)["virtual-size"] == 16 * MIB
    require_equal(instance.disk, image)


@pytest.mark.parametrize("size_bytes", [None, 16 * MIB])
def test_a_copy_needs_the_image_no_more(image: Path, tmp_path: Path, size_bytes: int | None) -> None:
    kept = tmp_path / "kept.raw"
    kept.write_bytes(image.read_bytes())
    instance = made("web", image, wishes=Wishes(Storage.COPY, size_bytes))
    image.unlink()
    told = qemu_info(instance.disk)
    assert "backing-filename" not in told
    assert told["virtual-size"] == (size_bytes or 2 * MIB)
    require_equal(instance.disk, kept)
    assert instance.definition().images == ()
    instance.machine()


def test_in_place_is_the_image_itself(image: Path) -> None:
    instance = made("web", image, wishes=Wishes(Storage.IN_PLACE))
    assert not instance.disk.exists()
    (disk,) = instance.machine().disks
    assert (disk.path, disk.format, disk.writes) == (image, "raw", Writes.KEPT)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(size_bytes=MIB), "cannot be cut short"),
        (Wishes(size_bytes=16 * MIB + 1), "whole sectors"),
        (Wishes(Storage.IN_PLACE, 16 * MIB), "the image's own"),
    ],
)
def test_sizes_that_cannot_be(image: Path, wishes: Wishes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made("web", image, wishes=wishes)
    assert not store.find("web").folder.parent.exists()


def test_an_image_of_another_format_is_copied_or_refused(image: Path, tmp_path: Path) -> None:
    vmdk = tmp_path / "image.vmdk"
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", str(image), str(vmdk)], check=True, timeout=60)
    with pytest.raises(UsageError, match="is a vmdk image") as caught:
        made("web", vmdk)
    assert "--copy" in str(caught.value.hint)
    require_equal(made("web", vmdk, wishes=Wishes(Storage.COPY)).disk, image)


def test_an_image_that_others_stand_on_is_not_written_to(image: Path) -> None:
    made("web", image)
    with pytest.raises(UsageError, match=r"1 instance stands on it \(web\)"):
        made("db", image, wishes=Wishes(Storage.IN_PLACE))
    made("db", image, wishes=Wishes(Storage.IN_PLACE, shared=True))


def test_addresses_and_the_ssh_port_are_its_own(image: Path) -> None:
    forwards = [made(name, image, ssh=True).machine().nics[0] for name in ("one", "two", "three")]
    ports = {nic.forwards[0].host_port for nic in forwards if isinstance(nic, UserNetwork)}
    assert len(ports) == 3
    assert all(20000 <= port < 30000 for port in ports)
    machine = replace(store.find("one").machine(), nics=(UserNetwork(), UserNetwork()))
    macs = {nic.mac for nic in addresses.addressed(machine).nics}
    assert len(macs) == 2
    assert all(str(mac).startswith("52:54:00:") for mac in macs)


def test_a_forward_to_the_ssh_server_is_kept(image: Path) -> None:
    given = (UserNetwork((PortForward(2222, 22),)),)
    (nic,) = made("web", image, ssh=True, nics=given).machine().nics
    assert isinstance(nic, UserNetwork)
    assert nic.forwards == (PortForward(2222, 22),)
    assert made("none", image, ssh=True, nics=()).machine().nics == ()
    assert made("mmio", image, bus=Bus.MMIO).machine().bus is Bus.MMIO


def test_a_port_that_is_taken_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_is_free", lambda port: port == 20007)
    monkeypatch.setattr("random.sample", lambda *_: list(range(20000, 20010)))
    assert addresses.free_port(()) == 20007
    with pytest.raises(OutputError, match="no free port"):
        addresses.free_port({20007})


def test_a_seed_and_a_key_of_its_own(image: Path) -> None:
    instance = made("web", image, wishes=Wishes(cloud_init=CloudInit("web", user="ada")))
    definition = instance.definition()
    disk = definition.machine.disks[1]
    assert (disk.path, disk.writes, disk.name) == (instance.folder / "seed.img", Writes.REFUSED, "seed")
    public = (instance.folder / "id_ed25519.pub").read_text().strip()
    files = seed.read(disk.path)
    assert public.encode() in files.user_data
    assert f"instance-id: {definition.instance_id}".encode() in files.meta_data
    assert definition.user == "ada"
    assert {path.stat().st_mode & 0o777 for path in instance.folder.iterdir()} == {0o600}


def test_what_a_dead_maker_left_is_swept(image: Path) -> None:
    folder = store.instances_folder()
    folder.mkdir(parents=True)
    code = (
        "import os, pathlib, sys\n"
        "from armvm.instance import beside\n"
        "with beside.appearing(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'disk.qcow2').write_bytes(b'x')\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "dead")], check=False, timeout=60)
    (left,) = folder.iterdir()
    assert left.name.startswith(".dead.")
    here = lock.this_process(HolderKind.COMMAND)
    ours = beside._beside(folder / "alive")
    ours.mkdir()
    host, boot = beside._short(here)
    foreign = folder / f".x.{'0' * 8}.{boot}.1.1.{'0' * 8}.part"
    rebooted = folder / f".x.{host}.{'0' * 8}.{os.getpid()}.{here.started}.{'0' * 8}.part"
    stranger = folder / ".x.part"
    for path in (foreign, rebooted, stranger):
        path.mkdir()
    assert store.every() == ()
    made("web", image)
    assert set(folder.iterdir()) == {folder / "web", ours, foreign, stranger}


def test_two_makers_of_one_name(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "instances" / "web"
    with pytest.raises(UsageError, match="is there already"), beside.appearing(folder) as first:
        (first / "a").touch()
        with beside.appearing(folder) as second:
            (second / "b").touch()
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in folder.parent.iterdir()] == ["web"]


def test_the_image_is_not_touched(image: Path) -> None:
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    made("web", image)
    made("copy", image, wishes=Wishes(Storage.COPY))
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
    with open_disk(image) as disk:
        assert disk.format == "raw"
