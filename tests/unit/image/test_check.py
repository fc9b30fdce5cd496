"""Every check passes a good image and fails exactly where an image is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from armvm.disk.storage import BaseDisk
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.check import check_image
from armvm.image.check import CHECKS
from armvm.spec.catalogue import PROFILES, Topic, requirements, requirements_of
from armvm.spec.verdict import Finding, Level, Report, Verdict
from tools.disk_images import (
    AA64,
    BROKEN,
    disk_image,
    unified_kernel,
)


def _finding(report: Report, requirement: str) -> Finding:
    return next(finding for finding in report.findings if finding.requirement == requirement)


def test_a_good_image_fails_nothing_and_passes_every_check() -> None:
    report = check_image(disk_image())
    passed = {f.requirement for f in report.findings if f.verdict is Verdict.PASS}
    assert passed == {*CHECKS, "image.self-contained-boot"}
    assert not report.failed(Level)
    assert report.conforms is None  # its kernel is made up: nothing can be said of the guest


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_image_fails_exactly_the_requirement_it_breaks(what: str) -> None:
    requirement, make = BROKEN[what]
    report = check_image(make())
    assert [finding.requirement for finding in report.failed(Level)] == [requirement]
    finding = _finding(report, requirement)
    assert finding.evidence, "a failure shows what was seen"
    assert finding.remedy
    assert report.conforms is (None if finding.level is Level.SHOULD else False)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_requirement_on_images_gets_one_finding(profile: str) -> None:
    report = check_image(disk_image(), profile=profile)
    expected = [requirement.id for requirement in requirements_of(profile, Topic.IMAGE, Topic.GUEST)]
    assert [finding.requirement for finding in report.findings] == expected
    for finding in report.findings:
        assert finding.level is requirements()[finding.requirement].clauses[profile].level


def test_what_has_no_check_is_unknown_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    later = replace(requirements()["image.gpt"], id="image.later", unchecked="nobody wrote it yet")
    monkeypatch.setattr("armvm.guest.check.requirements_of", lambda *_: (later,))
    (finding,) = check_image(disk_image()).findings
    assert (finding.verdict, finding.message) == (Verdict.UNKNOWN, "not judged: nobody wrote it yet")


def test_what_stands_on_a_missing_ground_is_not_applicable_and_names_it() -> None:
    report = check_image(BROKEN["ESP of another type"][1]())
    for requirement, ground in {
        "image.esp-fat32": "image.esp",
        "image.removable-path": "image.esp-fat32",
        "image.efi-application": "image.removable-path",
        "image.no-variables": "image.esp-fat32",
    }.items():
        finding = _finding(report, requirement)
        assert finding.verdict is Verdict.NOT_APPLICABLE
        assert ground in finding.message


def test_what_can_still_be_judged_behind_a_broken_table_is_judged() -> None:
    report = check_image(BROKEN["primary header wiped"][1]())
    assert _finding(report, "image.removable-path").verdict is Verdict.PASS


def test_an_mbr_esp_is_no_esp() -> None:
    from tools.disk_images import _mbr_only, with_table
    from tools.gpt_images import RECORD

    def edit(table: bytearray) -> None:
        _mbr_only(table)
        table[RECORD + 4] = 0xEF

    report = check_image(with_table(edit)())
    assert {finding.requirement for finding in report.failed(Level)} == {"image.gpt", "image.esp"}


def test_the_states_an_image_must_serve_can_be_asked_for() -> None:
    only_64 = disk_image({AA64: unified_kernel()})
    assert not check_image(only_64, states=[ExecutionState.AARCH64]).failed(Level)
    failed = check_image(only_64, states=list(ExecutionState)).failed(Level)
    assert [finding.requirement for finding in failed] == ["image.removable-path"]
    assert "BOOTARM.EFI" in failed[0].evidence[0].expected  # type: ignore[operator]


def test_the_vendor_loader_is_named_and_the_repair_offered() -> None:
    finding = check_image(BROKEN["vendor path only"][1]()).failed(Level)[0]
    assert "\\EFI\\debian\\grubaa64.efi" in finding.message
    assert finding.remedy is not None
    assert "\\EFI\\BOOT\\BOOTAA64.EFI" in finding.remedy


def test_two_esps_are_a_warning() -> None:
    from tools.disk_images import _two_partitions
    from tools.gpt_images import ESP

    report = check_image(_two_partitions(b"", ESP)())
    finding = _finding(report, "image.esp")
    assert finding.verdict is Verdict.PASS
    assert "2 EFI System Partitions" in finding.message
    assert _finding(report, "image.esp-fat32").verdict is Verdict.FAIL  # the second one is no FAT
    assert _finding(report, "image.removable-path").verdict is Verdict.PASS


def test_an_unreadable_disk_is_an_error_and_an_unreadable_place_is_unknown() -> None:
    class Holed(BaseDisk):
        """A disk with a hole that cannot be read."""

        def __init__(self, first_bad: int, last_bad: int) -> None:
            self.under = disk_image()
            super().__init__("holed", "raw", self.under.size_bytes)
            self.bad = range(first_bad, last_bad)

        def _read(self, offset: int, length: int) -> bytes:
            if offset < self.bad.stop and offset + length > self.bad.start:
                raise InputError("unreadable", subject=self.name, offset_bytes=offset)
            return self.under.read(offset, length)

    with pytest.raises(InputError):
        check_image(Holed(0, 1024))
    root_directory = 1024 * 1024 + 32 * 512 + 2 * 521 * 512
    report = check_image(Holed(root_directory - 8192, root_directory + 8192))
    assert _finding(report, "image.removable-path").verdict in (Verdict.UNKNOWN, Verdict.NOT_APPLICABLE)
    assert _finding(report, "image.gpt").verdict is Verdict.PASS
