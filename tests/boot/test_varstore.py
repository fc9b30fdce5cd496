"""EDK2 itself judges our variable stores: it boots with them, keeps what is in them, and writes what we then read."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import EMULATORS, Firmware, FirmwareKind, find_firmware
from armvm.firmware.first_boot import first_boot_variables
from armvm.firmware.values import describe, parse_load_option
from armvm.firmware.variables import (
    FLASH_SIZE_BYTES,
    Variable,
    VariableStore,
    new_instance_variables,
    with_variable,
)
from armvm.firmware.varstore import READ_BYTES, new_instance_store, parse_store, serialise_store, was_cut_off
from armvm.guid import EFI_GLOBAL_VARIABLE
from tools import varstores
from tools.varstores import AREA, OWN_VENDOR, Raw, flash, journal, variable_area

pytestmark = pytest.mark.boot

DEADLINE_SECONDS = 120
OWN = Variable("ArmvmOwn", OWN_VENDOR, b"kept")


@dataclass(frozen=True)
class Booted:
    """What stood in the flash after a boot without any disk, up to the UEFI shell."""

    store: VariableStore
    raw: bytes


@contextmanager
def running(
    tmp_path: Path, content: bytes, *, state: ExecutionState, firmware: Firmware | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """An empty machine on ``content``, which is killed at the end of the block, and the file that its flash is."""
    firmware = firmware or find_firmware(state)
    path = tmp_path / "vars.fd"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(FLASH_SIZE_BYTES)
    code = (
        ["-bios", str(firmware.code)]
        if firmware.kind is FirmwareKind.BIOS
        else ["-drive", f"if=pflash,unit=0,format={firmware.code_format},readonly=on,file={firmware.code}"]
    )
    cpu = "cortex-a72" if state is ExecutionState.AARCH64 else "cortex-a15"
    argv = [EMULATORS[state], "-M", "virt,acpi=off", "-cpu", cpu, "-m", "256", "-net", "none", "-display", "none"]
    argv += ["-serial", "null", "-monitor", "none", *code, "-drive", f"if=pflash,unit=1,format=raw,file={path}"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as machine:
        try:
            yield machine, path
        finally:
            machine.kill()


def boot(
    tmp_path: Path,
    content: bytes,
    *,
    state: ExecutionState = ExecutionState.AARCH64,
    firmware: Firmware | None = None,
    until: Callable[[VariableStore], bool] | None = None,
) -> Booted:
    """Start an empty machine on ``content`` and kill it when EDK2 has written its boot order, and ``until`` holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with running(tmp_path, content, state=state, firmware=firmware) as (machine, path):
        while time.monotonic() < deadline and machine.poll() is None:
            time.sleep(0.1)
            raw = path.read_bytes()[:READ_BYTES]
            try:
                store = parse_store(raw)
            except InputError:
                continue  # in the middle of a rewrite
            if store.find("BootOrder") and store.find("Boot0001") and (until is None or until(store)):
                return Booted(store, raw)
    raise AssertionError(f"EDK2 wrote no boot order in {DEADLINE_SECONDS} s: {parse_store(raw)}")


@pytest.mark.parametrize("state", ExecutionState)
def test_edk2_takes_our_store_and_we_read_its(tmp_path: Path, state: ExecutionState) -> None:
    # BootNext is deleted by the boot manager once it has read it: the store was read, not only left alone.
    store = with_variable(parse_store(new_instance_store()), OWN)
    store = with_variable(store, Variable("BootNext", EFI_GLOBAL_VARIABLE, b"\x34\x12"))
    content = serialise_store(store.variables)
    after = boot(tmp_path, content, state=state, until=lambda now: now.find("BootNext") is None)
    assert after.store.problems == ()
    # EDK2 agrees with what we write in its place: it has changed nothing of it.
    kept = (*first_boot_variables(), *new_instance_variables(), OWN)
    assert after.store.variables[: len(kept)] == kept
    # Nothing was reformatted: what EDK2 adds stands behind our records, which did not move.
    untouched = 0x64 + sum(variable.stored_bytes for variable in kept)
    assert after.raw[:untouched] == content[:untouched]
    assert len(after.store.variables) > 10
    words = {one.name: describe(one) for one in after.store.variables}
    assert words["BootOrder"] == "0000, 0001"
    assert words["Boot0001"].startswith("EFI Internal Shell: Fv(")
    assert words["PlatformLang"] == "en"
    assert "/Uart(" in words["ConOut"]
    boot_option = after.store.find("Boot0001")
    assert boot_option is not None
    assert parse_load_option(boot_option.data).active


