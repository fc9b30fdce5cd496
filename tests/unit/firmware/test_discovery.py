from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from armvm.errors import InputError, MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.firmware import discovery
from armvm.firmware.discovery import FirmwareKind, find_firmware, skipped_descriptors
from armvm.firmware.varstore import new_instance_store
from armvm.units import MIB

A64_BRANCH = bytes.fromhex("00040014")
A32_BRANCH = bytes.fromhex("fe0300ea")


def edk2(path: Path, branch: bytes = A64_BRANCH, *, size: int = 64 * MIB, volume_at: int = 0x1028) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(branch.ljust(volume_at, b"\xff") + b"_FVH" + b"code" * 1000)
        file.truncate(size)
    return path


def blank(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


class System:
    """A system with nothing but what a test puts into it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.descriptors = root / "firmware"
        self.descriptors.mkdir()
        monkeypatch.setattr(discovery, "descriptor_folders", lambda _shares: (self.descriptors,))
        monkeypatch.setattr(discovery, "_PLACES", dict.fromkeys(ExecutionState, ()))
        monkeypatch.setenv("PATH", str(root / "bin"))
        monkeypatch.setattr("armvm.process._SBIN", "")

    def describe(self, name: str, code: Path, **changes: Any) -> None:
        content = {
            "description": name,
            "interface-types": ["uefi"],
            "mapping": {
                "device": "flash",
                "executable": {"filename": str(code), "format": "raw"},
                "nvram-template": {"filename": str(self.root / "vars.fd"), "format": "raw"},
            },
            "targets": [{"architecture": "aarch64", "machines": ["virt-*"]}],
            "features": [],
            "tags": [],
            **changes,
        }
        (self.descriptors / name).write_text(json.dumps(content))


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    blank(tmp_path / "vars.fd")
    return System(tmp_path, monkeypatch)


class TestDescribed:
    def test_the_first_by_name(self, system: System) -> None:
        system.describe("60-b.json", edk2(system.root / "b.fd"))
        system.describe("50-a.json", edk2(system.root / "a.fd"))
        firmware = find_firmware(ExecutionState.AARCH64)
        assert (firmware.code, firmware.source) == (system.root / "a.fd", "50-a.json")
        assert (firmware.kind, firmware.code_format) == (FirmwareKind.PFLASH, "raw")
        assert firmware.vars_template == system.root / "vars.fd"

    def test_files_that_are_not_there_do_not_count(self, system: System) -> None:
        system.describe("50-a.json", system.root / "absent.fd")
        system.describe("60-b.json", edk2(system.root / "b.fd"))
        assert find_firmware(ExecutionState.AARCH64).source == "60-b.json"

    def test_secure_boot_is_for_those_who_ask(self, system: System) -> None:
        system.describe("40-s.json", edk2(system.root / "s.fd"), features=["secure-boot", "enrolled-keys"])
        with pytest.raises(MissingError):
            find_firmware(ExecutionState.AARCH64)
        system.describe("50-s.json", edk2(system.root / "plain.fd"), features=["secure-boot"])
        assert find_firmware(ExecutionState.AARCH64).source == "50-s.json"
        assert find_firmware(ExecutionState.AARCH64, secure_boot=True).source == "40-s.json"
        assert find_firmware(ExecutionState.AARCH64, secure_boot=True).enforces_secure_boot

    def test_flash_goes_before_memory(self, system: System) -> None:
        boot_loader = edk2(system.root / "u-boot.bin", size=MIB)
        system.describe("40-m.json", boot_loader, mapping={"device": "memory", "filename": str(boot_loader)})
        only = find_firmware(ExecutionState.AARCH64)
        assert (only.kind, only.keeps_variables, only.source) == (FirmwareKind.BIOS, False, "40-m.json")
        system.describe("90-f.json", edk2(system.root / "f.fd"))
        assert find_firmware(ExecutionState.AARCH64).source == "90-f.json"

    def test_broken_ones_are_told(self, system: System) -> None:
        (system.descriptors / "50-broken.json").write_text("{")
        assert [one.source.name for one in skipped_descriptors()] == ["50-broken.json"]


class TestPlaces:
    def test_well_known(self, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        code = edk2(system.root / "AAVMF_CODE.fd")
        pairs = ((str(system.root / "absent.fd"), "/absent"), (str(code), str(system.root / "vars.fd")))
        monkeypatch.setitem(discovery._PLACES, ExecutionState.AARCH64, pairs)
        firmware = find_firmware(ExecutionState.AARCH64)
        assert (firmware.code, firmware.vars_template) == (code, system.root / "vars.fd")
        assert (firmware.kind, firmware.source) == (FirmwareKind.PFLASH, str(system.root))
        with pytest.raises(MissingError):
            find_firmware(ExecutionState.AARCH32)

    def test_qcow2_builds(self, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        code = edk2(system.root / "QEMU_EFI-pflash.qcow2", size=MIB)
        monkeypatch.setitem(discovery._PLACES, ExecutionState.AARCH64, ((str(code), "/absent.qcow2"),))
        firmware = find_firmware(ExecutionState.AARCH64)
        assert (firmware.kind, firmware.code_format, firmware.vars_template) == (FirmwareKind.PFLASH, "qcow2", None)

    @pytest.mark.parametrize("linked", [False, True])
    def test_beside_qemu(self, system: System, linked: bool) -> None:
        """As Homebrew does it: firmware in QEMU's own data folder, the program perhaps linked to another prefix."""
        cellar = system.root / "cellar" if linked else system.root
        program = cellar / "bin/qemu-system-arm"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(mode=0o755)
        if linked:
            (system.root / "bin").mkdir()
            (system.root / "bin/qemu-system-arm").symlink_to(program)
        code = edk2(cellar / "share/qemu/edk2-arm-code.fd", A32_BRANCH)
        template = blank(cellar / "share/qemu/edk2-arm-vars.fd")
        firmware = find_firmware(ExecutionState.AARCH32)
        assert (firmware.code, firmware.vars_template) == (code, template)

    @pytest.mark.usefixtures("system")
    @pytest.mark.parametrize("state", ExecutionState)
    def test_none_at_all(self, state: ExecutionState) -> None:
        with pytest.raises(MissingError) as caught:
            find_firmware(state)
        assert caught.value.component == f"firmware-{state.value}"
        assert caught.value.hint


class TestNamedByTheUser:
    def test_edk2_of_the_flash_size(self, system: System) -> None:
        firmware = find_firmware(ExecutionState.AARCH64, override=edk2(system.root / "x.fd"))
        assert (firmware.kind, firmware.keeps_variables, firmware.vars_template) == (FirmwareKind.PFLASH, True, None)

    @pytest.mark.parametrize("volume_at", [0x28, 0x1028])
    def test_small_edk2(self, system: System, volume_at: int) -> None:
        firmware = find_firmware(
            ExecutionState.AARCH64, override=edk2(system.root / "x.fd", size=2 * MIB, volume_at=volume_at)
        )
        assert (firmware.kind, firmware.keeps_variables) == (FirmwareKind.BIOS, True)

    def test_another_boot_loader(self, system: System) -> None:
        path = system.root / "u-boot.bin"
        path.write_bytes(A64_BRANCH + b"U-Boot" * 1000)
        firmware = find_firmware(ExecutionState.AARCH64, override=path)
        assert (firmware.kind, firmware.keeps_variables, firmware.name) == (FirmwareKind.BIOS, False, "u-boot.bin")

    def test_qcow2(self, system: System) -> None:
        path = system.root / "x.qcow2"
        path.write_bytes(b"QFI\xfb" + bytes(1000))
        firmware = find_firmware(ExecutionState.AARCH64, override=path)
        assert (firmware.kind, firmware.code_format) == (FirmwareKind.PFLASH, "qcow2")

    def test_its_makers_template_comes_along(self, system: System) -> None:
        code = edk2(system.root / "x.fd")
        secure = blank(system.root / "secure.fd")
        mapping = {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(secure), "format": "raw"},
        }
        system.describe("40-s.json", code, features=["enrolled-keys"], mapping=mapping)
        system.describe("60-p.json", code)
        link = system.root / "link.fd"
        link.symlink_to(code)
        plain = find_firmware(ExecutionState.AARCH64, override=link)
        assert (plain.code, plain.vars_template, plain.source) == (link, system.root / "vars.fd", "named by the user")
        enforcing = find_firmware(ExecutionState.AARCH64, override=code, secure_boot=True)
        assert (enforcing.vars_template, enforcing.enforces_secure_boot) == (secure, True)

    @pytest.mark.parametrize(("branch", "state"), [(A64_BRANCH, "aarch32"), (A32_BRANCH, "aarch64")])
    def test_of_the_other_state(self, system: System, branch: bytes, state: str) -> None:
        with pytest.raises(UsageError, match="is firmware for AArch"):
            find_firmware(ExecutionState(state), override=edk2(system.root / "x.fd", branch))

    @pytest.mark.parametrize(
        "content", [b"", bytes(100), b"\xff" * 100, bytes(64 * MIB), b"\x7fELF" + b"x" * 100, new_instance_store()]
    )
    def test_no_firmware(self, system: System, content: bytes) -> None:
        path = system.root / "x.fd"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            find_firmware(ExecutionState.AARCH64, override=path)
        assert str(path) in caught.value.message

    def test_too_large(self, system: System) -> None:
        with pytest.raises(InputError, match="too large"):
            find_firmware(ExecutionState.AARCH64, override=edk2(system.root / "x.fd", size=64 * MIB + 1))

    @pytest.mark.usefixtures("system")
    @pytest.mark.parametrize("path", ["/", "/nonexistent/firmware.fd", "/dev/zero", "/dev/null"])
    def test_no_file(self, path: str) -> None:
        with pytest.raises(InputError):
            find_firmware(ExecutionState.AARCH64, override=Path(path))

    def test_a_pipe_does_not_hang(self, system: System) -> None:
        path = system.root / "pipe"
        os.mkfifo(path)
        with pytest.raises(InputError):
            find_firmware(ExecutionState.AARCH64, override=path)


@pytest.mark.parametrize(("state", "code"), [("aarch64", "AAVMF_CODE.fd"), ("aarch32", "AAVMF32_CODE.fd")])
def test_debian(state: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    firmware = find_firmware(ExecutionState(state))
    assert firmware.code == Path("/usr/share/AAVMF", code)
    assert not firmware.enforces_secure_boot
    monkeypatch.setattr(discovery, "descriptor_folders", lambda _shares: ())
    assert find_firmware(ExecutionState(state)).code == firmware.code


@pytest.mark.parametrize(("state", "folder"), [("aarch64", "qemu_arm64"), ("aarch32", "qemu_arm")])
def test_debians_u_boot(state: str, folder: str) -> None:
    firmware = find_firmware(ExecutionState(state), override=Path("/usr/lib/u-boot", folder, "u-boot.bin"))
    assert (firmware.kind, firmware.keeps_variables) == (FirmwareKind.BIOS, False)
