"""Exports, each judged by a tool or schema of its own kind: libvirt, KubeVirt, shells, OVF readers, Ruby, HCL."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hcl2
import jsonschema
import pytest
import yaml

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import (
    BridgeNetwork,
    Console,
    DiskDevice,
    DiskInterface,
    Graphics,
    HardwareDescription,
    Machine,
    PortForward,
    SharedFolder,
    TapNetwork,
    UserNetwork,
    VariablesFile,
    WatchdogAction,
    Writes,
)
from armvm.machine.export.source import TARGETS, Source, find_export
from armvm.machine.libvirt.imported import read_domain
from armvm.units import GIB
from tools.boot_images import READY, guest_image
from tools.kubevirt_schema import SCHEMA
from tools.machines import firmware_of, machine_of

Armvm = Callable[..., "subprocess.CompletedProcess[str]"]

PLAIN = replace(
    machine_of(),
    variables=VariablesFile(Path("/images/vars.fd"), "raw"),
    nics=(UserNetwork((PortForward(2222, 22),), "52:54:00:00:00:01"),),
)
RICH = replace(
    PLAIN,
    disks=(
        DiskDevice(Path("/images/a, 'b' \"c\" ${d} $e %{f} \\g ü.qcow2"), "qcow2", 4096, Writes.KEPT, serial="s1"),
        DiskDevice(Path("/images/data.raw"), "raw", 512, Writes.REFUSED, DiskInterface.VIRTIO_SCSI, discard=False),
    ),
    description=HardwareDescription.ACPI,
    nics=(UserNetwork(), BridgeNetwork("br0"), TapNetwork("tap0", "52:54:00:00:00:02")),
    scsi_controller=True,
    more_consoles=1,
    rng=True,
    balloon=True,
    shares=(SharedFolder(Path("/srv/share"), "share", read_only=True),),
    tpm=True,
    watchdog=WatchdogAction.RESET,
    graphics=Graphics(),
    usb_keyboard=True,
    vsock_cid=7,
    guest_agent=True,
    vcpus=4,
)
MACHINES = [
    PLAIN,
    RICH,
    replace(PLAIN, console=Console.VIRTIO, nics=()),
    replace(PLAIN, state=ExecutionState.AARCH32, firmware=firmware_of()),
]
WIDE = [machine for machine in MACHINES if machine.state is ExecutionState.AARCH64]


def source_of(machine: Machine, accelerator: AcceleratorKind = AcceleratorKind.TCG) -> Source:
    return Source("web-1", machine, tuple(GIB for _ in machine.disks), accelerator, new_variables=True)


def exported(machine: Machine, target: str, tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.write_text(find_export(target)(source_of(machine)).text, "utf-8")
    return path


def judge(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_libvirt_validates_its_xml(machine: Machine, tmp_path: Path) -> None:
    path = exported(machine, "libvirt", tmp_path, "web.xml")
    judge("virt-xml-validate", path, "domain")
    judge("xmllint", "--noout", path)


def test_virt_xml_validate_can_fail(tmp_path: Path) -> None:
    path = exported(PLAIN, "libvirt", tmp_path, "web.xml")
    path.write_text(path.read_text().replace("<memory ", "<memories ").replace("</memory>", "</memories>"))
    with pytest.raises(AssertionError, match="fails to validate"):
        judge("virt-xml-validate", path, "domain")


@pytest.mark.parametrize("machine", WIDE)
def test_kubevirt_takes_its_manifest(machine: Machine, tmp_path: Path) -> None:
    path = exported(machine, "kubevirt", tmp_path, "web.yaml")
    judge("yamllint", "-s", "-d", "{extends: relaxed, rules: {line-length: disable}}", path)
    manifest = yaml.safe_load(path.read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    validator.validate(manifest)
    spec = manifest["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    assert spec["domain"]["features"]["acpi"]["enabled"] is (machine.description is HardwareDescription.ACPI)
    names = [volume["name"] for volume in spec["volumes"]]
    assert names == [disk["name"] for disk in spec["domain"]["devices"]["disks"]]
    assert [net["name"] for net in spec["networks"]] == [nic["name"] for nic in spec["domain"]["devices"]["interfaces"]]
    spec["domain"]["devices"]["discs"] = []
    assert not validator.is_valid(manifest)


def test_the_container_disk_is_for_qemu_s_user() -> None:
    ((suffix, recipe),) = find_export("kubevirt")(source_of(PLAIN)).more
    assert suffix == ".Dockerfile"
    assert recipe.splitlines() == [
        "FROM scratch",
        "ARG DISK=web-1-disk0.qcow2",
        "ADD --chown=107:107 ${DISK} /disk/",
    ]


@pytest.mark.parametrize("target", ["kubevirt", "cloud-hypervisor", "vagrant"])
def test_what_has_no_aarch32_says_so(target: str) -> None:
    with pytest.raises(UsageError, match="AArch32"):
        find_export(target)(source_of(MACHINES[-1]))


@pytest.mark.parametrize("machine", MACHINES)
def test_shells_take_the_script(machine: Machine, tmp_path: Path) -> None:
    path = exported(machine, "script", tmp_path, "web.sh")
    judge("sh", "-n", path)
    judge("shellcheck", "-s", "sh", "-e", "SC2016", path)  # a dollar sign in a name is meant


def test_shells_take_the_cloud_hypervisor_script(tmp_path: Path) -> None:
    path = exported(PLAIN, "cloud-hypervisor", tmp_path, "web.sh")
    judge("sh", "-n", path)
    judge("shellcheck", "-s", "sh", "-e", "SC2016", path)  # a dollar sign in a name is meant


@pytest.mark.parametrize("machine", [PLAIN, replace(RICH, disks=(replace(RICH.disks[0], path=Path("/i/a.raw")),))])
def test_cisco_s_ovf_tool_reads_the_envelope(machine: Machine, tmp_path: Path) -> None:
    path = exported(machine, "ovf", tmp_path, "web.ovf")
    judge("xmllint", "--noout", path)
    for index in range(len(machine.disks)):
        disk = tmp_path / f"web-1-disk{index}.vmdk"
        judge("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", disk, "1G")
    told = judge(Path(sys.executable).with_name("cot"), "info", path)
    assert f"{machine.vcpus}     1 GiB    {len(machine.nics)}       1  {len(machine.disks)} /     1 GiB" in told
    assert "web-1-disk0.vmdk" in told


@pytest.mark.parametrize("machine", WIDE)
def test_ruby_takes_the_vagrantfile(machine: Machine, tmp_path: Path) -> None:
    path = exported(machine, "vagrant", tmp_path, "Vagrantfile")
    assert "Syntax OK" in judge("ruby", "-wc", path)


@pytest.mark.parametrize("machine", MACHINES)
def test_hcl_takes_the_packer_template(machine: Machine, tmp_path: Path) -> None:
    path = exported(machine, "packer", tmp_path, "web.pkr.hcl")
    parsed: dict[str, Any] = hcl2.load(io.StringIO(path.read_text("utf-8")))
    assert set(parsed) >= {"source", "build"}
    text = json.dumps(parsed)
    assert "virt,gic-version=3" in text


def test_every_target_says_what_it_leaves_out() -> None:
    for target in TARGETS:
        if target == "script":  # of a machine as it is: QEMU itself is all of it
            continue
        done = find_export(target)(source_of(replace(RICH, disks=RICH.disks[1:])))
        assert done.warnings, target
        assert all("\n" not in warning for warning in done.warnings)


def test_names_with_line_ends_do_not_leave_their_comment() -> None:
    disk = DiskDevice(Path("/images/a\nb: rm -rf.raw"), "raw")
    for target in ("script", "kubevirt", "packer", "vagrant", "cloud-hypervisor"):
        text = find_export(target)(source_of(replace(PLAIN, disks=(disk,)))).text
        assert not [line for line in text.splitlines() if line.startswith("b: rm")] or target in {
            "script",
            "cloud-hypervisor",
        }
    with pytest.raises(UsageError, match="control"):
        find_export("libvirt")(source_of(replace(PLAIN, disks=(disk,))))


def test_a_script_boots_and_what_virsh_would_dump_is_an_instance(tmp_path: Path, armvm: Armvm) -> None:
    """The whole way: image → script → a guest that is up; image → libvirt XML → instance."""
    image = guest_image(tmp_path / "it's, so.img", "aarch64", mode="q")
    script = tmp_path / "run.sh"
    done = armvm("vm", "export", "--image", image, "--to", "script", "-o", script, "--memory", "512M")
    assert done.returncode == 0, done.stderr
    assert "snapshot=on" in done.stderr
    ran = subprocess.run([script], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert READY in ran.stdout, ran.stderr
    assert armvm("vm", "export", "--image", image, "--to", "script", "-o", script).returncode == 2  # it is there
    xml = tmp_path / "web.xml"
    assert armvm("vm", "export", "--image", image, "--to", "libvirt", "-o", xml, "-q").returncode == 0
    assert read_domain(xml.read_bytes(), subject="web.xml").findings == ()
    made = armvm("vm", "import", xml, "--name", "web")
    assert made.returncode == 0, made.stderr
    again = armvm("vm", "export", "web", "--to", "kubevirt")
    assert "qemu-img convert" in again.stdout
    acpi = xml.with_name("acpi.xml")
    acpi.write_text(xml.read_text().replace("<features>", "<features><acpi/>"))
    judged = armvm("vm", "import", acpi, "--judge")
    assert judged.returncode == 1
    assert "must   description.fdt" in judged.stdout
