"""``armvm probe run`` on real VMs: a good one conforms, and each that is crippled on purpose fails where it is."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import DEFAULT_MEMORY_BYTES, Machine
from armvm.machine.qemu import command
from armvm.machine.qemu.backend import Qemu
from armvm.platform import trial
from armvm.platform.check import check_platform
from armvm.platform.host import expected_machine
from armvm.platform.trial import run_trial
from armvm.process import require_program
from armvm.spec.verdict import Level, Report, Verdict
from conftest import Armvm
from tools.kernels import debian_kernel

AARCH64, AARCH32 = ExecutionState
TIME = 1_700_000_000


def _kernel(state: ExecutionState) -> list[str]:
    kernel = debian_kernel(state)
    return ["--kernel", str(kernel.image), "--modules", str(kernel.modules)]


def _probe(armvm: Armvm, *arguments: str | Path, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings of ``armvm probe run`` by requirement."""
    result = armvm("probe", "run", "--format", "json", *arguments, timeout_seconds=280)
    assert result.returncode == code, result.stderr + result.stdout
    return {finding["requirement"]: finding for finding in json.loads(result.stdout)["reports"][0]["findings"]}


def _failed(findings: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, finding in findings.items() if finding["verdict"] == "fail"}


def _with(findings: dict[str, dict[str, Any]], verdict: str) -> set[str]:
    return {name for name, finding in findings.items() if finding["verdict"] == verdict}


def test_our_vm_conforms_whole(armvm: Armvm, tmp_path: Path) -> None:
    """Two runs and a reset, a power cycle, a kill, a second instance, AArch32, Linux, hotplug: everything holds."""
    log = tmp_path / "probe.log"
    findings = _probe(armvm, *_kernel(AARCH64), "--log", log)
    assert _with(findings, "pass") == set(findings)
    persist = json.dumps(findings["firmware.variables-persist"])
    assert all(word in persist for word in ("reset", "power", "kill"))
    # What was kept is what `probe read` judges, as far as the console alone can show.
    read = armvm("probe", "read", "--format", "json", log)
    assert read.returncode == 0, read.stdout
    assert not [f for f in json.loads(read.stdout)["reports"][0]["findings"] if f["verdict"] == "fail"]


@pytest.mark.parametrize(("gic", "vcpus"), [pytest.param("2", "1", marks=pytest.mark.slow), ("3", "8")])
def test_other_shapes_of_it_conform(armvm: Armvm, gic: str, vcpus: str) -> None:
    findings = _probe(armvm, "--gic", gic, "--vcpus", vcpus, *_kernel(AARCH64))
    assert _with(findings, "pass") == set(findings)
    assert f"GICv{gic}" in findings["platform.gic"]["message"]


def test_aarch32_conforms_and_what_no_guest_can_show_is_unknown(armvm: Armvm) -> None:
    findings = _probe(armvm, "--arch", "aarch32", "--gic", "2", *_kernel(AARCH32))
    assert _with(findings, "unknown") == {"platform.hotplug-network"}
    assert "no PCI hotplug" in findings["platform.hotplug-network"]["message"]
    assert not _failed(findings)
    assert "virtio-scsi" in json.dumps(findings["platform.hotplug-block"])


@pytest.mark.slow
@pytest.mark.parametrize("gic", ["2", "3"])
def test_eight_vcpus_in_aarch32_conform(armvm: Armvm, gic: str) -> None:
    findings = _probe(armvm, "--arch", "aarch32", "--gic", gic, "--vcpus", "8", *_kernel(AARCH32))
    assert not _failed(findings)
    assert findings["description.mainline-boots"]["verdict"] == "pass"


def test_without_a_kernel_what_only_linux_shows_is_unknown(armvm: Armvm) -> None:
    findings = _probe(armvm)
    assert not _failed(findings)
    assert {"description.mainline-boots", "platform.hotplug-block"} <= _with(findings, "unknown")


def test_acpi_in_place_of_a_device_tree(armvm: Armvm) -> None:
    assert _failed(_probe(armvm, "--hardware-description", "acpi", code=1)) == {"description.fdt"}


def test_no_hotplug_port(armvm: Armvm) -> None:
    findings = _probe(armvm, "--hotplug-ports", "0", *_kernel(AARCH64))
    assert _failed(findings) == {"platform.hotplug-block", "platform.hotplug-network"}


def test_u_boot_keeps_variables_in_a_file_on_the_esp(armvm: Armvm) -> None:
    findings = _probe(armvm, "--firmware", "/usr/lib/u-boot/qemu_arm64/u-boot.bin", code=1)
    assert "firmware.variables-per-instance" in _failed(findings)
    assert "ubootefi.var" in json.dumps(findings["firmware.variables-per-instance"])
    assert findings["firmware.uefi"]["verdict"] == "pass"
    assert findings["platform.timer"]["verdict"] == "pass"


