"""The devices of a machine as options: ``--disk``, ``--nic``, ``--share`` and what stands behind their commas."""

from __future__ import annotations

import enum
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from armvm.errors import UsageError
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    Graphics,
    LinkNetwork,
    Nic,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    Writes,
)
from armvm.units import SECTOR_SIZES

_LINK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")
_Member = TypeVar("_Member", bound=enum.Enum)

Words = Mapping[str, str | None]
"""What stands behind the first comma of an option: key to value, None for a key that stands alone."""


def parse_disk(given: str, *, writes: Writes) -> DiskDevice:
    """The disk of ``--disk PATH[,KEY=VALUE...]``; ``writes`` is what becomes of its writes when it does not say.

    Raises UsageError for what it cannot be, InputError for an image that cannot be read.
    """
    path, words = _split("--disk", given, _DISK_KEYS)
    if not path:
        _refuse("--disk", given, "it names no image", "write for example --disk data.qcow2,serial=DATA")
    return with_disk_words("--disk", given, DiskDevice(Path(path), "", writes=writes), words)


def parse_boot_disk(given: str, disk: DiskDevice) -> DiskDevice:
    """``disk``, the image's own, as ``--boot-disk KEY=VALUE[,...]`` has it. Raises UsageError."""
    _, words = _split("--boot-disk", f",{given}", _DISK_KEYS)
    return with_disk_words("--boot-disk", given, disk, words)


def with_disk_words(option: str, given: str, disk: DiskDevice, words: Words) -> DiskDevice:
    """``disk`` as the words of an option have it; its format is looked for in the image when nobody says it."""
    fields: dict[str, Any] = {}
    for key, value in words.items():
        match key:
            case "read-only":
                fields["writes"] = Writes.REFUSED
            case "writes":
                fields["writes"] = _member(option, given, key, Writes, value)
            case "interface":
                fields["interface"] = _member(option, given, key, DiskInterface, value)
            case "cache":
                fields["cache"] = _member(option, given, key, DiskCache, value)
            case "sector-size":
                fields["sector_size"] = _number(option, given, key, value)
            case "port":
                fields["port"] = _number(option, given, key, value)
            case "discard":
                fields["discard"] = _on_or_off(option, given, key, value)
            case _:
                fields[key] = value
    if not disk.format and "format" not in fields:
        fields = {**_looked_up(disk.path, fields.get("sector_size")), **fields}
    if fields.get("sector_size", 512) not in SECTOR_SIZES:
        _refuse(option, given, f"sector-size is {fields['sector_size']}", "a disk has sectors of 512 or 4096 bytes")
    return replace(disk, **fields)


def _looked_up(path: Path, sector_size: int | None) -> dict[str, Any]:
    """The format and the sector size of an image, told by its content."""
    from armvm.disk.detect import open_disk

    with open_disk(path, sector_size=sector_size, in_place=True) as disk:
        return {"format": disk.format, "sector_size": disk.sector_size}


def parse_nic(given: str) -> Nic:
    """The network card of ``--nic KIND[=WHERE][,KEY=VALUE...]``. Raises UsageError.

    A card on a network that it shares with other machines gets an address of its own.
    """
    first, words = _split("--nic", given, ("mac", "name", "port", "end"))
    kind, equals, where = first.partition("=")
    if "end" in words and kind != "link":
        _refuse("--nic", given, f"a card of the kind {kind} has no end", "a link has: --nic link=lab,end=1")
    common: dict[str, Any] = {key: words[key] for key in ("mac", "name") if key in words}
    if "port" in words:
        common["port"] = _number("--nic", given, "port", words["port"])
    if kind == "user" and not equals:
        return UserNetwork(**common)
    if kind in {"tap", "bridge", "link"} and where:
        common.setdefault("mac", f"52:54:00:{secrets.token_bytes(3).hex(':')}")
        if kind == "tap":
            return TapNetwork(where, **common)
        if kind == "bridge":
            return BridgeNetwork(where, **common)
        end = _number("--nic", given, "end", words.get("end", "0"))
        return LinkNetwork(_link_folder(given, where), end, **common)
    return _refuse("--nic", given, "no such card", "there are user, tap=DEVICE, bridge=BRIDGE and link=NAME[,end=0|1]")


