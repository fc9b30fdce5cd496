"""The EFI programs: built from the sources that stand here, the same bytes everywhere, good in the eyes of others."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pefile  # type: ignore[import-untyped]
import pytest

from armvm.disk.storage import MemoryDisk
from armvm.efi import EfiProgram, program_path, read_program
from armvm.errors import MissingError
from armvm.execution import ExecutionState
from armvm.image.efi_application import check_efi_application
from armvm.image.pe import parse_pe
from armvm.image.uki import build_uki
from tools.pe_images import linux_kernel

ROOT = Path(__file__).resolve().parents[2]
EVERY = [(program, state) for program in EfiProgram for state in ExecutionState]
WRITE_AND_EXECUTE = 0xA0000000


def load_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    return load_hook()


def built_in(hook: ModuleType, folder: Path) -> dict[str, bytes]:
    shutil.copytree(ROOT / "efi", folder / "efi")
    (folder / "out").mkdir()
    hook.build(folder / "efi", folder / "out")
    return {path.name: path.read_bytes() for path in (folder / "out").glob("*.efi")}


def test_two_folders_give_the_bytes_that_are_installed(hook: ModuleType, tmp_path: Path) -> None:
    first = built_in(hook, tmp_path / "one")
    second = built_in(hook, tmp_path / "a rather longer name" / "two")
    assert first == second
    installed = {program_path(*one).name: read_program(*one) for one in EVERY}
    assert first == installed, "the sources have changed since the last build: pip install -e ."
    assert not any(str(tmp_path).encode() in content or b"stub.c" in content for content in first.values())


def test_builds_only_what_has_changed(hook: ModuleType, tmp_path: Path) -> None:
    built_in(hook, tmp_path)
    out = tmp_path / "out"
    stub = out / "stub-aarch64.efi"
    good = stub.read_bytes()
    (out / "stub-aarch64.efi").touch()
    before = stub.stat().st_mtime_ns
    hook.build(tmp_path / "efi", out)
    assert stub.stat().st_mtime_ns == before, "nothing had changed"

    stub.write_bytes(good[:-1])
    hook.build(tmp_path / "efi", out)
    assert stub.read_bytes() == good, "a damaged program is built anew"

    source = tmp_path / "efi/stub/stub.c"
    source.write_text(source.read_text().replace("armvm stub: ", "another stub: "))
    hook.build(tmp_path / "efi", out)
    assert b"another stub: " in stub.read_bytes()
    assert {path.name for path in out.iterdir()} == {".built", *(program_path(*one).name for one in EVERY)}


def test_a_compile_error_stops_the_build_and_is_shown(hook: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "efi", tmp_path / "efi")
    (tmp_path / "efi/stub/stub.c").write_text("int EfiMain(void) { return oops; }")
    with pytest.raises(RuntimeError, match="oops"):
        hook.build(tmp_path / "efi", tmp_path)
    assert not list(tmp_path.glob("*.efi"))


def test_only_armnt_becomes_another_machine(hook: ModuleType) -> None:
    stub = read_program(EfiProgram.STUB, ExecutionState.AARCH64)
    assert hook.with_machine(stub, 0xAA64) == stub
    with pytest.raises(RuntimeError, match="0xaa64"):
        hook.with_machine(stub, 0x01C2)


@pytest.mark.parametrize(("program", "state"), EVERY)
def test_the_programs_are_good_in_our_eyes(program: EfiProgram, state: ExecutionState) -> None:
    disk = MemoryDisk(read_program(program, state))
    assert check_efi_application(parse_pe(disk), disk, state) == ()


@pytest.mark.parametrize(("program", "state"), EVERY)
def test_the_programs_are_good_in_the_eyes_of_pefile(program: EfiProgram, state: ExecutionState) -> None:
    with pefile.PE(program_path(program, state)) as image:
        assert state.pe_machine == image.FILE_HEADER.Machine
        assert image.OPTIONAL_HEADER.Subsystem == pefile.SUBSYSTEM_TYPE["IMAGE_SUBSYSTEM_EFI_APPLICATION"]
        assert image.OPTIONAL_HEADER.SectionAlignment == 4096
        assert image.OPTIONAL_HEADER.DllCharacteristics & 0x100, "NX_COMPAT"
        assert all(section.Characteristics & WRITE_AND_EXECUTE != WRITE_AND_EXECUTE for section in image.sections)
        types = {entry.type for block in image.DIRECTORY_ENTRY_BASERELOC for entry in block.entries}
        assert types <= {0, 3, 10}, "what U-Boot can relocate"


@pytest.mark.parametrize("state", ExecutionState)
def test_pefile_finds_in_a_unified_image_what_was_put_in(state: ExecutionState, tmp_path: Path) -> None:
    kernel = linux_kernel(state)
    uki = build_uki(
        read_program(EfiProgram.STUB, state),
        linux=MemoryDisk(kernel),
        initrd=[MemoryDisk(b"one"), MemoryDisk(b"two")],
        cmdline="root=LABEL=größe",
        os_release="ID=debian\n",
    )
    path = tmp_path / "uki.efi"
    path.write_bytes(uki.read(0, uki.size_bytes))
    expected = {
        ".osrel": b"ID=debian\n",
        ".cmdline": "root=LABEL=größe".encode(),
        ".initrd": b"one\0two",
        ".linux": kernel,
    }
    with pefile.PE(path) as image:
        found = {s.Name.rstrip(b"\0").decode(): s.get_data(length=s.Misc_VirtualSize) for s in image.sections}
        assert {name: found[name] for name in expected} == expected
        assert list(found)[-4:] == list(expected)
        assert not [w for w in image.get_warnings() if "of the file's contents" not in w]
        end = image.sections[-1].VirtualAddress + image.sections[-1].Misc_VirtualSize
        assert -(-end // 4096) * 4096 == image.OPTIONAL_HEADER.SizeOfImage
        assert image.get_overlay_data_start_offset() is None
        rebuilt = hashlib.sha256(image.write()).hexdigest()
    assert rebuilt == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_program_that_was_not_built_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armvm.efi.__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingError, match=r"stub-aarch64\.efi was not built") as caught:
        read_program(EfiProgram.STUB, ExecutionState.AARCH64)
    assert "pip install" in str(caught.value.hint)
