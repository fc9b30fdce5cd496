"""Cloud Hypervisor as a backend: which program, which firmware, and the start of what was planned."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.errors import MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.machine.accelerators import AcceleratorKind, survey
from armvm.machine.capabilities import Capabilities
from armvm.machine.cloud_hypervisor import command
from armvm.machine.definition import Machine, problems, require_sound
from armvm.machine.lifecycle import Child
from armvm.printable import printable
from armvm.process import require_program, run

if TYPE_CHECKING:
    from armvm.machine.cloud_hypervisor.session import CloudHypervisorSession

_PLACES = (
    Path("/usr/share/cloud-hypervisor") / command.FIRMWARE,
    Path("/usr/local/share/cloud-hypervisor") / command.FIRMWARE,
)


@dataclass(frozen=True, slots=True)
class CloudHypervisor:
    """The Cloud Hypervisor of this host. The machine's own firmware is QEMU's: ``firmware`` takes its place."""

    program: str
    firmware: Path
    name: str = "Cloud Hypervisor"

    def capabilities(self) -> Capabilities:
        """What it can be."""
        return command.CAPABILITIES

    def problems(self, machine: Machine) -> tuple[str, ...]:
        """Why it cannot be ``machine``, one sentence each."""
        return command.problems(machine)

    def describe(self, machine: Machine) -> str:
        """The command that starts ``machine`` by hand, for a shell."""
        import shlex

        return shlex.join(command.plan(machine, program=self.program, firmware=self.firmware))

    def start(self, machine: Machine, *, hold: Sequence[int] = ()) -> CloudHypervisorSession:
        """Start ``machine``. The VM keeps the descriptors ``hold`` (locks) open as long as it lives.

        Raises UsageError for a machine that cannot be, MachineError when it does not start.
        """
        from armvm.machine.cloud_hypervisor.session import CloudHypervisorSession

        require_sound(problems(machine) + self.problems(machine))
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="armvm-")))
            api = folder / "api"
            argv = command.plan(machine, program=self.program, firmware=self.firmware, api_socket=api)
            return CloudHypervisorSession(Child(argv, inherit=tuple(hold)), api, stack.pop_all())


def find(
    state: ExecutionState, *, accelerator: AcceleratorKind | None = None, cpu: str | None = None
) -> CloudHypervisor:
    """The Cloud Hypervisor for machines of ``state``; $ARMVM_CLOUDHV_FIRMWARE names its firmware.

    Raises UsageError for what it never has, MissingError when the program, KVM or the firmware is not there.
    """
    if cpu is not None or accelerator not in {None, AcceleratorKind.KVM}:
        raise UsageError("Cloud Hypervisor runs guests on the host's own CPU, with KVM")
    program = require_program(command.PROGRAM)
    kvm = next(one for one in survey(state) if one.kind is AcceleratorKind.KVM)
    if not kvm.available or kvm.narrows:
        raise MissingError(f"Cloud Hypervisor has no {state.label} guests here: {kvm.detail}", component="KVM")
    named = os.environ.get("ARMVM_CLOUDHV_FIRMWARE")
    for place in (Path(named),) if named else _PLACES:
        if place.is_file():
            return CloudHypervisor(program, place)
    raise MissingError(
        f"there is no {command.FIRMWARE}",
        component=command.FIRMWARE,
        hint="build EDK2's ArmVirtPkg/ArmVirtCloudHv.dsc, and name it in ARMVM_CLOUDHV_FIRMWARE",
    )


def version() -> str:
    """The version of the program. Raises MissingError when it is not installed."""
    said = run(command.PROGRAM, ["--version"], timeout_seconds=20).stdout.decode(errors="replace")
    return printable(said.partition("\n")[0])
