"""The machine as a Vagrantfile for two providers: vagrant-qemu (any host) and vagrant-libvirt."""

from __future__ import annotations

from armvm.execution import ExecutionState
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.capabilities import Capabilities, Feature, NicKind
from armvm.machine.definition import (
    Bus,
    Console,
    DiskInterface,
    HardwareDescription,
    Machine,
    UserNetwork,
    VariablesFile,
    Writes,
)
from armvm.machine.export.source import Exported, Source, comment_lines, conversion, file_of, left_out
from armvm.units import MIB

CAPABILITIES = Capabilities(
    hypervisor="a Vagrantfile",
    states=frozenset({ExecutionState.AARCH64}),
    consoles=frozenset({Console.PL011}),
    buses=frozenset({Bus.PCI}),
    disk_interfaces=frozenset({DiskInterface.VIRTIO_BLK}),
    sector_sizes=frozenset({512}),
    nics=frozenset({NicKind.USER}),
    features=frozenset({Feature.PORT_FORWARD, Feature.VARIABLES, Feature.RNG, Feature.BALLOON}),
    why={ExecutionState.AARCH32: "its providers know aarch64 and x86_64"},
)
"""What is said in a Vagrantfile here."""

_CPU = "cortex-a72"


def export(source: Source) -> Exported:
    """The Vagrantfile. Raises UsageError for an AArch32 machine."""
    machine = source.machine
    warnings = list(left_out(CAPABILITIES, machine))
    if len(machine.disks) != 1:
        warnings.append("only the first disk is in it")
    if any(disk.writes is not Writes.REFUSED for disk in machine.disks):
        warnings.append("vagrant-libvirt lets the guest write to the disk itself; vagrant-qemu to a copy of it")
    warnings.append("plugins: vagrant plugin install vagrant-qemu (or vagrant-libvirt)")
    disk = file_of(source, 0, "qcow2") if machine.disks else ""
    steps = [f"Disk first: {conversion(source, 0, disk)}"] if machine.disks else []
    body = _body(source, disk)
    head = ("-*- mode: ruby -*-", f"{source.name}: made by armvm vm export", *warnings, *steps)
    return Exported(comment_lines(head) + body, (*warnings, *steps))


def _body(source: Source, disk: str) -> str:
    machine = source.machine
    kvm = source.accelerator is not AcceleratorKind.TCG
    version = machine.gic.value if machine.gic else ("host" if kvm else 3)
    acpi = "on" if machine.description is HardwareDescription.ACPI else "off"
    cpu = "host" if kvm else _CPU
    code = str(machine.firmware.code.absolute())
    variables = machine.variables or VariablesFile(machine.firmware.code.with_name("VARS.fd"), "raw")
    flash = [
        f"if=pflash,unit=0,readonly=on,format={machine.firmware.code_format},file={_doubled(code)}",
        f"if=pflash,unit=1,format={variables.format},file={_doubled(str(variables.path.absolute()))}",
    ]
    extra = [word for drive in flash[: 2 if machine.variables else 1] for word in ("-drive", drive)]
    lines = [
        "Vagrant.configure('2') do |config|",
        f"  config.vm.define {ruby(source.name)}",
        "  config.vm.synced_folder '.', '/vagrant', disabled: true",
        *_forwards(machine),
        "",
        "  config.vm.provider :qemu do |qe|",
        "    qe.arch = 'aarch64'",
        f"    qe.machine = {ruby(f'virt,gic-version={version},acpi={acpi},accel={source.accelerator.value}')}",
        f"    qe.cpu = {ruby(cpu)}",
        f"    qe.smp = {ruby(str(machine.vcpus))}",
        f"    qe.memory = {ruby(f'{machine.memory_bytes // MIB}M')}",
        "    qe.net_device = 'virtio-net-pci'",
        f"    qe.image_path = File.expand_path({ruby(disk)}, __dir__)",
        "    qe.firmware_format = nil # it is in the next line",
        f"    qe.extra_qemu_args = [{', '.join(map(ruby, extra))}]",
        "  end",
        "",
        "  config.vm.provider :libvirt do |lv|",
        f"    lv.driver = {ruby('kvm' if kvm else 'qemu')}",
        "    lv.machine_arch = 'aarch64'",
        "    lv.machine_type = 'virt'",
        f"    lv.cpu_mode = {ruby('host-passthrough' if kvm else 'custom')}",
        *([] if kvm else [f"    lv.cpu_model = {ruby(cpu)}"]),
        f"    lv.cpus = {machine.vcpus}",
        f"    lv.memory = {machine.memory_bytes // MIB}",
        f"    lv.features = [{', '.join(map(ruby, ['acpi'] if acpi == 'on' else []))}]",
        f"    lv.loader = {ruby(code)}",
        *([f"    lv.nvram = {ruby(str(variables.path.absolute()))}"] if machine.variables else []),
        "    lv.disk_bus = 'virtio'",
        f"    lv.storage :file, path: {ruby(disk)}, type: 'qcow2', bus: 'virtio', allow_existing: true",
        "    lv.boot 'hd'",
        "    lv.graphics_type = 'none'",
        *(["    lv.random model: 'random'"] if machine.rng else []),
        "  end",
        "end",
    ]
    return "\n".join(lines) + "\n"


def _forwards(machine: Machine) -> list[str]:
    """The port forwards; that of the guest's ssh takes the place of the one that Vagrant makes by itself."""
    return [
        f"  config.vm.network 'forwarded_port', guest: {pair.guest_port}, host: {pair.host_port}, host_ip: '127.0.0.1'"
        + (", id: 'ssh'" if pair.guest_port == 22 else "")
        for nic in machine.nics
        if isinstance(nic, UserNetwork)
        for pair in nic.forwards
    ]


def ruby(text: str) -> str:
    """A Ruby string in single quotes, in which nothing but the quote and the backslash means anything."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _doubled(path: str) -> str:
    return path.replace(",", ",,")
