"""What may stand in machine.toml: every table and key, the values that each may have, and what they become.

A key is a field of the Machine value or of one of its devices, by its name there; ``memory`` is ``memory_bytes``.
``format`` and, in a file that is whole, ``state`` and one [[disks]] must be there; everything else has a default, which
is that of the field; but what is written to a disk of a kept machine is kept unless it says otherwise, and one without
[[nics]] has no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.instance.definition import BackingImage, LowerImage
from armvm.instance.toml_fields import (
    Reader,
    Source,
    WrongValueError,
    choice,
    flag,
    integer,
    moment,
    path_in,
    read_table,
    read_tables,
    shown_table,
    size,
    table,
    text,
    word,
)
from armvm.machine.definition import (
    MOST_HOTPLUG_PORTS,
    MOST_VCPUS,
    Bus,
    Console,
    GicVersion,
    HardwareDescription,
    VariablesFile,
)
from armvm.machine.device_problems import (
    DISK_FORMATS,
    LEAST_CID,
    LEAST_VNC_PORT,
    MOST_CID,
    MOST_DISKS,
    MOST_MORE_CONSOLES,
    MOST_NICS,
    MOST_SHARES,
)
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    Graphics,
    LinkNetwork,
    Nic,
    PortForward,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    WatchdogAction,
    Writes,
)
from armvm.printable import printable

FORMAT = 2
"""The version of the file's format."""

NIC_KINDS: dict[str, type[Nic]] = {
    "user": UserNetwork,
    "tap": TapNetwork,
    "bridge": BridgeNetwork,
    "link": LinkNetwork,
}
"""The kinds of network cards, as the file and the command line call them."""

