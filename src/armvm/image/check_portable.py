"""The checks of what a portable image must not carry: UEFI variables and firmware."""

from __future__ import annotations

from uuid import UUID

from armvm.disk.fat import FatEntry, FatVolume
from armvm.errors import InputError
from armvm.image.contents import ImageContents
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, not_applicable, passed, unknown
from armvm.spec.verdict import Evidence

_VARIABLE_FILES = {
    "\\ubootefi.var": "U-Boot's UEFI variables",
    "\\nvvars": "EDK2's emulated UEFI variables",
}
"""Where firmware without a variable store of its own leaves one (U-Boot, doc/develop/uefi; EDK2, PlatformBdsLib)."""
_FIRMWARE_NAMES = frozenset({"\\u-boot.bin", "\\u-boot.itb", "\\u-boot.img"})
_CAPSULE_FOLDER = "\\efi\\updatecapsule\\"
"""Where firmware takes updates of itself from (UEFI 2.10 §8.5.5)."""
_VARIABLE_PARTITIONS = {UUID("3de21764-95bd-54bd-a5c3-4abe786f38a8"): "U-Boot environment"}
_FIRMWARE_PARTITIONS = {UUID("8a7a84a0-8387-40f6-ab41-a8b9a5a60d23"): "firmware update metadata"}
_VOLUME_HEAD = 0x2C
_VOLUME_SIGNATURE = (0x28, b"_FVH")
"""PI 1.8 §3.2.1: a firmware volume's header."""
_VARIABLE_VOLUME = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
"""The file system GUID of a firmware volume that holds variables."""
_SMALLEST_VOLUME = 4096
_MOST_SHOWN = 16


def check_no_variables(contents: ImageContents) -> Judgement:
    """image.no-variables: no variable store on an ESP or in a partition of its own."""
    if not any(esp.volume for esp in contents.esps):
        return not_applicable("image.esp-fat32", "There is no readable EFI System Partition")
    found = _partitions_of(contents, _VARIABLE_PARTITIONS)
    for esp in contents.esps:
        for path, entry in contents.files(esp):
            kind = _VARIABLE_FILES.get(path.lower())
            if kind is None and esp.volume and _volume_of(esp.volume, entry) == _VARIABLE_VOLUME:
                kind = "an EDK2 variable store"
            if kind is not None:
                found.append(Evidence(f"{esp.where}, {printable(path)}", kind, "no UEFI variables in the image"))
    if found:
        return failed("UEFI variables are stored in the image.", *found[:_MOST_SHOWN])
    return passed("No UEFI variables are stored in the image.")


def check_no_firmware(contents: ImageContents) -> Judgement:
    """image.no-firmware: no firmware file on an ESP, no firmware partition."""
    if contents.table.source is None:
        return not_applicable("image.gpt", "There is no GPT whose partitions could be looked through")
    found = _partitions_of(contents, _FIRMWARE_PARTITIONS)
    unreadable: InputError | None = None
    for partition in contents.table.partitions:
        try:
            volume = _volume_guid(partition.slice(contents.disk).read(0, _VOLUME_HEAD))
        except InputError:
            continue  # too small for one, or outside the disk, which the GPT's check says
        if volume is not None and volume != _VARIABLE_VOLUME:
            found.append(Evidence(f"partition {partition.number}", "a firmware volume", "no firmware in the image"))
    for esp in contents.esps:
        try:
            for path, entry in contents.files(esp):
                kind = _firmware_kind(esp.volume, path.lower(), entry)
                if kind is not None:
                    found.append(Evidence(f"{esp.where}, {printable(path)}", kind, "no firmware in the image"))
        except InputError as error:
            unreadable = error
    if found:
        return failed("Firmware is distributed in the image.", *found[:_MOST_SHOWN])
    if unreadable is not None:
        return unknown(f"Not all of the ESP could be read: {unreadable.message}")
    return passed("No firmware is distributed in the image.")


def _firmware_kind(fat: FatVolume | None, path: str, entry: FatEntry) -> str | None:
    if path in _FIRMWARE_NAMES:
        return "U-Boot"
    if path.startswith(_CAPSULE_FOLDER):
        return "a firmware update capsule"
    volume = _volume_of(fat, entry) if fat is not None else None
    return "a firmware volume (EDK2)" if volume is not None and volume != _VARIABLE_VOLUME else None


def _partitions_of(contents: ImageContents, types: dict[UUID, str]) -> list[Evidence]:
    return [
        Evidence(f"partition {partition.number}", f"partition type {types[partition.type_guid]}", "no such partition")
        for partition in contents.table.partitions
        if partition.type_guid in types
    ]


def _volume_of(fat: FatVolume, entry: FatEntry) -> UUID | None:
    """The file system GUID of the firmware volume that a file is; None when it is none, or cannot be read."""
    if entry.size_bytes < _SMALLEST_VOLUME:
        return None
    try:
        return _volume_guid(fat.read_at(entry, 0, _VOLUME_HEAD))
    except InputError:
        return None


def _volume_guid(head: bytes) -> UUID | None:
    offset, signature = _VOLUME_SIGNATURE
    return UUID(bytes_le=head[16:32]) if head[offset : offset + len(signature)] == signature else None
