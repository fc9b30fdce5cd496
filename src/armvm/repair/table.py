"""Repairs of the partition table: rebuilt from the copy that can be trusted, and the ESP's type and attributes."""

from __future__ import annotations

from armvm.disk.fat import FatVolume
from armvm.disk.gpt import read_partition_table
from armvm.disk.gpt_format import NIL_GUID, Partition, PartitionTable, TableKind, TableSource
from armvm.disk.gpt_rebuild import RawTable, protective_mbr, read_raw_table, serialise_table
from armvm.disk.mbr import MbrRecord
from armvm.disk.patched import PatchedDisk
from armvm.errors import InputError
from armvm.guid import ESP_TYPE, derived_guid
from armvm.repair.workbench import Workbench
from armvm.spec.verdict import Problem

_RESERVED_ATTRIBUTES = ((1 << 48) - 1) & ~0b111
_NO_BLOCK_IO = 1 << 1
_GPT, _ESP = "image.gpt", "image.esp"
_MBR_CODES = ("mbr-", "pmbr-", "hybrid-mbr")
_REMEDIES = {
    "disk-size": "make the file a whole number of sectors long, for example `truncate -s %512 IMAGE`",
    "other-sector-size": "write it anew for this sector size: `armvm convert --sector-size`",
    "partition-guid-duplicate": "give one of them another GUID, and change what refers to it: `sgdisk -u N:R IMAGE`",
}
_BY_HAND = "look at it with `gdisk IMAGE`, or restore the partition table from a backup of the image"


def repair_table(bench: Workbench) -> None:
    """image.gpt: headers, arrays, CRCs and protective MBR written anew, the backup at the end of the disk."""
    if not bench.wants(_GPT):
        return
    _protect(bench)
    table = read_partition_table(bench.disk)
    if not table.serious_problems or table.kind in (TableKind.NONE, TableKind.MBR_ONLY):
        if table.kind is TableKind.NONE:
            _say_hopeless(bench, table)
        return
    if not table.trusted or table.header is None:
        why = "neither of the two partition tables is intact, so nobody can tell which of them to believe"
        bench.cannot(_GPT, "partition table", why, _BY_HAND)
        return
    try:
        raw = read_raw_table(bench.disk, table.header)
    except ValueError as error:
        bench.cannot(_GPT, "partition table", f"it has no room on this disk: {error}", _room_remedy(table))
        return
    raw = _mend_entries(bench, table, raw)
    scratch = PatchedDisk(bench.disk)
    for offset, content in serialise_table(raw, bench.disk):
        scratch.write(offset, content)
    after = read_partition_table(scratch)
    if len(after.serious_problems) < len(table.serious_problems) or raw.entries != _entries(bench, table):
        for offset, _, content in scratch.changes():
            bench.disk.write(offset, content)
        _say_done(bench, table, after)
    scratch.close()
    for problem in after.serious_problems:
        bench.cannot(_GPT, problem.evidence.where, problem.message, _REMEDIES.get(problem.code, _BY_HAND))


def repair_esp_entry(bench: Workbench) -> None:
    """image.esp: the type GUID of a partition that is an ESP in all but name, and an ESP that hides from firmware."""
    table = read_partition_table(bench.disk)
    if not bench.wants(_ESP) or not table.trusted or table.header is None:
        return
    try:
        raw = read_raw_table(bench.disk, table.header)
    except ValueError:
        return
    esps = [partition for partition in table.partitions if partition.is_esp]
    changed = raw
    if not esps:
        found = [partition for partition in table.partitions if has_efi_programs(bench, partition)]
        if len(found) > 1:
            numbers = ", ".join(str(partition.number) for partition in found)
            why = f"partitions {numbers} all hold EFI programs, and none of them is marked as the ESP"
            bench.cannot(_ESP, "GPT", why, "choose one: `sgdisk -t N:ef00 IMAGE`")
        elif found:
            esps = found
            changed = changed.with_type(found[0].number, ESP_TYPE)
            reason = f"it is a FAT file system with EFI programs, but of type {str(found[0].type_guid).upper()}"
            action = f"type GUID set to that of an EFI System Partition, {str(ESP_TYPE).upper()}"
            bench.did(_ESP, f"partition {found[0].number}", action, reason)
    if len(esps) == 1 and esps[0].hidden_from_firmware:
        changed = changed.with_attributes(esps[0].number, esps[0].attributes & ~_NO_BLOCK_IO)
        reason = "it tells firmware not to look into the partition"
        bench.did(_ESP, f"partition {esps[0].number}", "attribute No Block IO Protocol cleared", reason)
    if changed is not raw:
        for offset, content in serialise_table(changed, bench.disk):
            bench.disk.write(offset, content)


def has_efi_programs(bench: Workbench, partition: Partition) -> bool:
    r"""Whether a partition is a FAT file system with programs in \EFI\*\."""
    try:
        volume = FatVolume(bench.volume(partition))
        efi = volume.lookup("EFI")
        folders = volume.entries(efi) if efi is not None and efi.is_directory else ()
        return any(
            entry.name.lower().endswith(".efi")
            for folder in folders[:64]
            if folder.is_directory
            for entry in volume.entries(folder)
        )
    except InputError:
        return False


