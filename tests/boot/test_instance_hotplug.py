"""Disks and network cards that come and go while a real Linux runs, which says what it sees of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.machine.definition import MOST_HOTPLUG_PORTS
from tools.boot_images import guest_image
from tools.kept_guest import Kept
from tools.shell_guest import shell_image


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """One that runs, with a SCSI controller and a second disk that machine.toml has."""
    folder = tmp_path_factory.mktemp("hotplug")
    kept = Kept(folder / "home")
    kept.vm("create", shell_image(folder / "guest.img"), "--memory", "512M", "--vcpus", "1")
    definition = kept.instance.definition()
    machine = replace(definition.machine, hotplug_ports=3, scsi_controller=True)
    kept.instance.save(replace(definition, machine=machine))
    kept.boot()
    yield kept
    kept.end()


def attached(guest: Kept, *arguments: str) -> dict[str, object]:
    return guest.json("attach", *arguments)


def test_a_new_disk_is_seen_written_read_and_gone(guest: Kept) -> None:
    told = attached(guest, "--new-disk", "16M,serial=HOT-1", "--name", "data", "--persist")
    assert told["confirmed_by"] == "driver"
    assert guest.run("cat /sys/block/vdb/serial; echo; cat /sys/block/vdb/size").split() == ["HOT-1", "32768"]
    guest.run("echo armvm-was-here | dd of=/dev/vdb bs=512 seek=7 conv=sync,fsync 2>/dev/null")
    assert guest.run(
        "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vdb bs=512 skip=7 count=1 2>/dev/null | head -n1"
    ) == ("armvm-was-here")
    disks = guest.instance.definition().machine.disks
    assert [(disk.name, disk.port) for disk in disks] == [("disk0", None), ("data", 0)]
    assert "has a device data already" in guest.vm("attach", "--new-disk", "1M", "--name", "data", expect=2).stderr
    told = guest.json("detach", "data")
    assert (told["confirmed_by"], told["returns"]) == ("guest", True)
    assert "vdb" not in guest.run("ls /sys/block")
    path = guest.instance.folder / "data.qcow2"
    read = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-r", "-c", "read -v 3584 16", str(path)], capture_output=True, text=True, check=True
    )
    assert "armvm.was.here" in read.stdout  # qemu-io shows letters, and a dot for everything else
    guest.vm("attach", "--disk", path, "--name", "data")
    assert "needs" not in guest.vm("detach", "data", "--persist", "--delete").stderr
    assert not path.exists()
    assert [disk.name for disk in guest.instance.definition().machine.disks] == ["disk0"]


def test_a_network_card_is_seen_and_gone(guest: Kept) -> None:
    before = guest.run("ls /sys/class/net").split()
    told = attached(guest, "--nic", "user,mac=52:54:00:12:00:07", "--name", "more")
    assert told["confirmed_by"] == "driver"
    (new,) = set(guest.run("ls /sys/class/net").split()) - set(before)
    assert guest.run(f"ip link set {new} up; cat /sys/class/net/{new}/address") == "52:54:00:12:00:07"
    guest.run(f"ip addr add 10.0.2.99/24 dev {new}")
    assert "1 packets received" in guest.run(f"ping -c 1 -W 5 -I {new} 10.0.2.2")
    assert [nic.name for nic in guest.instance.definition().machine.nics] == ["net0"], "it was not to be kept"
    assert guest.json("detach", "more")["confirmed_by"] == "guest"
    assert guest.run("ls /sys/class/net").split() == before


def test_a_read_only_image_behind_the_scsi_controller(guest: Kept, tmp_path: Path) -> None:
    image = tmp_path / "odd, name.raw"
    image.write_bytes(os.urandom(1 << 20))
    path = str(image).replace(",", ",,")
    told = attached(guest, "--disk", f"{path},ro,format=raw,interface=virtio-scsi", "--name", "cd")
    assert told["confirmed_by"] == "reads"
    assert guest.run("cat /sys/block/sda/ro") == "1"
    summed = guest.run("sha256sum /dev/sda").split()[0]
    assert (
        summed
        == subprocess.run(["sha256sum"], input=image.read_bytes(), capture_output=True, check=True).stdout[:64].decode()
    )
    told = guest.json("detach", "cd")
    assert told["confirmed_by"] == "hypervisor", "SCSI asks no guest, and that is said"
    assert "sda" not in guest.run("ls /sys/block")


def test_what_cannot_be_is_said_and_changes_nothing(guest: Kept, tmp_path: Path) -> None:
    before = guest.instance.description.read_bytes()
    small = tmp_path / "small.raw"
    small.write_bytes(bytes(1 << 20))
    lost = tmp_path / "lost.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", small, "-F", "raw", lost], check=True)
    small.rename(tmp_path / "away.raw")
    for arguments, code, why in (
        (("attach", "--disk", str(tmp_path / "none")), 65, "none"),
        (("attach", "--disk", str(lost) + ",format=qcow2"), 65, "small.raw"),
        (("attach", "--new-disk", "1M", "--name", "Data"), 2, "a device called 'Data'"),
        (("attach", "--new-disk", "17"), 2, "no size for a disk"),
        (("attach", "--nic", "tap=nosuchtap0"), 2, "nosuchtap0"),
        (("detach", "nothing"), 2, "no disk and no network card nothing"),
        (("detach", "disk0"), 2, "boots from"),
        (("detach", "net0"), 2, "place of its own"),
    ):
        action, *rest = arguments
        assert why in guest.vm(action, *rest, expect=code).stderr
    assert guest.instance.description.read_bytes() == before
    assert not [path for path in guest.instance.folder.glob("*.qcow2") if path.name not in {"disk.qcow2", "vars.qcow2"}]


def test_a_guest_without_a_driver_does_not_confirm(tmp_path: Path) -> None:
    """The stand-in guest is an EFI program: QEMU takes the device, and nobody else ever does."""
    kept = Kept(tmp_path / "home", "bare")
    kept.vm("create", guest_image(tmp_path / "wait.img", "aarch64"), "--memory", "256M", "--vcpus", "1")
    kept.boot()
    try:
        refused = kept.vm("attach", "--new-disk", "1M", "--name", "data", "--timeout", "1", expect=1)
        assert "not confirmed by the guest within 1 s" in refused.stderr
        assert "it has been taken out again" in refused.stderr
        assert not (kept.instance.folder / "data.qcow2").exists()
        for _ in range(MOST_HOTPLUG_PORTS):  # the port is free again
            kept.vm("attach", "--nic", "user", "--timeout", "0.1", expect=1)
    finally:
        kept.end()


def test_mmio_says_that_it_cannot_and_a_stopped_machine_can(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "home", "mmio")
    kept.vm(
        "create", guest_image(tmp_path / "wait.img", "aarch64"), "--memory", "256M", "--vcpus", "1", "--bus", "mmio"
    )
    assert json.loads(kept.vm("attach", "--new-disk", "1M", "--json").stdout)["confirmed_by"] == "nobody"
    kept.boot()
    try:
        refused = kept.vm("attach", "--new-disk", "1M", expect=2)
        assert "a machine on virtio-mmio takes no disk while it runs" in refused.stderr
        assert "scsi_controller" in refused.stderr
    finally:
        kept.end()
    assert "its image is kept" in kept.vm("detach", "disk1").stdout
    assert (kept.instance.folder / "disk1.qcow2").exists()
