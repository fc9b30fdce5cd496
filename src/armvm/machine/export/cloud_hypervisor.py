"""The machine as a shell script that runs Cloud Hypervisor on an ARM host with KVM."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from armvm.machine.cloud_hypervisor.command import CAPABILITIES, FIRMWARE, plan
from armvm.machine.definition import Writes, disk_names
from armvm.machine.export.source import Exported, Source, comment_lines, left_out

_PLACE = Path("/usr/share/cloud-hypervisor") / FIRMWARE


def export(source: Source) -> Exported:
    """The script; $FIRMWARE names another firmware. Raises UsageError for an AArch32 machine."""
    machine = source.machine
    warnings = list(left_out(CAPABILITIES, machine))
    kept = tuple(
        replace(disk, writes=Writes.KEPT, name=name) if disk.writes is Writes.DISCARDED else replace(disk, name=name)
        for name, disk in zip(disk_names(machine), machine.disks, strict=True)
    )
    if any(disk.writes is Writes.DISCARDED for disk in machine.disks):
        warnings.append("the guest writes to the image itself: run it on a copy")
    warnings.append(f"{FIRMWARE} is EDK2's ArmVirtCloudHv build (github.com/cloud-hypervisor/edk2); QEMU's will not do")
    argv = [shlex.quote(word) for word in plan(replace(machine, disks=kept), firmware=_PLACE)]
    argv[argv.index(str(_PLACE))] = '"$firmware"'
    words = " ".join(f"\\\n  {word}" if word.startswith("--") else word for word in argv)
    text = (
        "#!/bin/sh\n"
        + comment_lines((f"{source.name}: made by armvm vm export, for arm64 hosts with KVM", *warnings))
        + f'set -eu\n\nfirmware=${{FIRMWARE:-{_PLACE}}}\nexec {words} "$@"\n'
    )
    return Exported(text, tuple(warnings))
