"""The checks of a disk's layout: the GPT, the ESP, the FAT32 file system on it."""

from __future__ import annotations

from armvm.disk.fat import FatKind, FatVolume
from armvm.disk.gpt_format import TableKind
from armvm.guid import ESP_TYPE
from armvm.image.contents import Esp, ImageContents
from armvm.printable import printable
from armvm.spec.judgement import Judgement, failed, judged_by_problems, not_applicable, passed
from armvm.spec.verdict import Evidence, Problem, Verdict

_MBR_ESP_TYPE = 0xEF


def check_gpt(contents: ImageContents) -> Judgement:
    """image.gpt: the whole of UEFI 2.10 §5.2.3 and §5.3."""
    table = contents.table
    if table.kind is TableKind.NONE:
        evidence = tuple(problem.evidence for problem in table.problems)
        return failed("There is no partition table on the disk.", *evidence)
    partitions = len(table.partitions)
    count = f"{partitions} partition" if partitions == 1 else f"{partitions} partitions"
    return judged_by_problems(
        table.problems,
        good=f"A GPT with {count}; primary and backup table are sound.",
        bad="The partition table is faulty",
    )


def check_esp(contents: ImageContents) -> Judgement:
    """image.esp: an entry with the ESP's type GUID, in a GPT that no hybrid MBR contradicts."""
    table, esps = contents.table, contents.esps
    legacy = [record for record in table.mbr.legacy if record.type == _MBR_ESP_TYPE] if table.mbr else []
    if table.kind is TableKind.MBR_ONLY and legacy:
        return failed(
            "The EFI System Partition stands in an MBR, not in a GPT.",
            Evidence(f"MBR, record {legacy[0].number}", "type 0xef", f"a GPT entry of type {_shown(ESP_TYPE)}"),
        )
    if table.source is None:
        return not_applicable("image.gpt", "There is no GPT that could name an EFI System Partition")
    if not esps:
        types = [Evidence(f"partition {p.number}", f"type {_shown(p.type_guid)}") for p in table.partitions]
        wanted = Evidence("GPT", f"{len(types)} partitions, none of them an ESP", f"type {_shown(ESP_TYPE)}")
        return failed("No partition is an EFI System Partition.", wanted, *types[:16])
    if table.kind is TableKind.HYBRID and legacy:
        return failed(
            "The EFI System Partition stands in a hybrid MBR as well as in the GPT.",
            Evidence(f"MBR, record {legacy[0].number}", "type 0xef", "a protective MBR, with one record of type 0xee"),
        )
    numbers = ", ".join(str(esp.partition.number) for esp in esps)
    if len(esps) > 1:
        return passed(
            f"{len(esps)} EFI System Partitions: which of them is booted is the firmware's choice.",
            Evidence("GPT", f"ESPs: partitions {numbers}", "one ESP"),
        )
    esp = esps[0]
    if esp.partition.hidden_from_firmware:
        return failed(
            "The EFI System Partition tells firmware not to look into it.",
            Evidence(esp.where, f"attributes {esp.partition.attributes:#x} (No Block IO Protocol)", "bit 1 clear"),
            remedy=f"Clear the attribute, for example `sgdisk -A {numbers}:clear:1 IMAGE`.",
        )
    size = esp.partition.size_bytes(contents.disk.sector_size)
    return passed(f"Partition {numbers} is the EFI System Partition.", Evidence(esp.where, f"{size} bytes"))


def check_esp_fat32(contents: ImageContents) -> Judgement:
    """image.esp-fat32: every ESP is FAT32, and sound."""
    if not contents.esps:
        return not_applicable("image.esp", "There is no EFI System Partition")
    judgements = [_check_volume(contents, esp) for esp in contents.esps]
    return next((judgement for judgement in judgements if judgement.verdict is Verdict.FAIL), judgements[0])


def _check_volume(contents: ImageContents, esp: Esp) -> Judgement:
    if esp.volume is None:
        found = printable(esp.error.message) if esp.error else "unreadable"
        return failed("The ESP has no FAT file system.", Evidence(esp.where, found, "a FAT32 file system"))
    problems = list(contents.volume_problems(esp))
    if esp.volume.kind is not FatKind.FAT32 and not any(problem.serious for problem in problems):
        problems.insert(0, _not_fat32(esp.volume))
    return judged_by_problems(
        problems,
        good=f"FAT32 with {esp.volume.cluster_count} clusters, label {printable(esp.volume.label) or 'none'}.",
        bad="The file system of the ESP is faulty",
        where=esp.where,
    )


def _not_fat32(volume: FatVolume) -> Problem:
    found = f"{volume.kind.name} ({volume.cluster_count} clusters)"
    return Problem(
        "not-fat32", "The ESP is not FAT32.", Evidence("boot sector", found, "FAT32 (65525 clusters or more)")
    )


def _shown(guid: object) -> str:
    return str(guid).upper()
