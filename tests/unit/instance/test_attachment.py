from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.instance.attachment import Attachment, named, parse, placed, serialise, with_device, without
from armvm.machine.definition import Bus, Machine, disk_names, problems
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    LinkNetwork,
    Nic,
    PortForward,
    TapNetwork,
    UserNetwork,
    Writes,
)
from armvm.machine.qemu.places import place_of_disk
from tools.machines import machine_of

DISK = DiskDevice(Path("/x/data.qcow2"), "qcow2", writes=Writes.KEPT)
SCSI = replace(DISK, interface=DiskInterface.VIRTIO_SCSI)


def added(machine: Machine, device: DiskDevice | Nic, *, running: bool = True, given: bool = False) -> Machine:
    wanted = placed(machine, Attachment(device, interface_given=given), running=running)
    changed = with_device(machine, wanted.device)
    if not isinstance(device, DiskDevice) or device.path != DISK.path:
        assert problems(changed) == ()
    return changed


def other(number: int, disk: DiskDevice = DISK) -> DiskDevice:
    return replace(disk, path=Path(f"/x/{number}.qcow2"))


@pytest.mark.parametrize(
    "device",
    [
        DiskDevice(
            Path("/x, y.raw"),
            "raw",
            4096,
            Writes.REFUSED,
            DiskInterface.NVME,
            "s",
            DiskCache.NONE,
            discard=False,
            name="n",
        ),
        UserNetwork((PortForward(1, 2), PortForward(3, 4)), mac="52:54:00:00:00:01", name="net7"),
        TapNetwork("tap0"),
        BridgeNetwork("br0", name="lan"),
        LinkNetwork(Path("/cable"), 1),
    ],
)
def test_a_request_says_all_of_it(device: DiskDevice | Nic) -> None:
    wanted = Attachment(device, 1 << 30, interface_given=True, persist=True, timeout_seconds=2.5)
    assert parse(json.loads(json.dumps(serialise(wanted)))) == wanted


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "path", "forwards"]), inner)
        ),
        max_leaves=8,
    )
)
def test_any_request_is_one_or_is_refused(device: object) -> None:
    for kind in ("disk", "user", "tap", "link", "x"):
        told = {**device, "kind": kind} if isinstance(device, dict) else device
        try:
            parse({"device": told})
        except UsageError:
            pass
        else:
            assert kind == "user"


def test_devices_get_ports_and_names_until_there_are_none() -> None:
    machine = added(added(machine_of(), other(1)), UserNetwork())
    assert [(disk.name, disk.port) for disk in machine.disks] == [("disk0", None), ("disk1", 0)]
    assert [(nic.name, nic.port) for nic in machine.nics] == [("net0", None), ("net1", 1)]
    assert machine.nics[1].mac is not None
    with pytest.raises(UsageError, match="no free hotplug port for a disk: it has 2"):
        added(machine, other(2))
    stopped = added(machine, other(2), running=False)
    # The new one has a place of its own: it stands before what sits in a port, and behind what is booted.
    assert [disk.name for disk in stopped.disks] == ["disk0", "disk2", "disk1"]
    assert [disk.name for disk in without(stopped, "disk1").disks] == ["disk0", "disk2"]
    assert added(without(machine, "disk1"), other(3)).disks[1].port == 0


def test_what_comes_and_goes_moves_nobody_else() -> None:
    machine = replace(machine_of(), scsi_controller=True, hotplug_ports=1)
    for number, disk in enumerate((other(1), other(2, SCSI), other(3, SCSI))):
        machine = added(machine, disk, given=number > 0)
    before = {name: place_of_disk(machine, index) for index, name in enumerate(disk_names(machine))}
    machine = added(without(machine, "disk2"), other(4, SCSI), given=True)
    after = {name: place_of_disk(machine, index) for index, name in enumerate(disk_names(machine))}
    assert {name: after[name] for name in ("disk0", "disk1", "disk3")} == {
        name: before[name] for name in ("disk0", "disk1", "disk3")
    }
    assert len({json.dumps(place) for place in after.values()}) == len(after)


@pytest.mark.parametrize(
    ("machine", "interface"),
    [
        (replace(machine_of(), scsi_controller=True), DiskInterface.VIRTIO_BLK),
        (replace(machine_of(), scsi_controller=True, hotplug_ports=0), DiskInterface.VIRTIO_SCSI),
        (replace(machine_of(), scsi_controller=True, bus=Bus.MMIO), DiskInterface.VIRTIO_SCSI),
        (machine_of(ExecutionState.AARCH32), DiskInterface.VIRTIO_BLK),
        (replace(machine_of(ExecutionState.AARCH32), scsi_controller=True), DiskInterface.VIRTIO_SCSI),
    ],
)
def test_the_interface_is_what_the_guest_can_see(machine: Machine, interface: DiskInterface) -> None:
    assert added(machine, DISK).disks[1].interface is interface


def test_what_cannot_be_is_said_with_what_would_do() -> None:
    for machine, device, why in (
        (replace(machine_of(), bus=Bus.MMIO), DISK, "a machine on virtio-mmio takes no disk"),
        (replace(machine_of(), bus=Bus.MMIO), UserNetwork(), "a machine on virtio-mmio takes no network card"),
        (replace(machine_of(), hotplug_ports=0), UserNetwork(), "no free hotplug port"),
        (machine_of(), SCSI, "no SCSI controller"),
        (machine_of(), replace(DISK, name="net0"), "has a device net0 already"),
    ):
        with pytest.raises(UsageError, match=why) as raised:
            placed(machine, Attachment(device, interface_given=True), running=True)
        assert raised.value.hint
    with pytest.raises(UsageError, match="boots from"):
        without(machine_of(), "disk0")
    with pytest.raises(UsageError, match="no disk and no network card disk7"):
        without(machine_of(), "disk7")
    assert named(machine_of()).disks[0].name == "disk0"