def test_edk2_formats_a_blank_flash_as_we_do(tmp_path: Path) -> None:
    after = boot(tmp_path, b"")
    ours = serialise_store([])
    assert after.raw[:0x64] == ours[:0x64]
    assert after.raw[AREA : 2 * AREA] == ours[AREA : 2 * AREA]
    assert after.raw[2 * AREA : 3 * AREA] == ours[2 * AREA : 3 * AREA]
    assert after.store.problems == ()


def test_what_a_kill_in_the_middle_of_a_write_leaves(tmp_path: Path) -> None:
    """Killed as soon as a variable that was there is not: EDK2 has erased the block, or is writing it again."""
    content = serialise_store([*new_instance_variables(), OWN])
    # The last record of all, but for its header. (A kill may come between its name and its data.)
    whole = OWN.name.encode("utf-16-le") + b"\0\0" + OWN.data
    for _ in range(20):
        deadline = time.monotonic() + DEADLINE_SECONDS
        with running(tmp_path, content, state=ExecutionState.AARCH64) as (machine, path), path.open("rb") as file:
            start = b""
            while not start or (whole in start and b"B\0o\0o\0t\0O\0r\0d\0e\0r" not in start):
                assert time.monotonic() < deadline
                assert machine.poll() is None
                file.seek(0)
                start = file.read(8192)
        now = path.read_bytes()[:READ_BYTES]
        if whole in now[:8192]:  # it was quicker, or is a later EDK2, which does not erase: nothing is lost
            assert not was_cut_off(content, now)
            assert parse_store(now).find(OWN.name, OWN.vendor) == OWN
            if b"B\0o\0o\0t\0O\0r\0d\0e\0r" in start:
                return
        else:
            assert was_cut_off(content, now)
            # The firmware has nothing to go by any more: this is a loss.
            assert boot(tmp_path, now).store.find(OWN.name, OWN.vendor) != OWN
            return
    raise AssertionError("twenty times the kill came too late")


def test_a_wrong_store_is_thrown_away(tmp_path: Path) -> None:
    """What we call a serious problem costs the variables: the boots above could fail."""
    content = flash(Raw(OWN.name, OWN.data), checksum_error=1)
    assert [problem.serious for problem in parse_store(content).problems] == [True]
    assert boot(tmp_path, content).store.find(OWN.name, OWN.vendor) is None


def test_edk2_finds_the_records_that_we_find(tmp_path: Path) -> None:
    """Records in every state, so many of them obsolete that EDK2 sweeps the store and keeps only what is alive."""
    obsolete = [Raw(f"Gone{number}", bytes(2000), varstores.DELETED) for number in range(126)]
    content = flash(
        Raw("Replaced", b"old", varstores.IN_TRANSITION),
        Raw("Replacing", b"old", varstores.IN_TRANSITION),
        *obsolete,
        Raw("Replacing", b"new"),
        Raw("Half", b"half", varstores.HEADER_ONLY),
        Raw("Kept", b"kept"),
    )
    before = parse_store(content)
    after = boot(tmp_path, content, until=lambda now: now.used_bytes > 1000)
    assert "Gone".encode("utf-16-le") not in after.raw[:AREA], "EDK2 did not sweep"
    assert [one.name for one in before.variables] == ["Replaced", "Replacing", "Kept"]
    assert [after.store.find(one.name, one.vendor) for one in before.variables] == list(before.variables)
    assert after.store.find("Half", OWN_VENDOR) is None
    assert after.raw[AREA + 32] != 0xFF, "the sweep left no journal"
    assert after.store.problems == ()


def test_edk2_finishes_the_rewrite_that_we_read_as_finished(tmp_path: Path) -> None:
    spare = variable_area(Raw("Own", b"new"), Raw("Other", b"new"))
    content = flash(Raw("Own", b"old"), working=journal((0b100, 0b101)), spare=spare)
    before = parse_store(content)
    assert [problem.code for problem in before.problems] == ["interrupted-rewrite"]
    after = boot(tmp_path, content)
    assert after.store.variables[:2] == before.variables
    assert [one.data for one in before.variables] == [b"new", b"new"]
    assert after.store.problems == ()


def test_a_small_firmware_file_keeps_its_variables_too(tmp_path: Path) -> None:
    firmware = find_firmware(ExecutionState.AARCH64, override=Path("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"))
    assert (firmware.kind, firmware.keeps_variables) == (FirmwareKind.BIOS, True)
    after = boot(tmp_path, serialise_store([OWN]), firmware=firmware)
    assert after.store.variables[0] == OWN
