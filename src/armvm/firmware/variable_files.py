"""Variables outside of a store: JSON (our own, and virt-firmware's), and files as Linux's efivarfs has them.

JSON ``armvm.variables/1``: ``{"schema": …, "variables": [{"name", "vendor", "attributes", "hex", "time"?, …}]}``, where
``time`` is the EFI_TIME of an authenticated write in hex; what else an entry has is for people.
virt-firmware's has ``"version": 2`` and calls them ``guid``, ``attr`` and ``data``.
efivarfs (Linux, Documentation/filesystems/efivarfs.rst): a file ``NAME-GUID``, 4 bytes of attributes and the data.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from armvm.atomic import sync_folder, write_file
from armvm.errors import InputError, OutputError, UsageError
from armvm.firmware.variable_names import split_file_name
from armvm.firmware.variables import Attributes, Variable, VariableStore, check_variable
from armvm.printable import printable
from armvm.units import MIB

SCHEMA = "armvm.variables/1"

MOST_FILE_BYTES = 16 * MIB
_MOST_VARIABLES = 5000
"""A store of 256 KiB has no room for as many."""
_TIME_BYTES = 16
_ATTRIBUTES = struct.Struct("<I")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file or folder holds: the variables that belong into a store, and the names of those that are volatile."""

    variables: tuple[Variable, ...]
    volatile: tuple[str, ...]


def as_json(variable: Variable) -> dict[str, Any]:
    """All of a variable, as an entry of ``armvm.variables/1``: what ``parse_json`` takes."""
    entry: dict[str, Any] = {
        "name": variable.name,
        "vendor": str(variable.vendor),
        "attributes": int(variable.attributes),
        "hex": variable.data.hex(),
    }
    if any(variable.timestamp):
        entry["time"] = variable.timestamp.hex()
    if variable.monotonic_count:
        entry["monotonic_count"] = variable.monotonic_count
    if variable.public_key_index:
        entry["public_key_index"] = variable.public_key_index
    return entry


def serialise_json(variables: Iterable[Variable]) -> bytes:
    """The content of an export in JSON: ASCII, since a name may hold anything."""
    import json

    content = {"schema": SCHEMA, "variables": [as_json(one) for one in variables]}
    return json.dumps(content, indent=2).encode("ascii") + b"\n"


def parse_json(content: bytes, *, subject: str) -> Imported:
    """Read an export in JSON. Raises InputError, which names the entry, when anything of it is not as it should be."""
    import json

    if len(content) > MOST_FILE_BYTES:
        raise InputError(f"larger than {MOST_FILE_BYTES} bytes", subject=subject)
    try:
        top = json.loads(content)
    except RecursionError:
        raise InputError("nested too deeply", subject=subject) from None
    except ValueError as error:
        raise InputError(f"no JSON: {printable(str(error))}", subject=subject) from None
    if not isinstance(top, dict) or (top.get("schema") != SCHEMA and top.get("version") != 2):
        raise InputError(
            "no export of variables",
            subject=subject,
            expected=f'"schema": "{SCHEMA}", or virt-firmware\'s "version": 2',
        )
    entries = top.get("variables")
    if not isinstance(entries, list) or len(entries) > _MOST_VARIABLES:
        raise InputError("no list of variables", subject=subject, expected=f'"variables", at most {_MOST_VARIABLES}')
    return _sorted_out(
        (_Entry(one, f"{subject}, variable {at}").variable() for at, one in enumerate(entries, 1)), subject
    )


