from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from armvm.errors import MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import FirmwareKind
from armvm.machine.definition import (
    BridgeNetwork,
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
from armvm.machine.export.source import Source
from armvm.machine.qemu import command
from armvm.machine.xen.backend import Xen, find, require_control_domain, version
from armvm.machine.xen.config import (
    XenHost,
    adapt,
    device_name,
    export,
    is_domain_name,
    nic_specification,
    problems,
    quoted,
    render,
    xen_firmware,
)
from armvm.units import GIB
from tools.machines import machine_of

FIRMWARE = xen_firmware(Path("/fw/XEN_EFI.fd"))


def domain() -> Machine:
    """A machine as Xen can be it."""
    return adapt(machine_of(), FIRMWARE).machine


def test_rendering_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = domain()
    for name in ("open", "stat", "getenv"):
        monkeypatch.setattr(f"os.{name}", lambda *_: pytest.fail("rendering is pure"))
    assert render(machine, name="web") == render(machine, name="web")


def test_the_whole_configuration() -> None:
    assert render(domain(), name="web") == (
        'name = "web"\n'
        'type = "pvh"\n'
        'kernel = "/fw/XEN_EFI.fd"\n'
        "memory = 1024\n"
        "vcpus = 2\n"
        'disk = ["format=raw,vdev=xvda,access=rw,target=/images/disk.raw"]\n'
        'vif = ["bridge=xenbr0"]\n'
        'on_poweroff = "destroy"\n'
        'on_reboot = "restart"\n'
        'on_crash = "destroy"\n'
    )


def test_what_the_machine_chooses_is_in_it() -> None:
    machine = replace(domain(), gic=GicVersion.V2, description=HardwareDescription.ACPI, nics=())
    machine = replace(machine, disks=(*machine.disks, DiskDevice(Path("/b.qcow2"), "qcow2", writes=Writes.REFUSED)))
    text = render(machine, name="web", standalone=False)
    assert 'gic_version = "v2"\nacpi = 1\n' in text
    assert '"format=qcow2,vdev=xvdb,access=ro,target=/b.qcow2"' in text
    assert "vif = []\n" in text
    assert text.count('"preserve"') == 3


def test_a_hosts_scripts_and_bridge() -> None:
    host = XenHost(block_script="block-x", vif_script="vif-x")
    text = render(domain(), name="web", host=host)
    assert "access=rw,backendtype=phy,script=block-x,target=/images/disk.raw" in text
    assert 'vif = ["bridge=xenbr0,script=vif-x"]' in text
    assert nic_specification(UserNetwork(mac="52:54:00:AC:E0:01"), host) == "mac=52:54:00:ac:e0:01,script=vif-x"
    assert nic_specification(BridgeNetwork("br1"), XenHost()) == "bridge=br1"
    with pytest.raises(ValueError, match="no MAC"):
        nic_specification(UserNetwork(mac="52:54:00:ac:e0:01,bridge=evil"), host)
    assert Xen(host=host).capabilities().disk_formats == {"raw"}


def test_a_domain_has_no_problems() -> None:
    assert problems(domain()) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"console": Console.PL011}, "Xen's own console"),
        ({"bus": Bus.PCI}, "nothing is virtio"),
        ({"gic": GicVersion.V4}, "a GICv2 or a GICv3"),
        ({"vcpus": 129}, "at most 128"),
        ({"variables": VariablesFile(Path("/v.fd"), "raw")}, "keeps none"),
        ({"clock": datetime(2020, 1, 1, tzinfo=UTC)}, "is the host's"),
        ({"scsi_controller": True}, "a virtio-scsi controller"),
        ({"nics": (UserNetwork(),)}, "on a bridge of the host"),
        ({"nics": (BridgeNetwork("a,b"),)}, "cannot be the name of a bridge"),
        ({"disks": (DiskDevice(Path("/d"), "raw", 4096, Writes.KEPT),)}, "sectors of 4096 bytes"),
        ({"disks": (DiskDevice(Path("/d"), "vmdk", writes=Writes.KEPT),)}, "format vmdk"),
        ({"disks": (DiskDevice(Path("/d"), "raw"),)}, "keeps what the guest writes"),
        ({"disks": (DiskDevice(Path("/a\nb"), "raw", writes=Writes.KEPT),)}, "unprintable"),
    ],
)
def test_what_a_domain_cannot_be_is_said(change: dict[str, object], said: str) -> None:
    found = problems(replace(domain(), **change))  # type: ignore[arg-type]  # fields of the machine
    assert any(said in problem for problem in found)


def test_what_is_adapted_can_be_and_is_said() -> None:
    machine = replace(
        machine_of(),
        gic=GicVersion.V4,
        variables=VariablesFile(Path("/v.fd"), "raw"),
        clock=datetime(2020, 1, 1, tzinfo=UTC),
        nics=(UserNetwork((PortForward(2222, 22),)),),
        scsi_controller=True,
    )
    adapted = adapt(machine, FIRMWARE)
    assert problems(adapted.machine) == ()
    for word in ("hvc0", "xvda", "UEFI variables", "GICv4", "a clock", "forwarded", "is kept"):
        assert any(word in change for change in adapted.changes), word
    assert adapt(adapted.machine, FIRMWARE) == type(adapted)(adapted.machine, ())


def test_sector_size_and_format_are_not_adapted_away() -> None:
    odd = replace(machine_of(), disks=(DiskDevice(Path("/d"), "vmdk", 4096),))
    assert len(problems(adapt(odd, FIRMWARE).machine)) == 2


def test_qemu_has_no_xen_devices() -> None:
    said = " ".join(command.problems(domain()))
    assert "Xen PV devices" in said
    assert "xen console" in said
    assert FIRMWARE.kind is FirmwareKind.BIOS


def test_strings_are_escaped() -> None:
    assert quoted('a"b\\c') == '"a\\"b\\\\c"'
    assert device_name(1) == "xvdb"


@pytest.mark.parametrize(
    ("name", "good"), [("web", True), ("web-1.x", True), ("7", False), ("", False), ("a b", False), ("-a", False)]
)
def test_domain_names(name: str, good: bool) -> None:
    assert is_domain_name(name) is good


def test_elsewhere_there_is_no_xen() -> None:
    for ask in (require_control_domain, version, lambda: find(ExecutionState.AARCH64)):
        with pytest.raises(MissingError, match="control domain") as raised:
            ask()
        assert raised.value.hint is not None
        assert "armvm lab run xen" in raised.value.hint


def test_an_exported_configuration_says_what_it_changes() -> None:
    exported = export(Source("web", machine_of(), (GIB,)))
    assert exported.text.startswith("# web: made by armvm vm export, for `xl create`\n# ")
    assert 'name = "web"\n' in exported.text
    assert 'on_reboot = "restart"' in exported.text
    for word in ("hvc0", "xenbr0", "ArmVirtXen"):
        assert any(word in warning for warning in exported.warnings)
    assert 'name = "vm-7"\n' in export(Source("7", machine_of(), (GIB,))).text
    with pytest.raises(UsageError, match="sectors of 4096"):
        export(Source("web", replace(machine_of(), disks=(DiskDevice(Path("/d"), "raw", 4096),)), (GIB,)))


def test_the_backends_firmware_takes_the_place_of_qemus() -> None:
    text = Xen(Path("/other.fd")).describe(domain())
    assert 'kernel = "/other.fd"' in text
