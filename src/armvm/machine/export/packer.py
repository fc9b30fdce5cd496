"""The machine as a Packer template (HCL2): its QEMU builder starts from the disk and keeps what becomes of it."""

from __future__ import annotations

import json
import re

from armvm.errors import UsageError
from armvm.firmware.discovery import EMULATORS, FirmwareKind
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.capabilities import Capabilities, Feature, NicKind
from armvm.machine.definition import Bus, DiskInterface, HardwareDescription
from armvm.machine.export.source import Exported, Source, comment_lines, conversion, file_of, left_out
from armvm.machine.qemu.command import plan
from armvm.units import MIB

CAPABILITIES = Capabilities(
    hypervisor="a Packer template",
    buses=frozenset({Bus.PCI}),
    disk_interfaces=frozenset({DiskInterface.VIRTIO_BLK}),
    sector_sizes=frozenset({512}),
    nics=frozenset({NicKind.USER}),
    features=frozenset({Feature.VARIABLES, Feature.CLOCK}),
    why={Feature.PORT_FORWARD: "Packer forwards the port of its own ssh"},
)
"""What is said in a template here."""


def export(source: Source) -> Exported:
    """The template."""
    machine = source.machine
    warnings = list(left_out(CAPABILITIES, machine))
    if len(machine.disks) != 1:
        warnings.append("only the first disk is in it")
    if machine.variables is None and machine.firmware.keeps_variables:
        warnings.append("without a variable store, what the firmware remembers is gone when the machine ends")
    warnings.append("the guest must answer by ssh: give ssh_username and what it logs in with")
    disk = file_of(source, 0, "qcow2") if machine.disks else "disk.qcow2"
    steps = [f"Disk first: {conversion(source, 0, disk)}"] if machine.disks else []
    head = (f"{source.name}: made by armvm vm export", *warnings, *steps)
    return Exported(comment_lines(head) + _body(source, disk), (*warnings, *steps))


def _body(source: Source, disk: str) -> str:
    machine = source.machine
    label = re.sub(r"[^A-Za-z0-9_-]", "_", source.name)
    accelerator = "none" if source.accelerator is AcceleratorKind.TCG else source.accelerator.value
    rows = ",\n".join(f"    [{', '.join(map(_hcl, row))}]" for row in _rows(source))
    return f"""\
packer {{
  required_version = ">= 1.6.6"
}}

variable "ssh_username" {{
  type    = string
  default = "root"
}}

variable "ssh_private_key_file" {{
  type    = string
  default = ""
}}

source "qemu" {_hcl(label)} {{
  iso_url              = {_hcl(disk)}
  iso_checksum         = "none"
  disk_image           = true
  qemu_binary          = {_hcl(EMULATORS[machine.state])}
  machine_type         = "virt"
  accelerator          = {_hcl(accelerator)}
  headless             = true
  memory               = {machine.memory_bytes // MIB}
  cpus                 = {machine.vcpus}
  format               = "qcow2"
  net_device           = "virtio-net-pci"
  disk_interface       = "virtio"
  communicator         = "ssh"
  ssh_username         = var.ssh_username
  ssh_private_key_file = var.ssh_private_key_file == "" ? null : var.ssh_private_key_file
  ssh_timeout          = "20m"
  shutdown_command     = "poweroff"
  output_directory     = {_hcl(f"{label}-built")}
  qemuargs = [
{rows}
  ]
}}

build {{
  sources = [{_hcl(f"source.qemu.{label}")}]
}}
"""


def _rows(source: Source) -> list[list[str]]:
    """QEMU's options that take the place of Packer's own: the machine's type, its processor, its firmware."""
    machine = source.machine
    if machine.firmware.kind is FirmwareKind.BIOS:
        flash = [["-bios", _file(str(machine.firmware.code.absolute()))]]
        drives = []
    else:
        flash = []
        code = str(machine.firmware.code.absolute())
        drives = [f"if=pflash,unit=0,readonly=on,format={machine.firmware.code_format},file={_file(code)}"]
    if machine.variables is not None:
        path = str(machine.variables.path.absolute())
        drives.append(f"if=pflash,unit=1,format={machine.variables.format},file={_file(path)}")
    drives.append("if=virtio,format=qcow2,file={{ .OutputDir }}/{{ .Name }}")
    acpi = "on" if machine.description is HardwareDescription.ACPI else "off"
    argv = plan(machine, program="qemu", accelerator=source.accelerator)
    typed = next(word for word in argv if word.startswith("virt,")).partition(",acpi=")[0]
    return [
        ["-machine", f"{typed},acpi={acpi}"],
        ["-accel", _after(argv, "-accel")],
        ["-cpu", _after(argv, "-cpu")],
        ["-boot", _after(argv, "-boot")],
        ["-display", "none"],
        ["-serial", "file:console.log"],
        *flash,
        *(["-drive", drive] for drive in drives),
    ]


def _after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def _file(path: str) -> str:
    if "{{" in path:
        raise UsageError(f"Packer would take a part of this path for a template of its own: {path}")
    return path.replace(",", ",,")


def _hcl(text: str) -> str:
    """A quoted string of HCL: JSON's, in which ${ and %{ would begin a template."""
    return json.dumps(text).replace("${", "$${").replace("%{", "%%{")