@dataclass(frozen=True, slots=True)
class Crippled(Qemu):
    """A QEMU that gets more, or other, arguments than were planned."""

    more: tuple[str, ...] = ()

    def plan(self, machine: Machine, channels: command.Channels | None = None, *, paused: bool = False) -> list[str]:
        """The planned command with the crippling ones behind it."""
        return [*super(Crippled, self).plan(machine, channels, paused=paused), *self.more]


def _judge(*more: str) -> tuple[Report, trial.TrialResult]:
    machine = Machine(AARCH64, find_firmware(AARCH64), (), DEFAULT_MEMORY_BYTES[AARCH64])
    qemu = Crippled(require_program("qemu-system-aarch64"), AcceleratorKind.TCG, more=tuple(more))
    result = run_trial(machine, qemu, kernel=None, timestamp=TIME)
    return check_platform(result.observation, machine=expected_machine(machine)), result


def _failures(report: Report) -> set[str]:
    return {finding.requirement for finding in report.failed(Level)}


def _tree(tmp_path: Path, *edits: Sequence[str]) -> Path:
    """QEMU's own device tree with ``fdtput`` edits."""
    path = tmp_path / "edited.dtb"
    base = "qemu-system-aarch64 -M virt,gic-version=3,acpi=off,dumpdtb={} -cpu cortex-a72 -smp 2 -m 2048 -nodefaults"
    subprocess.run(base.format(path).split(), check=True, capture_output=True, timeout=60)
    for edit in edits:
        subprocess.run(["fdtput", *edit[:1], str(path), *edit[1:]], check=True, timeout=60)
    return path


def test_a_cpu_that_is_not_described(tmp_path: Path) -> None:
    report, _ = _judge("-dtb", str(_tree(tmp_path, ("-r", "/cpus/cpu@1"))))
    assert "description.fdt-complete" in _failures(report)
    assert report.conforms is False


def test_a_real_time_clock_that_is_not_there(tmp_path: Path) -> None:
    report, _ = _judge("-dtb", str(_tree(tmp_path, ("-r", "/pl031@9010000"))))
    assert "firmware.rtc" in _failures(report)


def test_a_volatile_variable_store(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = trial._Trial._instance

    def forgetting(self: trial._Trial, image: Path, name: str) -> Machine:
        return replace(keeping(self, image, name), variables=None)

    monkeypatch.setattr(trial._Trial, "_instance", forgetting)
    report, _ = _judge()
    assert _failures(report) == {"firmware.variables-persist"}


def test_what_it_reports_is_what_the_store_and_the_machine_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from armvm.firmware.varstore import parse_store

    stores: dict[str, bytes] = {}
    sitting = trial._Trial._sit

    def spying(self: trial._Trial, machine: Machine, instance: str, *rest: Any, **named: Any) -> Any:
        heard = sitting(self, machine, instance, *rest, **named)
        assert machine.variables is not None
        stores[instance] = machine.variables.path.read_bytes()[: 4 << 20]
        return heard

    monkeypatch.setattr(trial._Trial, "_sit", spying)
    report, result = _judge()
    assert not _failures(report)
    run = next(entry.run for entry in result.observation.efi_runs if entry.instance == "first" and entry.run.memory)
    kept = parse_store(stores["first"], subject="store").variables
    names = {variable.name for variable in kept}
    assert "ArmvmProbe" in names
    # Every boot variable that the probe saw and that is non-volatile stands in the store, with the same bytes.
    for name, data in run.boot_variables.items():
        found = [variable for variable in kept if variable.name == name]
        # BootOrder and its kind may change from run to run; what a run saw of a kept one is what was kept then.
        assert not found or name.startswith("Boot") or found[0].data[:512] == data
    assert {"BootOrder"} <= set(run.boot_variables) & names
    assert run.memory is not None
    ram = sum(region.size_bytes for region in run.memory.ranges if region.kind in range(1, 8))
    assert 0.9 < ram / DEFAULT_MEMORY_BYTES[AARCH64] <= 1


def test_the_image_and_its_hash_stay(armvm: Armvm, tmp_path: Path) -> None:
    """A probe disk that somebody else boots read-only through an overlay is judged from the console alone."""
    image = tmp_path / "probe.img"
    assert armvm("probe", "image", "-q", "-o", image).returncode == 0
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    log = tmp_path / "boot.log"
    booted = armvm("run", image, "--timeout", "120", "--log", log, "-q", timeout_seconds=150)
    assert booted.returncode == 0, booted.stderr
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before
    read = json.loads(armvm("probe", "read", "--format", "json", log).stdout)["reports"][0]
    verdicts = {f["requirement"]: f["verdict"] for f in read["findings"]}
    assert verdicts["firmware.variables-persist"] == "pass"
    # And a disk that keeps what the probe writes says the same.
    written = armvm("run", image, "--writable", "--timeout", "120", "-q", timeout_seconds=150)
    assert written.returncode == 0, written.stderr
    on_disk = json.loads(armvm("probe", "read", "--format", "json", image).stdout)["reports"][0]
    assert {f["requirement"] for f in on_disk["findings"] if f["verdict"] == "fail"} == set()
    assert Verdict.PASS.value in {f["verdict"] for f in on_disk["findings"]}