def _link_folder(given: str, where: str) -> Path:
    """The folder of a link: by a path, or by a name that every machine of this user can use."""
    if "/" in where:
        return Path(where).absolute()
    if not _LINK.fullmatch(where):
        _refuse("--nic", given, f"no name of a link: {where!r}", "letters, digits and . _ - (for example lab)")
    from armvm.home import home

    return home() / "links" / where


def parse_share(given: str) -> SharedFolder:
    """The folder of ``--share PATH:TAG[,ro][,driver=DRIVER]``. Raises UsageError."""
    first, words = _split("--share", given, ("ro", "driver"))
    path, colon, tag = first.rpartition(":")
    if not (path and colon and tag):
        _refuse("--share", given, "it names no folder and tag", "write for example --share ~/work:work")
    driver = ShareDriver.AUTO
    if "driver" in words:
        driver = _member("--share", given, "driver", ShareDriver, words["driver"])
    return SharedFolder(Path(path).expanduser().absolute(), tag, "ro" in words, driver)


def parse_screen(given: str, password_file: Path | None, *, kept: bool) -> Graphics:
    """The screen of ``--vnc unix|PATH|PORT``; that of a ``kept`` machine is in its folder. Raises UsageError."""
    if given.isascii() and given.isdigit():
        if password_file is None:
            _refuse(
                "--vnc", given, "a TCP port without a password", "name a file with --vnc-password-file, or take unix"
            )
        return Graphics(None, int(given[:6]), password_file.absolute())
    if password_file is not None:
        raise UsageError(
            "--vnc-password-file: a password is asked for on a TCP port only", hint="take --vnc 5901, or leave it out"
        )
    if given != "unix":
        return Graphics(Path(given).absolute())
    if kept:
        return Graphics()
    from armvm.home import home

    return Graphics(home() / "run" / f"vnc-{os.getpid()}.sock")


_DISK_KEYS = (
    *("format", "interface", "read-only", "writes", "serial", "cache", "discard", "sector-size", "name", "port"),
)
_ALONE = frozenset({"read-only", "ro"})


def _split(option: str, given: str, keys: tuple[str, ...]) -> tuple[str, dict[str, str | None]]:
    """What stands before the first comma, and the words behind it. A comma that is meant is doubled, as with QEMU."""
    first, *rest = (word.replace("\0", ",") for word in given.replace(",,", "\0").split(","))
    words: dict[str, str | None] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if key not in keys:
            allowed = ", ".join(one if one in _ALONE else f"{one}=" for one in keys)
            _refuse(option, given, f"there is no {key!r} in it", f"there are {allowed}; a comma in a path is doubled")
        if bool(equals) == (key in _ALONE):
            _refuse(option, given, f"{key} {'stands alone' if key in _ALONE else 'needs a value'}", None)
        if key in words:
            _refuse(option, given, f"{key} is there twice", None)
        words[key] = value if equals else None
    return first, words


def _member(option: str, given: str, key: str, kind: type[_Member], value: str | None) -> _Member:
    allowed = [member.value for member in kind]
    if value not in allowed:
        _refuse(option, given, f"{key} is {value!r}", f"{key} is one of {', '.join(allowed)}")
    return kind(value)


def _number(option: str, given: str, key: str, value: str | None) -> int:
    if value is None or not (value.isascii() and value.isdigit() and len(value) < 10):
        _refuse(option, given, f"{key} is {value!r}, no number", None)
    return int(value)


def _on_or_off(option: str, given: str, key: str, value: str | None) -> bool:
    if value not in {"on", "off"}:
        _refuse(option, given, f"{key} is {value!r}", f"{key} is on or off")
    return value == "on"


def _refuse(option: str, given: str, why: str, hint: str | None) -> NoReturn:
    raise UsageError(f"{option} {given}: {why}", hint=hint)
