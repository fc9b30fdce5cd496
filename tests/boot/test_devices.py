"""Every device of a Machine as a Linux guest sees it. Slow, but for the one machine that has most of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import MachineError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.machine.definition import Bus, Machine, VariablesFile, problems
from armvm.machine.devices import (
    DiskCache,
    DiskDevice,
    DiskInterface,
    Graphics,
    LinkNetwork,
    SharedFolder,
    ShareDriver,
    UserNetwork,
    WatchdogAction,
    Writes,
)
from armvm.machine.qemu.backend import find_qemu
from armvm.units import GIB, MIB
from tools.device_guest import DeviceGuest, device_guest_image

pytestmark = pytest.mark.boot

STATE = ExecutionState.AARCH64
DISKS = (
    "for b in /sys/block/*; do echo ${b#/sys/block/} $(cat $b/serial $b/device/serial 2>/dev/null)"
    " $(cat $b/ro $b/size $b/queue/logical_block_size); done"
)
CARDS = "cat /sys/class/net/eth*/address"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = device_guest_image(tmp_path_factory.mktemp("devices") / "guest.img")
    path.chmod(0o444)
    return path


@pytest.fixture
def blank(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(bytes(8 * MIB))
        return path

    return make


def machine_on(image: Path, **fields: object) -> Machine:
    machine = Machine(STATE, find_firmware(STATE), (DiskDevice(image, "raw"),), GIB, nics=())
    return replace(machine, **fields)  # type: ignore[arg-type]


def started(machine: Machine) -> DeviceGuest:
    qemu = find_qemu(machine.state)
    assert problems(machine) + qemu.problems(machine) == ()
    return DeviceGuest(qemu.start(machine))


def test_a_guest_sees_what_its_machine_has(image: Path, blank: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "to, share"
    folder.mkdir()
    (folder / "hello").write_text("from the host\n")
    screen = tmp_path / "vnc,1.sock"
    machine = machine_on(
        image,
        disks=(
            DiskDevice(image, "raw"),
            DiskDevice(blank("a,b"), "raw", writes=Writes.KEPT, interface=DiskInterface.NVME, serial="NV,ME-1"),
            DiskDevice(blank("c"), "raw", 512, Writes.REFUSED, DiskInterface.VIRTIO_SCSI, "SCSI-1", DiskCache.UNSAFE),
            DiskDevice(blank("d"), "raw", 4096, Writes.KEPT, serial="PORT-1", cache=DiskCache.WRITETHROUGH, port=1),
        ),
        nics=(UserNetwork(), UserNetwork(mac="52:54:00:aa:bb:cc"), LinkNetwork(tmp_path / "link", 0)),
        rng=True,
        balloon=True,
        more_consoles=2,
        guest_agent=True,
        shares=(
            SharedFolder(folder, "work", driver=ShareDriver.NINE_P),
            SharedFolder(folder, "look", read_only=True, driver=ShareDriver.NINE_P),
        ),
        watchdog=WatchdogAction.PAUSE,
        graphics=Graphics(screen),
        usb_keyboard=True,
    )
    with started(machine) as guest:
        with socket.socket(socket.AF_UNIX) as viewer:
            viewer.settimeout(20)
            viewer.connect(str(screen))
            assert viewer.recv(12) == b"RFB 003.008\n"
        guest.up()
        disks = {line.split()[0]: line.split()[1:] for line in guest.run(DISKS).splitlines()}
        assert disks["nvme0n1"] == ["NV,ME-1", "0", "16384", "512"]
        assert disks["sda"] == ["1", "16384", "512"]
        assert "SCSI-1" in guest.run("cat /sys/block/sda/device/vpd_pg80")
        assert disks["vdb"] == ["PORT-1", "0", "16384", "4096"]
        assert guest.run("cat /sys/block/vdb/queue/write_cache") == "write through"
        guest.run("echo written > /dev/nvme0n1; echo written > /dev/vdb; sync")
        assert guest.run(CARDS).splitlines()[1] == "52:54:00:aa:bb:cc"
        assert len(set(guest.run(CARDS).splitlines())) == 3
        assert "virtio_rng" in guest.run("cat /sys/class/misc/hw_random/rng_available")
        assert guest.run("cat /sys/class/virtio-ports/*/name").split() == [
            "console1",
            "console2",
            "org.qemu.guest_agent.0",
        ]
        guest.run("echo one > /dev/hvc0; echo two > /dev/hvc1; echo three > /dev/vport0p30")
        heard = {name: channel.recv(100).strip() for name, channel in guest.session.channels.items()}
        assert heard == {"console1": b"one", "console2": b"two", "agent": b"three"}
        guest.run("mkdir /m1 /m2; for n in 1:work 2:look; do"
                  " mount -t 9p -o trans=virtio,version=9p2000.L ${n#*:} /m${n%:*}; done")  # fmt: skip
        assert guest.run("cat /m1/hello /m2/hello") == "from the host\nfrom the host"
        assert "Read-only" in guest.run("echo no > /m2/guest")
        guest.run("echo from the guest > /m1/guest")
        assert guest.run("ls /dev/watchdog0 /sys/class/drm/card0") != ""
        assert (
            "i6300esb"
            in guest.run("ls /sys/bus/pci/drivers/i6300ESB* -d; ls /sys/bus/pci/drivers | grep -i 6300").lower()
        )
        names = "cat /sys/class/input/*/name"  # a USB device is found in its own time
        guest.run(
            f"for n in $(seq 100); do {names} | grep -q Tablet && {names} | grep -q Keyboard && break; sleep 0.1; done"
        )
        keyboard = guest.run(names)
        assert "QEMU USB Keyboard" in keyboard
        assert "QEMU USB Tablet" in keyboard
        balloon = guest.session.qmp.execute("query-balloon", {}, timeout_seconds=20)
        assert balloon["actual"] == GIB
    assert (folder / "guest").read_text() == "from the guest\n"
    assert (tmp_path / "a,b").read_bytes()[:7] == (tmp_path / "d").read_bytes()[:7] == b"written"
    assert not screen.exists()


@pytest.mark.slow
def test_a_tpm_and_virtiofs_by_programs_that_end_with_the_machine(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared\\,odd"
    folder.mkdir()
    (folder / "hello").write_text("from the host\n")
    kept = VariablesFile(tmp_path / "vars.qcow2", "qcow2")
    _new_store(kept.path)
    share = SharedFolder(folder, "work", driver=ShareDriver.VIRTIOFS)
    machine = machine_on(image, tpm=True, shares=(share,), variables=kept)
    with started(machine) as guest:
        children = _children(guest)
        assert children >= {"swtpm", "virtiofsd"}
        guest.up()
        assert "TPMEventLog" in guest.run("dmesg | grep efi:")  # the firmware has talked to it, and measured
        assert "c000000.tpm_tis" in guest.run("ls /sys/bus/platform/devices")
        guest.run("mount -t virtiofs work /mnt")
        assert guest.run("cat /mnt/hello") == "from the host"
        guest.run("echo from the guest > /mnt/guest")
    assert (folder / "guest").read_text() == "from the guest\n"
    assert (tmp_path / "tpm/tpm2-00.permall").stat().st_mode & 0o777 == 0o600


def _new_store(path: Path) -> None:
    from armvm.atomic import replacing
    from armvm.disk.composed import ComposedDisk
    from armvm.disk.qcow2_write import write_qcow2
    from armvm.disk.storage import MemoryDisk
    from armvm.firmware.variables import FLASH_SIZE_BYTES
    from armvm.firmware.varstore import new_instance_store

    with replacing(path, mode=0o600) as file:
        write_qcow2(file, ComposedDisk("variables", FLASH_SIZE_BYTES, [(0, MemoryDisk(new_instance_store()))]))


def _children(guest: DeviceGuest) -> set[str]:
    """The names of this process's children, QEMU's siblings."""
    me = f"PPid:\t{Path('/proc/self').resolve().name}\n"
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if me in text:
            found.add(text.partition("\n")[0].removeprefix("Name:\t"))
    assert guest.session.pid
    return found


@pytest.mark.slow
def test_two_machines_on_a_link(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    ends = [machine_on(image, nics=(LinkNetwork(folder, end),)) for end in (0, 1)]
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(folder / "0"))  # left behind by one that was killed
    with started(ends[0]) as one:
        one.up()
        one.run("ip link set eth0 up; ip address add 10.9.0.1/24 dev eth0")
        assert "100% packet loss" in one.run("/bin/busybox ping -c 1 -W 1 10.9.0.2")  # nobody there: no harm
        with pytest.raises(MachineError, match=r"end 0 of the link .* is plugged into another machine"):
            find_qemu(STATE).start(ends[0])
        with started(ends[1]) as other:
            other.up()
            other.run("ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0")
            assert ", 0% packet loss" in other.run("/bin/busybox ping -c 2 -W 5 10.9.0.1")
        assert "100% packet loss" in one.run("/bin/busybox ping -c 1 -W 1 10.9.0.2")
        with started(ends[1]) as again:  # plugged in once more
            again.up()
            again.run("ip link set eth0 up; ip address add 10.9.0.2/24 dev eth0")
            assert ", 0% packet loss" in one.run("/bin/busybox ping -c 2 -W 5 10.9.0.2")


@pytest.mark.slow
def test_a_watchdog_bites(image: Path) -> None:
    with started(machine_on(image, watchdog=WatchdogAction.RESET)) as guest:
        guest.up()
        guest.session.send(b"/bin/busybox watchdog -T 2 -t 100000 /dev/watchdog0\n")  # which it never feeds
        guest.up()


@pytest.mark.slow
def test_a_machine_on_mmio(image: Path, blank: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("from the host\n")
    machine = machine_on(
        image,
        bus=Bus.MMIO,
        disks=(
            DiskDevice(image, "raw"),
            DiskDevice(blank("a"), "raw", interface=DiskInterface.VIRTIO_SCSI, writes=Writes.KEPT),
            DiskDevice(blank("b"), "raw", serial="MMIO-1", writes=Writes.KEPT),
        ),
        nics=(UserNetwork(mac="52:54:00:aa:bb:cc"),),
        rng=True,
        balloon=True,
        more_consoles=1,
        shares=tuple(SharedFolder(tmp_path, f"work{index}") for index in range(3)),
    )
    with started(machine) as guest:
        guest.up()
        disks = guest.run(DISKS).splitlines()
        assert "sda 0 16384 512" in disks
        assert "vdb MMIO-1 0 16384 512" in disks
        assert guest.run(CARDS) == "52:54:00:aa:bb:cc"
        assert "virtio_rng" in guest.run("cat /sys/class/misc/hw_random/rng_available")
        guest.run("mount -t 9p -o trans=virtio,version=9p2000.L work2 /mnt")
        assert guest.run("cat /mnt/hello") == "from the host"


@pytest.mark.slow
@pytest.mark.parametrize("interface", [DiskInterface.NVME, DiskInterface.VIRTIO_SCSI])
def test_it_boots_from_any_disk(image: Path, interface: DiskInterface) -> None:
    with started(machine_on(image, disks=(DiskDevice(image, "raw", interface=interface),))) as guest:
        guest.up()


@pytest.mark.slow
def test_sixteen_disks_and_shares(image: Path, blank: Callable[[str], Path], tmp_path: Path) -> None:
    disks = tuple(DiskDevice(blank(f"b{index}"), "raw", serial=f"N-{index}") for index in range(1, 16))
    shares = tuple(SharedFolder(tmp_path, f"s{index}", driver=ShareDriver.NINE_P) for index in range(16))
    with started(machine_on(image, disks=(DiskDevice(image, "raw"), *disks), shares=shares)) as guest:
        guest.up()
        serials = guest.run("cat /sys/block/vd*/serial; echo").split("N-")
        assert len(serials) == 16
        assert len(guest.run("cat /sys/bus/virtio/drivers/9pnet_virtio/virtio*/mount_tag").split("s")) == 17
