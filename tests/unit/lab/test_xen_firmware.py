from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import pytest

from armvm.errors import InputError, MissingError
from armvm.execution import ExecutionState
from armvm.lab import xen_firmware
from armvm.lab.xen_firmware import (
    PATCH,
    SOURCE,
    build_xen_firmware,
    checked_firmware,
    firmware_path,
    missing_tools,
)
from armvm.units import MIB

AARCH64, AARCH32 = ExecutionState.AARCH64, ExecutionState.AARCH32


def image(state: ExecutionState) -> bytes:
    """Something with the header that Xen looks for."""
    content = bytearray(2 * MIB)
    if state is AARCH64:
        content[0x38:0x3C] = b"ARM\x64"
    else:
        content[0x24:0x28] = b"\x18\x28\x6f\x01"
    return bytes(content)


def test_what_is_kept_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = firmware_path(AARCH64, tmp_path)
    path.write_bytes(b"kept")
    monkeypatch.setattr(xen_firmware, "missing_tools", lambda _state: pytest.fail("nothing is to be built"))
    assert build_xen_firmware(AARCH64, tmp_path) == path


def test_another_patch_or_state_is_another_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {firmware_path(state, tmp_path).name for state in ExecutionState}
    other = tmp_path / "other.patch"
    other.write_bytes(PATCH.read_bytes() + b"\n")
    monkeypatch.setattr(xen_firmware, "PATCH", other)
    names |= {firmware_path(state, tmp_path).name for state in ExecutionState}
    assert len(names) == 4


def test_everything_that_is_missing_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xen_firmware, "find_program", lambda _name: None)
    monkeypatch.setattr("armvm.packages.distribution_family", lambda: "debian")
    with pytest.raises(MissingError) as raised:
        build_xen_firmware(AARCH64, tmp_path)
    for name in ("gcc", "make", "patch", "aarch64-linux-gnu-gcc"):
        assert name in raised.value.message
    assert raised.value.install is not None
    assert raised.value.install.startswith("apt-get install ")
    assert "gcc-aarch64-linux-gnu" in raised.value.install
    assert "arm-linux-gnueabi-gcc" in missing_tools(AARCH32)


def test_only_the_very_source_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xen_firmware, "missing_tools", lambda _state: ())
    archive = tmp_path / "edk2.tar.xz"
    archive.write_bytes(b"something else")
    with pytest.raises(InputError, match="not the source") as raised:
        build_xen_firmware(AARCH64, tmp_path, archive=archive)
    assert raised.value.expected == SOURCE.sha256_hex
    with pytest.raises(InputError, match="cannot be read"):
        build_xen_firmware(AARCH64, tmp_path, archive=tmp_path / "none")
    assert not list(tmp_path.glob(".xen-firmware-*"))


@pytest.mark.parametrize("name", ["elsewhere/file", "edk2-2022.11/../../file"])
def test_an_archive_that_unpacks_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.tar.xz"
    with lzma.open(archive, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(InputError, match="not a source as expected"):
        xen_firmware._unpack(archive, scratch)
    assert not list(scratch.iterdir())


def test_mirrors_are_asked_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(url: str) -> None:
        asked.append(url)
        raise InputError("there is no such file", subject=url)

    monkeypatch.setattr("armvm.disk.remote.open_remote", refuse)
    with pytest.raises(InputError, match="no mirror gives out the source"):
        xen_firmware._fetch(tmp_path)
    assert len(asked) >= 2
    assert all(url.endswith(SOURCE.path) for url in asked)
    assert "snapshot.debian.org" in asked[-1]


@pytest.mark.parametrize("state", list(ExecutionState))
def test_what_is_built_is_looked_at(state: ExecutionState) -> None:
    assert checked_firmware(image(state), state, name="x") == image(state)
    other = AARCH32 if state is AARCH64 else AARCH64
    for content in (image(other), image(state)[:1000], b"", bytes(2 * MIB)):
        with pytest.raises(InputError, match="no firmware"):
            checked_firmware(content, state, name="x")


def test_the_line_of_a_build_that_tells() -> None:
    command = '"gcc" -Wall -Werror -Wno-error=x -c b.c'
    lines = [command, "b.c:1: error: no \x1b", "make: *** [b.o] Error 1", " : error 7000: Failed to execute command"]
    assert xen_firmware._telling(lines) == "b.c:1: error: no \\x1b"
    assert xen_firmware._telling(['"iasl" -p x', "/bin/sh: 1: iasl: not found", lines[2]]).endswith("iasl: not found")
    assert xen_firmware._telling([command, *lines[2:]]) == lines[2]
    assert xen_firmware._telling([command]) == command
    assert xen_firmware._telling([]) == "it said nothing"


def test_the_patch_is_for_the_source_that_is_pinned() -> None:
    text = PATCH.read_bytes()
    assert b"XENMEM_remove_from_physmap" in text
    assert text.count(b"\n--- a/") == 4
    assert SOURCE.folder.encode().removeprefix(b"edk2-") in text.partition(b"\n")[0]
    hunk = text.partition(b"@@")[2]
    assert b"\r\n" in hunk, "EDK2's lines end in CR LF, and so must the patch's: see .gitattributes"