_NAME = text(20, like=re.compile(r"[a-z][a-z0-9_-]*"), example='"data" or "net-1": small letters, digits, _ and -')
_MAC = text(17, like=re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"), example='"52:54:00:12:34:56"')
_HOST_INTERFACE = text(15, like=re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"), example='"br0"')
_TAG = text(31, like=re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"), example='"work"')
_PORT = integer(0, MOST_HOTPLUG_PORTS - 1)
_IMAGE_SIZE = integer(0, 1 << 62)
_MODIFIED = integer(-(1 << 62), 1 << 62)
_FORWARD = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")
_MOST_FORWARDS = 256
_DEEP_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*(?:(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){32}""", re.MULTILINE
)
"""tomllib takes time and memory with the square of a key's parts."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a file says: ``machine`` are the fields of a Machine that stand there, all but its firmware."""

    machine: dict[str, Any]
    images: tuple[BackingImage, ...] = ()
    firmware_file: Path | None = None
    user: str | None = None
    instance_id: str | None = None


def read_said(source: Source, *, whole: bool) -> Said:
    """What the text says. ``whole``: it describes a kept machine, and lacks nothing that has no default.

    Raises InputError, with file and line, for what is no TOML, of another format, or not so.
    """
    content = _toml(source)
    if content.get("format") != FORMAT or isinstance(content["format"], bool):
        raise InputError(
            "a file of another version of armvm",
            subject=printable(str(source.path)),
            found=f"format {printable(str(content.get('format'))[:40])}",
            expected=f"format {FORMAT}",
        )
    schema = _Schema(source, whole)
    values = read_table(source, (), content, schema.top)
    for key in ("state", "disks"):
        if whole and not values.get(key):
            source.fail(f"the key {key} is missing" if key == "state" else "there is no disk: no table [[disks]]")
    return schema.said(values)


def _toml(source: Source) -> dict[str, Any]:
    import tomllib

    subject = printable(str(source.path))
    if deep := _DEEP_KEY.search(source.text):
        line = source.text.count("\n", 0, deep.end()) + 1
        raise InputError("a key of more than 32 parts", subject=f"{subject}, line {line}")
    try:
        return tomllib.loads(source.text)
    except RecursionError:
        raise InputError("no TOML: nested too deeply", subject=subject) from None
    except ValueError as error:
        place = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        if place is not None and place[2]:
            subject += f", line {place[2]}, column {place[3]}"
        raise InputError(f"no TOML: {printable(place[1] if place else str(error))[:200]}", subject=subject) from error


@dataclass(frozen=True, slots=True)
class _Schema:
    """The readers of a file's tables; its paths are relative to the file's folder."""

    source: Source
    whole: bool
    top: dict[str, Reader] = field(init=False)
    path: Reader = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", path_in(self.source.folder))
        object.__setattr__(self, "top", self._top())

    def _top(self) -> dict[str, Reader]:
        return {
            "format": table,
            "state": choice(ExecutionState),
            "vcpus": integer(1, MOST_VCPUS),
            "memory": size,
            "gic": choice(GicVersion),
            "description": choice(HardwareDescription),
            "console": choice(Console),
            "bus": choice(Bus),
            "clock": moment,
            "hotplug_ports": integer(0, MOST_HOTPLUG_PORTS),
            "scsi_controller": flag,
            "more_consoles": integer(0, MOST_MORE_CONSOLES),
            "rng": flag,
            "balloon": flag,
            "tpm": flag,
            "secure_boot": flag,
            "watchdog": choice(WatchdogAction),
            "usb_keyboard": flag,
            "vsock_cid": integer(LEAST_CID, MOST_CID),
            "guest_agent": flag,
            "variables": self.path,
            "variables_format": word("qcow2", "raw"),
            "firmware": self.path,
            "user": text(64),
            "instance_id": text(128),
            "disks": table,
            "nics": table,
            "shares": table,
            "graphics": table,
        }

    def said(self, values: dict[str, Any]) -> Said:
        """What the values of the top table come to; the tables in them are read here."""
        images: tuple[BackingImage, ...] = ()
        if "memory" in values:
            values["memory_bytes"] = values.pop("memory")
        if "disks" in values:
            values["disks"], images = self._disks(values["disks"])
        for key, most, read in (
            ("nics", MOST_NICS, self._nics),
            ("shares", max(MOST_SHARES.values()), self._shares),
            ("graphics", None, self._graphics),
        ):
            if key in values:
                self._few(key, values[key], most)
                values[key] = read(values[key])
        form = values.pop("variables_format", "qcow2")
        if "variables" in values:
            values["variables"] = VariablesFile(values["variables"], form)
        del values["format"]
        firmware = values.pop("firmware", None)
        return Said(values, images, firmware, values.pop("user", None), values.pop("instance_id", None))

    def _few(self, key: str, content: Any, most: int | None) -> None:
        if most is not None and isinstance(content, list) and len(content) > most:
            self.source.fail(f"{len(content)} tables [[{key}]]: a machine has at most {most}", (key, most))

    def _disks(self, content: Any) -> tuple[tuple[DiskDevice, ...], tuple[BackingImage, ...]]:
        self._few("disks", content, MOST_DISKS)
        readers = {
            "name": _NAME,
            "path": self.path,
            "format": word(*DISK_FORMATS),
            "sector_size": integer(512, 4096),
            "writes": choice(Writes),
            "interface": choice(DiskInterface),
            "serial": text(36, like=re.compile(r"[ -~]+"), example='"A-1": printable ASCII'),
            "cache": choice(DiskCache),
            "discard": flag,
            "port": _PORT,
            "image": table,
        }
        disks, images = [], []
        for index, values in enumerate(read_tables(self.source, "disks", content, readers)):
            where = ("disks", index)
            self._require(values, where, "path", "format")
            if values.get("sector_size", 512) not in {512, 4096}:
                self.source.fail("sector_size should be 512 or 4096", where, "sector_size")
            image = values.pop("image", None)
            if self.whole:
                values.setdefault("writes", Writes.KEPT)  # what is written to a kept machine is kept
            disks.append(DiskDevice(**values))
            if image is not None:
                images.append(self._image(image, (*where, "image"), values.get("name") or f"disk{index}"))
        return tuple(disks), tuple(images)

    def _image(self, content: Any, where: tuple[str | int, ...], disk: str) -> BackingImage:
        readers = {
            "path": self.path,
            "format": word(*DISK_FORMATS),
            "size_bytes": _IMAGE_SIZE,
            "modified_ns": _MODIFIED,
            "below": table,
        }
        values = read_table(self.source, where, content, readers)
        self._require(values, where, "path", "format", "size_bytes", "modified_ns")
        values["below"] = self._lower(values.get("below", []), where)
        return BackingImage(disk, **values)

    def _lower(self, content: Any, where: tuple[str | int, ...]) -> tuple[LowerImage, ...]:
        readers = {"path": self.path, "size_bytes": _IMAGE_SIZE, "modified_ns": _MODIFIED}
        lower = []
        for index, values in enumerate(read_tables(self.source, "below", content, readers, within=where)):
            self._require(values, (*where, "below", index), *readers)
            lower.append(LowerImage(**values))
        return tuple(lower)

    def _nics(self, content: Any) -> tuple[Nic, ...]:
        readers = {
            "kind": word(*NIC_KINDS),
            "name": _NAME,
            "mac": _MAC,
            "port": _PORT,
            "forwards": _forwards,
            "interface": _HOST_INTERFACE,
            "bridge": _HOST_INTERFACE,
            "folder": self.path,
            "end": integer(0, 1),
        }
        own = {"user": (), "tap": ("interface",), "bridge": ("bridge",), "link": ("folder", "end")}
        nics = []
        for index, values in enumerate(read_tables(self.source, "nics", content, readers)):
            where = ("nics", index)
            kind = values.pop("kind", "user")
            allowed = {"name", "mac", "port", *own[kind], *(("forwards",) if kind == "user" else ())}
            for key in values:
                if key not in allowed:
                    needs = next((one for one in own if key in own[one]), "user")
                    self.source.fail(
                        f'{key} makes no sense with the kind "{kind}": it belongs to the kind "{needs}"', where, key
                    )
            self._require(values, where, *own[kind])
            nics.append(NIC_KINDS[kind](**values))
        return tuple(nics)

    def _shares(self, content: Any) -> tuple[SharedFolder, ...]:
        readers = {"path": self.path, "tag": _TAG, "read_only": flag, "driver": choice(ShareDriver)}
        shares = []
        for index, values in enumerate(read_tables(self.source, "shares", content, readers)):
            self._require(values, ("shares", index), "path", "tag")
            shares.append(SharedFolder(**values))
        return tuple(shares)

    def _graphics(self, content: Any) -> Graphics:
        readers = {"socket": self.path, "port": integer(LEAST_VNC_PORT, 65535), "password_file": self.path}
        return Graphics(**read_table(self.source, ("graphics",), content, readers))

    def _require(self, values: Mapping[str, Any], where: tuple[str | int, ...], *keys: str) -> None:
        for key in keys:
            if key not in values:
                self.source.fail(f"the key {key} is missing in {shown_table(where)}", where)


def _forwards(value: Any) -> tuple[PortForward, ...]:
    if not isinstance(value, list) or len(value) > _MOST_FORWARDS:
        raise WrongValueError('should be a list of at most 256 pairs of ports, for example ["2222:22"]')
    pairs: list[PortForward] = []
    for one in value:
        pair = ":".join(map(str, one)) if isinstance(one, list) and len(one) == 2 else one  # [2222, 22]
        match = _FORWARD.fullmatch(pair) if isinstance(pair, str) else None
        if match is None or not all(0 < int(port) < 65536 for port in match.groups()):
            shown = printable(str(one)[:40])
            raise WrongValueError(f'holds {shown}, and should hold pairs of TCP ports, for example ["2222:22"]')
        pairs.append(PortForward(int(match[1]), int(match[2])))
    return tuple(pairs)
