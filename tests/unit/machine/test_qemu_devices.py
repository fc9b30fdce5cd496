"""Disks and network cards in the form of QMP, and where devices sit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import MachineError, MissingError, UsageError
from armvm.machine.definition import Bus
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    Graphics,
    LinkNetwork,
    PortForward,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    Writes,
)
from armvm.machine.qemu import companions
from armvm.machine.qemu.devices import blockdev_of, device_of_disk, device_of_nic, netdev_of, option
from armvm.machine.qemu.places import place_of_disk, place_of_share
from tools.machines import machine_of

PORT = {"bus": "port0"}
DISK = DiskDevice(Path("/d.qcow2"), "qcow2", writes=Writes.KEPT)


def test_a_disk() -> None:
    assert blockdev_of(DISK, "data") == {
        "driver": "qcow2",
        "node-name": "data-node",
        "read-only": False,
        "file": {"driver": "file", "filename": "/d.qcow2"},
        "discard": "unmap",
    }
    kept = replace(DISK, cache=DiskCache.NONE, discard=False)
    assert blockdev_of(kept, "data")["cache"] == {"direct": True, "no-flush": False}
    assert "discard" not in blockdev_of(kept, "data")
    assert blockdev_of(replace(DISK, writes=Writes.REFUSED), "data")["read-only"] is True
    with pytest.raises(UsageError, match="from the start"):
        blockdev_of(replace(DISK, writes=Writes.DISCARDED), "data")


@pytest.mark.parametrize(
    ("interface", "place", "driver"),
    [
        (DiskInterface.VIRTIO_BLK, PORT, "virtio-blk-pci"),
        (DiskInterface.VIRTIO_BLK, {"bus": "virtio-mmio-bus.8"}, "virtio-blk-device"),
        (DiskInterface.VIRTIO_SCSI, {"bus": "scsi0.0"}, "scsi-hd"),
        (DiskInterface.NVME, {"bus": "pcie.0", "addr": "0x8"}, "nvme"),
    ],
)
def test_the_device_of_a_disk(interface: DiskInterface, place: dict[str, str], driver: str) -> None:
    disk = replace(DISK, interface=interface, sector_size=4096, cache=DiskCache.WRITETHROUGH)
    made = device_of_disk(disk, "data", place=place)
    serial = {"serial": "data"} if interface is DiskInterface.NVME else {}
    sectors = {"logical_block_size": 4096, "physical_block_size": 4096}
    expected = {"driver": driver, **place, "id": "data", "drive": "data-node", "write-cache": "off"}
    assert made == expected | serial | sectors


def test_network_cards() -> None:
    user = UserNetwork((PortForward(2222, 22),), "52:54:00:00:00:01")
    assert netdev_of(user, "lan") == {
        "id": "lan-backend",
        "type": "user",
        "hostfwd": [{"str": "tcp:127.0.0.1:2222-:22"}],
    }
    assert netdev_of(TapNetwork("tap0"), "lan") == {
        "id": "lan-backend",
        "type": "tap",
        "ifname": "tap0",
        "script": "no",
        "downscript": "no",
    }
    assert netdev_of(BridgeNetwork("br0"), "lan") == {"id": "lan-backend", "type": "bridge", "br": "br0"}
    assert netdev_of(BridgeNetwork("br0"), "lan", tap=7) == {"id": "lan-backend", "type": "tap", "fd": "7"}
    assert netdev_of(LinkNetwork(Path("/l"), 1), "lan") == {
        "id": "lan-backend",
        "type": "dgram",
        "local": {"type": "unix", "path": "/l/1"},
        "remote": {"type": "unix", "path": "/l/0"},
    }
    assert device_of_nic(user, "lan", place=PORT) == {
        "driver": "virtio-net-pci",
        "bus": "port0",
        "id": "lan",
        "netdev": "lan-backend",
        "mac": "52:54:00:00:00:01",
        "romfile": "",
    }
    ends = [device_of_nic(LinkNetwork(Path("/l"), end), "lan", place=PORT)["mac"] for end in (0, 1)]
    assert len(set(ends)) == 2
    assert "romfile" not in device_of_nic(user, "lan", place={"bus": "virtio-mmio-bus.2"})


def test_an_option_is_the_same_in_words() -> None:
    nested = {"type": "user", "id": "a,b", "list": [{"str": "1"}, {"str": "2,"}], "flag": True, "in": {"to": {"it": 3}}}
    assert option(nested, first="type") == "user,id=a,,b,list=1,list=2,,,flag=on,in.to.it=3"


def test_no_two_devices_have_one_place() -> None:
    many = tuple(DiskDevice(Path(f"/{index}"), "raw") for index in range(16))
    shares = tuple(SharedFolder(Path("/s"), f"t{index}") for index in range(16))
    full = replace(machine_of(), disks=many, shares=shares)
    places = [place_of_disk(full, index)["addr"] for index in range(16)]
    places += [place_of_share(full, index)["addr"] for index in range(16)]
    assert len(set(places)) == 32
    assert place_of_disk(full, 0) == {"addr": "0x8", "multifunction": "on"}
    assert place_of_disk(full, 8) == {"addr": "0x8.0x1"}
    assert place_of_disk(machine_of(), 0) == {"addr": "0x8"}
    without = replace(full, disks=(replace(many[0], interface=DiskInterface.VIRTIO_SCSI), *many[1:]))
    assert place_of_disk(without, 8) == {"addr": "0x8"}  # a second function alone would not be found
    assert place_of_disk(replace(full, bus=Bus.MMIO), 15) == {"bus": "virtio-mmio-bus.23"}


def test_what_this_host_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = replace(machine_of(), vsock_cid=3, nics=(TapNetwork("no-such-tap"),), graphics=Graphics())
    monkeypatch.setattr(companions, "_VSOCK", tmp_path / "none")
    vsock, tap, screen = companions.host_problems(machine)
    assert "modprobe vhost_vsock" in vsock
    assert "no tap device no-such-tap" in tap
    assert "name a socket or a port" in screen
    share = SharedFolder(tmp_path / "none", "t", driver=ShareDriver.NINE_P)
    (problem,) = companions.host_problems(replace(machine_of(), shares=(share,)))
    assert "is no folder" in problem


def test_missing_companions_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("armvm.process._SBIN", "")
    monkeypatch.setattr("armvm.process._LIBEXEC", "")
    companions.find_virtiofsd.cache_clear()
    share = SharedFolder(tmp_path, "t", driver=ShareDriver.VIRTIOFS)
    try:
        for change, component in (
            ({"tpm": True}, "swtpm"),
            ({"shares": (share,)}, "virtiofsd"),
            ({"nics": (BridgeNetwork("br0"),)}, "qemu-bridge-helper"),
        ):
            with pytest.raises(MissingError) as caught:
                list(companions.host_problems(replace(machine_of(), **change)))
            assert caught.value.component == component
        auto = replace(machine_of(), shares=(replace(share, driver=ShareDriver.AUTO),))
        assert companions.resolved(auto).shares[0].driver is ShareDriver.NINE_P
    finally:
        companions.find_virtiofsd.cache_clear()


@pytest.mark.parametrize("content", [b"", b"\n", b"123456789\n"])
def test_a_password_is_one_that_vnc_can_ask_for(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    machine = replace(machine_of(), graphics=Graphics(None, 5901, file))
    with pytest.raises(MachineError, match="1 to 8 bytes"):
        companions.start_companions(machine, ("net0",))
    file.write_bytes(b"secret\r\n")
    beside = companions.start_companions(machine, ("net0",))
    try:
        assert Path(f"/dev/fd/{beside.given['password']}").read_bytes() == b"secret"
    finally:
        beside.end()
