"""The options of a machine: what each becomes, that TOML says the same, and what is refused."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from armvm.cli.machine_options import add_machine_arguments, chosen, defined_image, machine_of
from armvm.cli.main import main
from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.instance import machine_toml
from armvm.machine.definition import DEFAULT_MEMORY_BYTES, HardwareDescription, Machine
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
    WatchdogAction,
    Writes,
)
from armvm.units import GIB, MIB
from tools.machines import firmware_of

STATE = ExecutionState.AARCH64


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARMVM_HOME", str(tmp_path / "home"))
    for room in ("armvm.firmware.discovery", "armvm.instance.machine_toml"):
        monkeypatch.setattr(f"{room}.find_firmware", lambda *_, **__: firmware_of())
    monkeypatch.chdir(tmp_path)


def options(*arguments: str, image: str | None = "boot.img", **more: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_machine_arguments(parser)
    namespace = parser.parse_args(arguments)
    namespace.image = Path(image) if image else None
    for name, value in more.items():
        setattr(namespace, name, value)
    return namespace


def machine(*arguments: str, **more: Any) -> Machine:
    boot = DiskDevice(Path("boot.img"), "raw")
    return machine_of(options(*arguments, **more), STATE, boot)


def test_nothing_given_is_nothing_chosen() -> None:
    assert chosen(options()) == {}
    assert machine() == Machine(
        STATE, firmware_of(), (DiskDevice(Path("boot.img"), "raw"),), DEFAULT_MEMORY_BYTES[STATE]
    )


def test_a_verb_without_devices_has_its_own_options_only() -> None:
    parser = argparse.ArgumentParser()
    add_machine_arguments(parser, devices=False)
    parser.add_argument("--hotplug-ports", type=int)
    assert chosen(parser.parse_args(["--vcpus", "3", "--forward", "1:2"])) == {
        "vcpus": 3,
        "nics": (UserNetwork((PortForward(1, 2),)),),
    }


def test_disks(tmp_path: Path) -> None:
    (tmp_path / "a,b.img").write_bytes(bytes(MIB))
    given = chosen(
        options(
            "--disk",
            "a,,b.img,read-only",
            "--disk",
            "c.qcow2,format=qcow2,interface=nvme,serial=S,,1,cache=none,discard=off,sector-size=4096,name=c,port=1",
            "--disk",
            "d.raw,format=raw,writes=kept",
        )
    )
    assert given["disks"] == (
        DiskDevice(Path("a,b.img"), "raw", writes=Writes.REFUSED),
        DiskDevice(
            *(Path("c.qcow2"), "qcow2", 4096, Writes.KEPT, DiskInterface.NVME, "S,1", DiskCache.NONE, False, "c", 1)
        ),
        DiskDevice(Path("d.raw"), "raw", writes=Writes.KEPT),
    )


@pytest.mark.parametrize(("writable", "writes"), [(True, Writes.KEPT), (False, Writes.DISCARDED)])
def test_a_run_keeps_nothing_unasked(writable: bool, writes: Writes) -> None:
    (disk,) = chosen(options("--disk", "d,format=raw", writable=writable))["disks"]
    assert disk.writes is writes


def test_the_boot_disk() -> None:
    one = machine("--boot-disk", "interface=virtio-scsi,serial=SYS,cache=unsafe").disks[0]
    assert one == DiskDevice(
        Path("boot.img"), "raw", interface=DiskInterface.VIRTIO_SCSI, serial="SYS", cache=DiskCache.UNSAFE
    )


def test_network_cards(tmp_path: Path) -> None:
    user, tap, bridge, lab, path = chosen(
        options(
            *("--nic", "user,mac=52:54:00:00:00:01", "--nic", "tap=tap0,mac=52:54:00:00:00:02,port=1"),
            *("--nic", "bridge=br0,name=lan", "--nic", "link=lab,end=1", "--nic", "link=./cable,mac=52:54:00:00:00:03"),
            *("--forward", "2222:22"),
        )
    )["nics"]
    assert user == UserNetwork((PortForward(2222, 22),), "52:54:00:00:00:01")
    assert tap == TapNetwork("tap0", "52:54:00:00:00:02", port=1)
    assert (bridge.bridge, bridge.name) == ("br0", "lan")
    assert isinstance(bridge, BridgeNetwork)
    assert re.fullmatch("52:54:00(:[0-9a-f]{2}){3}", bridge.mac or "")  # no two machines on a bridge have one address
    assert isinstance(lab, LinkNetwork)
    assert (lab.folder, lab.end) == (tmp_path / "home/links/lab", 1)
    assert path == LinkNetwork(tmp_path / "cable", 0, "52:54:00:00:00:03")


def test_shares_and_screens(tmp_path: Path) -> None:
    given = chosen(options("--share", "a:b:work,ro,driver=9p", "--share", "/s,,x:t", "--vnc", "screen.sock"))
    assert given["shares"] == (
        SharedFolder(tmp_path / "a:b", "work", True, ShareDriver.NINE_P),
        SharedFolder(Path("/s,x"), "t"),
    )
    assert given["graphics"] == Graphics(tmp_path / "screen.sock")
    assert chosen(options("--vnc", "unix", name="web"))["graphics"] == Graphics()
    assert chosen(options("--vnc", "unix"))["graphics"].socket.parent == tmp_path / "home/run"
    tcp = chosen(options("--vnc", "5901", "--vnc-password-file", "p"))["graphics"]
    assert tcp == Graphics(None, 5901, tmp_path / "p")


def test_everything_else() -> None:
    given = chosen(
        options(
            *(
                "--rng",
                "--no-balloon",
                "--tpm",
                "--secure-boot",
                "--usb-keyboard",
                "--guest-agent",
                "--watchdog",
                "pause",
            ),
            *("--vsock", "7", "--more-consoles", "2", "--hotplug-ports", "3", "--clock", "2031-02-03T04:05:06+01:00"),
        )
    )
    assert given.pop("clock").isoformat() == "2031-02-03T03:05:06"
    assert given == {
        "rng": True,
        "balloon": False,
        "tpm": True,
        "secure_boot": True,
        "usb_keyboard": True,
        "guest_agent": True,
        "watchdog": WatchdogAction.PAUSE,
        "vsock_cid": 7,
        "more_consoles": 2,
        "hotplug_ports": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--disk", "d,interfac=nvme"), "--disk d,interfac=nvme: there is no 'interfac' in it"),
        (("--disk", ""), "--disk : it names no image"),
        (("--disk", "d,format=raw,interface=ide"), "interface is 'ide'"),
        (("--disk", "d,format=raw,read-only=on"), "read-only stands alone"),
        (("--disk", "d,format"), "format needs a value"),
        (("--disk", "d,name=a,name=b"), "name is there twice"),
        (("--disk", "d,format=raw,sector-size=520"), "sector-size is 520"),
        (("--disk", "d,format=raw,port=x"), "port is 'x', no number"),
        (("--disk", "d,format=raw,discard=yes"), "discard is 'yes'"),
        (("--nic", "usr"), "--nic usr: no such card"),
        (("--nic", "tap"), "no such card"),
        (("--nic", "user=x"), "no such card"),
        (("--nic", "user,end=1"), "a card of the kind user has no end"),
        (("--nic", "link=a b"), "no name of a link: 'a b'"),
        (("--net", "none", "--nic", "user"), "--net none takes them all away"),
        (("--net", "none", "--forward", "1:2"), "--forward needs a network"),
        (("--net", "user", "--nic", "user"), "--nic takes its place"),
        (("--nic", "tap=t0", "--forward", "1:2"), "--forward needs a card behind user-mode NAT"),
        (("--share", "/folder"), "it names no folder and tag"),
        (("--share", "/folder:t,driver=nfs"), "driver is 'nfs'"),
        (("--vnc", "5901"), "--vnc 5901: a TCP port without a password"),
        (("--vnc", "unix", "--vnc-password-file", "p"), "on a TCP port only"),
        (("--vnc-password-file", "p"), "there is no screen"),
    ],
)
def test_what_is_refused_is_named(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(options(*arguments))
    assert said in caught.value.message


DEFINITION = """\
format = 2
state = "aarch32"
memory = "1536MiB"
description = "acpi"
rng = true
firmware = "fw.fd"
[[disks]]
path = "boot.img"
format = "raw"
interface = "nvme"
serial = "SYS"
[[disks]]
path = "data.img"
format = "raw"
[[nics]]
forwards = ["2222:22"]
[[shares]]
path = "/s"
tag = "t"
"""


def test_a_definition_is_overridden_by_options(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(DEFINITION)
    given = options("--define", "m.toml", "--memory", "1G", "--no-rng", "--forward", "1:2", image=None)
    assert given.arch == "aarch32"
    assert given.firmware == tmp_path / "fw.fd"
    assert options("--arch", "aarch64", "--define", "m.toml").arch == "aarch64"
    assert options("--define", "m.toml", "--arch", "aarch64").arch == "aarch64"
    assert defined_image(given) == tmp_path / "boot.img"
    given.image = defined_image(given)
    boot = DiskDevice(given.image, "raw")
    made = machine_of(given, ExecutionState.AARCH32, boot)
    assert made.memory_bytes == GIB
    assert made.rng is False
    assert made.description is HardwareDescription.ACPI
    assert made.nics == (UserNetwork((PortForward(1, 2),)),)
    assert made.shares == (SharedFolder(Path("/s"), "t"),)
    assert made.disks == (
        DiskDevice(tmp_path / "boot.img", "raw", interface=DiskInterface.NVME, serial="SYS"),
        DiskDevice(tmp_path / "data.img", "raw"),
    )
    elsewhere = machine_of(
        options("--define", "m.toml", image="other.img"), STATE, DiskDevice(Path("other.img"), "raw")
    )
    assert [disk.path.name for disk in elsewhere.disks] == ["other.img", "boot.img", "data.img"]


def test_options_and_toml_say_the_same(tmp_path: Path) -> None:
    from armvm.instance.definition import Definition

    by_options = machine(
        *("--disk", f"{tmp_path}/d,format=raw,interface=nvme,name=d", "--nic", "user,name=a", "--forward", "2222:22"),
        *("--share", f"{tmp_path}:work", "--tpm", "--rng", "--vsock", "9", "--watchdog", "reset", "--gic", "3"),
        *("--boot-disk", "name=disk0,serial=X"),
    )
    by_options = machine_toml.parse(
        machine_toml.serialise(Definition(by_options), tmp_path).decode(), tmp_path / "machine.toml"
    ).machine
    (tmp_path / "m.toml").write_bytes(machine_toml.serialise(Definition(by_options), tmp_path))
    given = options("--define", "m.toml", image=str(tmp_path / "boot.img"))
    assert machine_of(given, STATE, by_options.disks[0]) == by_options


def test_a_broken_definition_is_said_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.toml").write_text("format = 2\nvcpu = 3\n")
    with pytest.raises(InputError, match=r"m.toml, line 2: there is no key \"vcpu\""):
        options("--define", "m.toml")
    assert main(["run", "--define", "m.toml", "--print-command"]) == 65
    assert "line 2" in capsys.readouterr().err


def test_help_names_every_option_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: armvm run [OPTION…] [IMAGE]\n")
    for word in ("--disk PATH", "--nic KIND", "--share PATH", "--tpm", "--vnc", "--define FILE", "other devices"):
        assert word in shown