def _protect(bench: Workbench) -> None:
    """The MBR in front of a GPT, when that GPT can be believed."""
    table = read_partition_table(bench.disk)
    legacy = table.mbr.legacy if table.mbr else ()
    faults = [problem for problem in table.serious_problems if problem.code.startswith(_MBR_CODES)]
    if not faults or table.kind is TableKind.NONE:
        return
    block = bench.disk.read(0, 512)
    scratch = PatchedDisk(bench.disk)
    scratch.write(0, protective_mbr(bench.disk, block))
    after = read_partition_table(scratch)
    scratch.close()
    if not after.trusted:
        return
    stray = [record for record in legacy if not _known(record, after.partitions)]
    if stray:
        where = f"LBA 0, partition record {stray[0].number}"
        why = f"the MBR has a partition at LBA {stray[0].first_lba} that the GPT does not know"
        remedy = "put it into the GPT, or drop it from the MBR, with `gdisk IMAGE`"
        bench.cannot(_GPT, where, why, remedy)
        return
    bench.disk.write(0, protective_mbr(bench.disk, block))
    action = "hybrid MBR replaced by a protective one" if legacy else "protective MBR written for this disk"
    bench.did(_GPT, "LBA 0", action, faults[0].message)


def _known(record: MbrRecord, partitions: tuple[Partition, ...]) -> bool:
    return any(partition.first_lba == record.first_lba for partition in partitions)


def _mend_entries(bench: Workbench, table: PartitionTable, raw: RawTable) -> RawTable:
    """Attributes and GUIDs that no GPT may have, where there is only one right answer."""
    for partition in table.partitions:
        where = f"partition {partition.number}"
        if partition.attributes & _RESERVED_ATTRIBUTES:
            raw = raw.with_attributes(partition.number, partition.attributes & ~_RESERVED_ATTRIBUTES)
            bench.did(_GPT, where, "attribute bits 3 to 47 cleared", "UEFI reserves them, they must be zero")
        if partition.unique_guid == NIL_GUID:
            guid = derived_guid("repair", str(raw.disk_guid), str(partition.number), str(partition.first_lba))
            raw = raw.with_unique(partition.number, guid)
            bench.did(_GPT, where, f"unique GUID set to {guid}", "it had none")
    if raw.disk_guid == NIL_GUID:
        guid = derived_guid("repair", str(bench.disk.size_bytes), raw.entries.hex())
        raw = RawTable(guid, raw.entry_size, raw.entries, raw.first_usable_lba, raw.last_usable_lba)
        bench.did(_GPT, "GPT headers", f"disk GUID set to {guid}", "the disk had none")
    return raw


def _entries(bench: Workbench, table: PartitionTable) -> bytes:
    assert table.header is not None  # noqa: S101 - the caller looked
    return bench.disk.read(table.header.entries_lba * bench.disk.sector_size, table.header.entries_size_bytes)


def _say_done(bench: Workbench, before: PartitionTable, after: PartitionTable) -> None:
    """One edit for each of the two tables that changed, with everything that was wrong with it as the reason."""
    left = {problem.code for problem in after.serious_problems}
    gone = [problem for problem in before.serious_problems if problem.code not in left]
    source = before.source.value if before.source else "other"
    moved = [p for p in gone if p.code in ("backup-not-at-end", "disk-truncated")]
    if moved:
        last = bench.disk.size_bytes // bench.disk.sector_size - 1
        bench.did(_GPT, f"LBA {last}", "backup GPT written at the end of the disk", moved[0].message)
    for half in TableSource:
        faults = [problem for problem in gone if problem.code.startswith(half.value) and problem not in moved]
        if faults:
            action = f"{half.value} GPT rebuilt from the {'intact ' if half.value != source else ''}{source} table"
            bench.did(_GPT, faults[0].evidence.where, action, " ".join(_messages(faults)))
    differing = [problem for problem in gone if problem.code.endswith("-differs") or problem.code == "entries-differ"]
    if differing:
        reason = f"{' '.join(_messages(differing))} Firmware and systems take the primary."
        bench.did(_GPT, differing[0].evidence.where, "backup GPT made the copy of the primary", reason)


def _messages(problems: list[Problem]) -> list[str]:
    return list(dict.fromkeys(problem.message for problem in problems))


def _room_remedy(table: PartitionTable) -> str:
    if any(problem.code == "disk-truncated" for problem in table.problems):
        return "the image was cut short: take the whole image again"
    return "make the disk larger (`qemu-img resize IMAGE +1M`), or its last partition smaller"


def _say_hopeless(bench: Workbench, table: PartitionTable) -> None:
    for problem in table.serious_problems:
        remedy = _REMEDIES.get(problem.code, "make the image anew, for example with `armvm build`")
        bench.cannot(_GPT, problem.evidence.where, problem.message, remedy)
