"""The EFI probe in real virtual machines: what it says is true, and it comes to its end whatever breaks."""

from __future__ import annotations

import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from armvm.firmware.variables import FLASH_SIZE_BYTES
from armvm.firmware.varstore import new_instance_store, parse_store
from armvm.units import MIB
from tools.boot_images import read_esp_file
from tools.efi_probe import MAC, TESTS, ProbeMachine, Run, decode, probe_image, with_machine
from tools.plain_qemu import EVERY_PLATFORM, PLATFORMS, Platform

pytestmark = pytest.mark.boot

PAGE = 4096
COUNTER_HZ = 62_500_000
MMIO_TYPES = {11, 12}
SUCCESS = "0x0"
WRITE_PROTECTED = "0x8000000000000008"
NEW_YEARS_EVE = "2031-12-31T23:10:00"
DATA_DISK = ("-device", "virtio-blk-pci,drive=data", "-drive", "if=none,id=data,driver=null-co,size=7M,read-zeroes=on")
NETWORK = (
    *("-netdev", "user,id=net0", "-device"),
    f"virtio-net-pci,netdev=net0,romfile=,mac={':'.join(MAC[i : i + 2] for i in range(0, 12, 2))}",
)


def assert_whole(run: Run, **other: str) -> None:
    """Every test ran, in its order, and all went well but those in ``other``."""
    assert [record["id"] for record in run.all("test-begin")] == list(TESTS)
    assert list(run.results) == list(TESTS)
    assert run.results == dict.fromkeys(TESTS, "done") | other
    assert run.records[-1]["t"] == "complete"
    assert run.one("complete")["tests"] == len(TESTS)


def is_edk2(platform: Platform) -> bool:
    return platform.name.startswith("edk2")


def state_of(image: Path) -> dict[str, str]:
    content = read_esp_file(image, "ARMVM/STATE.TXT")
    assert len(content) == 512
    return dict(line.split("=") for line in content.decode().split())


def tree_lines(blob: bytes, folder: Path) -> set[str]:
    """The properties and nodes of a device tree in dtc's words, but for what each boot has anew."""
    path = folder / "tree.dtb"
    path.write_bytes(blob)
    done = subprocess.run(["dtc", "-q", "-I", "dtb", "-O", "dts", path], check=True, capture_output=True, timeout=60)
    return {line.strip() for line in done.stdout.decode().splitlines() if "seed" not in line and line.strip()}


def check_system(run: Run, platform: Platform) -> None:
    wide = platform.state is ExecutionState.AARCH64
    system, cpu = run.one("system"), run.one("cpu")
    assert system["vendor"] == ("EDK II" if is_edk2(platform) else "Das U-Boot")
    assert system["uefi_revision"] >= 0x20046
    assert system["crc_ok"]
    assert cpu["faults"] == []
    assert (cpu.get("el"), cpu.get("mode")) == ((1, None) if wide else (None, 0x13))
    registers = cpu["registers"]
    assert registers["MIDR_EL1" if wide else "MIDR"].startswith("0x410fd08" if wide else "0x414fc0f")
    assert int(registers["CNTFRQ_EL0" if wide else "CNTFRQ"], 16) == COUNTER_HZ
    assert len(run.all("table")) >= 3
    assert not run.one("acpi")["present"]
    maker = "EFI Development Kit" if is_edk2(platform) else "U-Boot"
    assert run.one("smbios")["strings"]["bios_vendor"].startswith(maker)


