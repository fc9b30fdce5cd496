from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from armvm.errors import InputError, OutputError, UsageError
from armvm.firmware.variable_files import merged, parse_json, read_import, serialise_json, write_folder
from armvm.firmware.variables import Attributes, Variable, VariableStore
from armvm.guid import EFI_GLOBAL_VARIABLE

OWN = UUID("11111111-2222-3333-4444-555555555555")
PLAIN = Variable("Timeout", EFI_GLOBAL_VARIABLE, b"\3\0")
SIGNED = Variable("db", OWN, b"x", Attributes(0x27), bytes(range(1, 17)), 5, 6)
ODD = Variable("\x1b[31m\ud800/\u202e", OWN, bytes(range(256)))
GOOD: dict[str, Any] = {"name": "a", "vendor": str(OWN), "attributes": 7, "hex": "00"}


def document(*entries: object, **top: object) -> bytes:
    return json.dumps({"schema": "armvm.variables/1", "variables": list(entries), **top}).encode()


def test_json_keeps_everything() -> None:
    imported = parse_json(serialise_json([PLAIN, SIGNED, ODD]), subject="x")
    assert imported.variables == (PLAIN, SIGNED, ODD)
    assert imported.volatile == ()


def test_virt_firmwares_json_is_taken_too() -> None:
    time = "e907030a022e25000000000000000000"
    entry = {"name": "db", "guid": str(OWN), "attr": 39, "data": "58", "time": time}
    content = json.dumps({"version": 2, "variables": [entry]}).encode()
    (variable,) = parse_json(content, subject="x").variables
    assert variable == Variable("db", OWN, b"X", Attributes(39), bytes.fromhex(time))


def test_the_volatile_are_left_out_and_named() -> None:
    imported = parse_json(document(GOOD, {**GOOD, "name": "Boot\x1bCurrent", "attributes": 6}), subject="x")
    assert [one.name for one in imported.variables] == ["a"]
    assert imported.volatile == ("Boot\\x1bCurrent",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 100_000, "nested too deeply|no JSON"),
        (b"[]", "no export"),
        (document(schema="armvm.report/1"), "no export"),
        (document(variables={}), "no list"),
        (document(*[GOOD] * 5001), "no list"),
        (document("x"), "variable 1: no object"),
        (document(GOOD, GOOD), "there twice"),
        (document({**GOOD, "name": ""}), "not a variable's name"),
        (document({**GOOD, "name": 5}), "name is no text"),
        (document({**GOOD, "vendor": "me"}), r"variable 1 \(a\): no GUID"),
        (document({**GOOD, "hex": "0"}), "not hexadecimal"),
        (document({**GOOD, "hex": "0g"}), "not hexadecimal"),
        (document({**GOOD, "hex": ""}), "without data"),
        (document({**GOOD, "attributes": True}), "no number"),
        (document({**GOOD, "attributes": 1 << 32}), "no number"),
        (document({**GOOD, "attributes": 5}), "boot-service"),
        (document({**GOOD, "time": "00"}), "no EFI_TIME"),
        (document({key: value for key, value in GOOD.items() if key != "hex"}), "hex or data is missing"),
        (b'{"schema": "armvm.variables/1", "variables": [{"name": "a", "attributes": ' + b"1" * 5000, "no JSON"),
    ],
)
def test_json_that_is_none(content: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        parse_json(content, subject="export.json")
    assert caught.value.message.startswith("export.json")
    assert caught.value.message.isprintable()


def test_a_folder_as_efivarfs_has_it(tmp_path: Path) -> None:
    variables = [PLAIN, replace(SIGNED, timestamp=bytes(16), monotonic_count=0, public_key_index=0)]
    folder = tmp_path / "vars"
    folder.mkdir()
    write_folder(folder, variables)
    assert (folder / f"Timeout-{EFI_GLOBAL_VARIABLE}").read_bytes() == b"\7\0\0\0\3\0"
    assert set(read_import(folder).variables) == set(variables)
    assert read_import(folder / f"Timeout-{EFI_GLOBAL_VARIABLE}").variables == (PLAIN,)
    assert [path.name for path in tmp_path.iterdir()] == ["vars"]
    with pytest.raises(OutputError):
        write_folder(folder, [])
    assert set(read_import(folder).variables) == set(variables)


@pytest.mark.parametrize("name", ["a/b", "a\0b", "\ud800", "x" * 220, "é" * 110])
def test_what_cannot_be_a_files_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no file can be named"):
        write_folder(tmp_path / "vars", [Variable(name, OWN, b"x")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("readme", b"\7\0\0\0x", "not named"),
        (f"a-{OWN}", b"\7\0\0", "3 bytes"),
        (f"a-{OWN}", b"\7\0\0\0", "without data"),
        (f"\udcff-{OWN}", b"\7\0\0\0x", "not named"),
        (f"a-{OWN}", bytes((1 << 20) + 1), "larger than"),
    ],
)
def test_a_folder_that_is_none(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=why):
        read_import(tmp_path)


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a-{OWN}")
    with pytest.raises(InputError, match="no regular file"):
        read_import(tmp_path)
    (tmp_path / f"a-{OWN}").unlink()
    (tmp_path / f"a-{OWN}").mkdir()
    with pytest.raises(InputError):
        read_import(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_import(tmp_path / "gone")


def test_a_time_that_the_file_does_not_hold_is_kept() -> None:
    store = VariableStore((SIGNED,))
    bare = Variable("db", OWN, b"y", Attributes(0x27))
    assert merged(store, [bare, PLAIN]) == (replace(SIGNED, data=b"y"), PLAIN)
    timed = replace(bare, timestamp=bytes([9]) * 16)
    assert merged(store, [timed]) == (timed,)
