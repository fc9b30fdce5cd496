"""Small real guests, each with one seeded fault: the audit names exactly what is wrong with it.

Goes to tests/foreign/test_guest_audit.py once armvm.guest.check.check_image is there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.execution import ExecutionState
from armvm.guest.check import check_image
from armvm.spec.verdict import Report, Verdict
from tools.guest_faults import SEEDED
from tools.guest_images import GuestImage, copy_guest, good_guest


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


def _judge(image: GuestImage) -> Report:
    with open_disk(image.path) as disk:
        return check_image(disk)


def _named(report: Report, verdict: Verdict) -> set[str]:
    return {finding.requirement for finding in report.findings if finding.verdict is verdict}


@pytest.mark.parametrize("state", ExecutionState)
def test_the_good_guest_conforms_in_full(guests: Path, state: ExecutionState) -> None:
    """Every must and every should, and nothing left unknown."""
    report = _judge(good_guest(guests, state))
    assert not _named(report, Verdict.FAIL), report
    assert not _named(report, Verdict.UNKNOWN), report
    assert report.conforms is True


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_fault_is_named_and_nothing_else(guests: Path, name: str, tmp_path: Path) -> None:
    fault = SEEDED[name]
    image = copy_guest(good_guest(guests), tmp_path / "faulty.img")
    fault.edit(image)
    report = _judge(image)
    assert _named(report, Verdict.FAIL) == fault.requirements
    for finding in report.findings:
        if finding.verdict is Verdict.FAIL:
            assert finding.evidence, f"{finding.requirement} names no place"
            assert finding.remedy


# For tests/boot (repair): for every name with SEEDED[name].repairable, `armvm repair --write` the copy, then
# _judge(image).conforms must be True, and `armvm run image.path --until f"{READY} debian aarch64 mounts=ok swap=ok"`
# (tools.guest_images.READY) must exit 0.