class _Entry:
    """An entry of an export, read field by field."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise InputError("no object", subject=where)
        self._fields = content
        self._where = where

    def variable(self) -> Variable:
        name = self._text("name")
        self._where += f" ({printable(name)[:80]})"
        vendor = self._text("vendor", "guid")
        try:
            guid = UUID(vendor)
        except ValueError:
            raise InputError("no GUID", subject=self._where, found=repr(vendor)[:80]) from None
        timestamp = self._bytes("time") if "time" in self._fields else bytes(_TIME_BYTES)
        if len(timestamp) != _TIME_BYTES:
            raise InputError("no EFI_TIME", subject=self._where, found=f"{len(timestamp)} bytes", expected="16")
        return Variable(
            name=name,
            vendor=guid,
            data=self._bytes("hex", "data"),
            attributes=Attributes(self._number(32, "attributes", "attr")),
            timestamp=timestamp,
            monotonic_count=self._number(64, "monotonic_count") if "monotonic_count" in self._fields else 0,
            public_key_index=self._number(32, "public_key_index") if "public_key_index" in self._fields else 0,
        )

    def _field(self, *names: str) -> tuple[str, object]:
        for name in names:
            if name in self._fields:
                return name, self._fields[name]
        raise InputError(f"{' or '.join(names)} is missing", subject=self._where)

    def _text(self, *names: str) -> str:
        name, value = self._field(*names)
        if not isinstance(value, str):
            raise InputError(f"{name} is no text", subject=self._where, found=repr(value)[:80])
        return value

    def _bytes(self, *names: str) -> bytes:
        text = self._text(*names)
        if not _HEX.fullmatch(text):
            raise InputError(f"{names[0]} is not hexadecimal", subject=self._where, found=repr(text)[:80])
        return bytes.fromhex(text)

    def _number(self, bits: int, *names: str) -> int:
        name, value = self._field(*names)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
            raise InputError(f"{name} is no number of {bits} bits", subject=self._where, found=repr(value)[:80])
        return value


def _sorted_out(variables: Iterable[Variable], subject: str) -> Imported:
    """Part the volatile from the others. Raises InputError for what UEFI does not allow, and for duplicates."""
    kept: dict[tuple[str, UUID], Variable] = {}
    volatile = []
    for variable in variables:
        name = printable(variable.name)
        if Attributes.NON_VOLATILE not in variable.attributes:
            volatile.append(name)
            continue
        try:
            check_variable(variable)
        except UsageError as error:
            raise InputError(error.message, subject=subject) from None
        if variable.key in kept:
            raise InputError(f"variable {name} of vendor {variable.vendor} is there twice", subject=subject)
        kept[variable.key] = variable
    return Imported(tuple(kept.values()), tuple(volatile))


def read_import(path: Path) -> Imported:
    """Read an export: a JSON file, a folder of efivarfs files, or one such file. Raises InputError when it is none."""
    if path.is_dir():
        return _read_folder(path)
    content = read_bounded(path, MOST_FILE_BYTES)
    if split_file_name(path.name) is not None:
        return _sorted_out([_parse_file(path.name, content, str(path))], str(path))
    return parse_json(content, subject=str(path))


def _read_folder(folder: Path) -> Imported:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(folder)) from error
    if len(names) > _MOST_VARIABLES:
        raise InputError(f"{len(names)} files", subject=str(folder), expected=f"at most {_MOST_VARIABLES} variables")
    files = (_parse_file(name, read_bounded(folder / name, MIB), str(folder / name)) for name in names)
    return _sorted_out(files, str(folder))


def _parse_file(name: str, content: bytes, subject: str) -> Variable:
    halves = split_file_name(name)
    if halves is None or not _is_unicode(name):
        raise InputError("not named as efivarfs names a variable", subject=subject, expected="NAME-GUID")
    if len(content) < _ATTRIBUTES.size:
        raise InputError(
            f"a variable's file of {len(content)} bytes", subject=subject, expected="4 of attributes, data"
        )
    (attributes,) = _ATTRIBUTES.unpack_from(content)
    return Variable(*halves, content[_ATTRIBUTES.size :], Attributes(attributes))


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file that is not larger. Raises InputError for anything else, without waiting."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError("no regular file", subject=str(path))
            content = file.read(most_bytes + 1)
    except IsADirectoryError:
        raise InputError("a folder, no file", subject=str(path)) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", subject=str(path)) from error
    if len(content) > most_bytes:
        raise InputError(f"larger than {most_bytes} bytes", subject=str(path))
    return content


def merged(store: VariableStore, imported: Iterable[Variable]) -> tuple[Variable, ...]:
    """``imported`` as it goes into ``store``: a time that the files do not hold (efivarfs) is that of the namesake."""
    present = {variable.key: variable for variable in store.variables}
    result = []
    for one in imported:
        old = present.get(one.key)
        if old is not None and not any(one.timestamp):
            one = replace(  # noqa: PLW2901 - the same variable, made whole
                one,
                timestamp=old.timestamp,
                monotonic_count=one.monotonic_count or old.monotonic_count,
                public_key_index=one.public_key_index or old.public_key_index,
            )
        result.append(one)
    return tuple(result)


def write_folder(folder: Path, variables: Iterable[Variable]) -> None:
    """Write ``variables`` as efivarfs files into the new folder ``folder``, all of them or none.

    Raises OutputError when it is there and not empty, or cannot be written, UsageError for what cannot name a file.
    """
    files = {_file_name(one): _ATTRIBUTES.pack(one.attributes) + one.data for one in variables}
    beside = folder.absolute().with_name(f".{folder.absolute().name}.{secrets.token_hex(4)}.part")
    try:
        beside.mkdir()
        try:
            for name, content in files.items():
                write_file(beside / name, content)
            beside.rename(folder)  # replaces an empty folder, and no other
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_folder(folder.absolute().parent)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}", hint="name a new folder") from error


def _file_name(variable: Variable) -> str:
    name = f"{variable.name}-{variable.vendor}"
    if "/" in name or "\0" in name or not _is_unicode(name) or len(name.encode()) > 255:
        raise UsageError(
            f"no file can be named after the variable {printable(variable.name)}", hint="export it as JSON instead"
        )
    return name


def _is_unicode(name: str) -> bool:
    """Whether there are no lone surrogates in it, which stand for bytes that are no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