def check_devices(run: Run, platform: Platform, image: Path) -> None:
    disks = [disk for disk in run.all("block") if not disk["partition"]]
    assert [disk["last_block"] for disk in disks if not disk["own"]] == [7 * MIB // 512 - 1]
    assert [disk["last_block"] for disk in disks if disk["own"]] == [image.stat().st_size // 512 - 1]
    assert all(disk["block_size"] == 512 and disk["present"] and not disk["read_only"] for disk in run.all("block"))
    assert sum(disk["own"] for disk in run.all("block")) == 2, "the disk and its ESP"
    if is_edk2(platform):  # U-Boot 2023.01 reads another address than the card has
        assert [card["mac_hex"] for card in run.all("network")] == [MAC]
    functions = [function for record in run.all("pci-function") for function in record["functions"]]
    assert len(functions) == run.one("pci")["count"]
    found = sorted((vendor, device) for _, vendor, device, *_ in functions)
    assert found == [(0x1AF4, 0x1000), (0x1AF4, 0x1001), (0x1AF4, 0x1001), (0x1B36, 0x0008)]
    assert run.one("pci")["method"] == ("pci-io" if is_edk2(platform) else "ecam")
    assert run.one("console")["out"]


def check_memory(run: Run) -> None:
    ranges = [one for record in run.all("memory-range") for one in record["ranges"]]
    assert len(ranges) == run.one("memory")["count"]
    real = [(int(start, 16), pages) for kind, start, pages, _ in ranges if kind not in MMIO_TYPES]
    assert sum(pages for _, pages in real) * PAGE == 1024 * MIB
    assert min(real)[0] == 0x4000_0000


def check_variables(first: Run, second: Run, platform: Platform) -> None:
    tests = [run.one("variable-test") for run in (first, second)]
    assert all(test["write_status"] == SUCCESS and test["read_back_ok"] for test in tests)
    assert [test["found"] for test in tests] == [None, tests[0]["written"]]
    assert [test["written"]["run"] for test in tests] == [1, 2]
    assert tests[0]["written"]["nonce_hex"] != tests[1]["written"]["nonce_hex"]
    assert first.one("variable-store")["status"] == SUCCESS
    assert first.one("variable-store")["file_store"] is not is_edk2(platform)
    names = {record["name"] for record in second.all("variable-boot")}
    assert names >= ({"BootOrder", "BootCurrent", "ConOut"} if is_edk2(platform) else {"SecureBoot", "SetupMode"})


def check_time(first: Run, second: Run) -> None:
    rtc, counter = first.one("rtc"), first.one("counter")
    assert rtc["time"][:4] == [2031, 12, 31, 23]
    assert rtc["set_read"][:4] == [2032, 1, 1, 0], "one hour on, over the end of the year"
    assert {rtc["get_status"], rtc["set_status"], rtc["restore_status"]} == {SUCCESS}
    assert second.one("rtc")["time"][:4] == [2031, 12, 31, 23], "it was set back"
    assert 1000 <= rtc["elapsed_ms"] <= 2500
    (one, at_one, _), (other, at_other, _) = counter["samples"]
    assert at_other - at_one == 1
    assert datetime.fromtimestamp(at_one, UTC).strftime("%Y-%m-%d %H") == "2031-12-31 23"
    assert 0.8 < (int(other, 16) - int(one, 16)) / COUNTER_HZ < 1.2
    assert counter["frequency"] == COUNTER_HZ
    assert counter["monotonic"]
    assert counter["stall_ticks"] >= counter["stall_us"] * COUNTER_HZ // 1_000_000


def check_interrupts(run: Run, version: int) -> None:
    gic, timer = run.one("gic"), run.one("timer")
    assert (gic["description"], gic["pidr2"], gic["arch"]) == (f"v{version}", f"0x{version}b", version)
    assert gic["distributor"] == "0x8000000"
    assert ("icc_sre" in gic) == (version == 3)
    assert not gic["fault"]
    assert timer["method"] == ("gicr-ispendr" if version == 3 else "gicd-ispendr")
    assert timer["istatus"]
    assert timer["pending"]
    assert timer["restored"]
    assert timer["event"]["fired"]


def check_tree(run: Run, machine: ProbeMachine, folder: Path) -> None:
    fdt, blob = run.one("fdt"), run.fdt
    assert fdt["header_ok"]
    assert fdt["used"] == len(blob) == struct.unpack_from(">I", blob, 4)[0]
    assert blob == read_esp_file(machine.image, "ARMVM/FDT.DTB")
    real, seen = (tree_lines(tree, folder) for tree in (machine.dumped_fdt(), blob))
    # What firmware changes: EDK2 hides what it keeps for itself, U-Boot says in /chosen how it booted.
    assert {line for line in seen - real if "status" not in line and "u-boot" not in line} == set()
    assert real - seen == set()


@EVERY_PLATFORM
def test_two_runs_tell_the_truth(platform: Platform, tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img")
    options = (*DATA_DISK, *NETWORK, "-rtc", f"base={NEW_YEARS_EVE}")
    machine = ProbeMachine(platform, image, options, cpus=2)
    first, second = decode(machine.run())
    for number, run in enumerate((first, second), 1):
        assert_whole(run)
        begin = run.one("begin")
        assert (begin["wire"], begin["run"], begin["state"]) == (1, number, platform.state.value)
        assert begin["media"] == {"file": True, "status": SUCCESS}
        assert decode(read_esp_file(image, f"ARMVM/RUN0000{number}.TXT")) == [run]
    assert [run.one("begin")["reason"] for run in (first, second)] == ["first", "reset"]
    assert [run.one("complete")["next"] for run in (first, second)] == ["reset", "shutdown"]
    assert state_of(image) == {"run": "2", "test": "", "crashed": "", "complete": "2", "next": "shutdown"}

    check_system(first, platform)
    check_devices(first, platform, image)
    check_memory(first)
    check_variables(first, second, platform)
    check_time(first, second)
    check_interrupts(first, 3 if platform.state is ExecutionState.AARCH64 else 2)  # as plain_qemu has it
    check_tree(second, machine, tmp_path)


@pytest.mark.parametrize(
    ("name", "machine", "cpus", "disk"),
    [
        ("edk2-64", "virt,acpi=on,gic-version=3", 1, "virtio-blk-pci"),
        ("edk2-64", "virt,acpi=on,gic-version=2", 2, "virtio-blk-device"),
        ("edk2-64", "virt,acpi=off,gic-version=2", 2, "virtio-blk-pci"),
        ("edk2-64", "virt,acpi=off,gic-version=3", 1, "virtio-blk-device"),
        ("edk2-32", "virt,acpi=off,gic-version=3", 2, "virtio-blk-device"),
        ("uboot-64", "virt,acpi=off,gic-version=2", 1, "virtio-blk-device"),
        ("uboot-32", "virt,acpi=off,gic-version=3", 2, "virtio-blk-pci"),
        ("edk2-64", "virt,acpi=off,gic-version=3,virtualization=on", 1, "virtio-blk-pci"),
        ("uboot-64", "virt,acpi=off,gic-version=3,virtualization=on", 1, "virtio-blk-pci"),
    ],
)
def test_each_machine_is_seen_as_it_is(name: str, machine: str, cpus: int, disk: str, tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img", "runs=1\n")
    (run,) = decode(ProbeMachine(with_machine(name, machine), image, cpus=cpus, disk=disk, memory_mib=512).run())
    assert_whole(run, network="skipped")
    version = int(machine.split("gic-version=")[1][0])
    check_interrupts(run, version)
    acpi = "acpi=on" in machine
    assert run.one("fdt")["present"] is not acpi
    assert run.one("acpi")["present"] is acpi
    if acpi:
        tables = run.one("acpi")["tables"]
        assert {"FACP", "DSDT", "APIC", "GTDT", "SPCR"} <= {table["signature"] for table in tables}
        assert all(table["checksum_ok"] for table in tables)
        assert run.one("gic")["madt_version"] == version
    if name.endswith("64"):
        assert run.one("cpu")["el"] == (2 if "virtualization" in machine else 1)


def test_variables_hold_the_state_where_the_disk_cannot_be_written(tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img")
    before = image.read_bytes()
    first, second = decode(ProbeMachine(PLATFORMS["edk2-64"], image, read_only=True).run())
    assert_whole(first, network="skipped")
    assert first.one("begin")["media"] == {"file": False, "status": WRITE_PROTECTED}
    assert second.one("begin")["run"] == 2
    assert second.one("begin")["reason"] == "reset"
    assert second.one("variable-test")["found"] == first.one("variable-test")["written"]
    assert second.one("complete")["next"] == "shutdown"
    assert image.read_bytes() == before


def test_no_endless_resets_where_nothing_lasts(tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img")
    (run,) = decode(ProbeMachine(PLATFORMS["uboot-64"], image, read_only=True).run())
    assert_whole(run, network="skipped")
    assert run.one("complete")["next"] == "shutdown"


def test_the_variable_survives_a_power_cycle(tmp_path: Path) -> None:
    variables = tmp_path / "vars.fd"
    variables.write_bytes(new_instance_store())
    with variables.open("r+b") as file:
        file.truncate(FLASH_SIZE_BYTES)
    image = probe_image(tmp_path / "probe.img", "runs=1\n")
    machine = ProbeMachine(PLATFORMS["edk2-64"], image, variables=variables)
    (first,) = decode(machine.run())
    (second,) = decode(machine.run())
    assert [run.one("begin")["reason"] for run in (first, second)] == ["first", "again"]
    assert first.one("variable-test")["found"] is None
    assert second.one("variable-test")["found"] == first.one("variable-test")["written"]
    written = second.one("variable-test")["written"]
    (kept,) = (variable for variable in parse_store(variables.read_bytes()).variables if variable.name == "ArmvmProbe")
    assert kept.data == struct.pack("<I", written["run"]) + bytes.fromhex(written["nonce_hex"])


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("edk2-64", "virt,acpi=off,gic-version=3"),
        ("edk2-64", "virt,acpi=off,gic-version=3,virtualization=on"),
        ("uboot-64", "virt,acpi=off,gic-version=3"),
    ],
)
def test_an_exception_in_a_test_is_caught(name: str, machine: str, tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img", "runs=1\ncrash=fdt:fault\n")
    (run,) = decode(ProbeMachine(with_machine(name, machine), image).run())
    assert_whole(run, network="skipped", fdt="fault")
    (end,) = (record for record in run.all("test-end") if record["id"] == "fdt")
    assert int(end["esr"], 16) >> 26 == 0, "exception class: unknown, as of an undefined instruction"
    assert int(end["elr"], 16)
    assert run.one("timer")["event"]["fired"], "firmware's interrupts go on"


def test_a_test_that_hangs_is_left_out_after_the_hosts_reset(tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img", "crash=pci\nskip=smbios,tables\n")
    machine = ProbeMachine(PLATFORMS["edk2-64"], image)
    hung, first, second = decode(machine.run(reset_at='{"t":"test-begin","id":"pci"}\r\n'))
    assert list(hung.results) == list(TESTS[: TESTS.index("pci")])
    for run in (first, second):
        assert_whole(run, network="skipped", pci="crashed", smbios="skipped", tables="skipped")
        assert run.one("complete")["crashed"] == ["pci"]
        assert not run.all("pci")
    assert [run.one("begin")["reason"] for run in (hung, first, second)] == ["first", "crash", "reset"]
    assert second.one("variable-test")["found"] == first.one("variable-test")["written"]
    assert state_of(image)["crashed"] == "pci"


@pytest.mark.parametrize("name", ["edk2-64", "edk2-32"])
def test_a_test_that_firmware_dies_of_is_left_out_after_a_new_start(name: str, tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img", "runs=1\ncrash=cpu:abort\n")
    machine = ProbeMachine(PLATFORMS[name], image)
    said = machine.run(stop_at="Synchronous Exception" if name == "edk2-64" else "Undefined OpCode Exception")
    (died,) = decode(said)
    assert list(died.results) == ["system"]
    (run,) = decode(machine.run())
    assert run.one("begin")["reason"] == "crash"
    assert_whole(run, network="skipped", cpu="crashed")


@pytest.mark.parametrize("name", ["uboot-64", "uboot-32"])
def test_u_boot_resets_by_itself(name: str, tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img", "runs=1\ncrash=gic:abort\n")
    died, run = decode(ProbeMachine(PLATFORMS[name], image).run())
    assert "gic" not in died.results
    assert run.one("begin")["reason"] == "crash"
    assert_whole(run, network="skipped", gic="crashed")


def test_the_probe_can_return_to_firmware(tmp_path: Path) -> None:
    image = probe_image(tmp_path / "probe.img", "runs=1\nend=return\n")
    said = ProbeMachine(PLATFORMS["edk2-64"], image).run(stop_at="<Enter>=Select Entry")  # its menu
    (run,) = decode(said)
    assert_whole(run, network="skipped")
    assert run.one("complete")["next"] == "return"
