"""Small real guests, each with one thing that it takes for granted: found in its line, and mended by the line given."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.errors import InputError
from armvm.guest.assumptions import Assumptions, find_assumptions
from armvm.guest.check_assumptions import check_no_assumptions
from armvm.guest.facts import Assumption, BootEntry
from armvm.guest.inspect import guest_facts
from armvm.guest.system import GuestSystem, find_system
from armvm.guid import ESP_TYPE, LINUX_ROOT_ARM64_TYPE
from armvm.spec.verdict import Verdict
from tools.guest_faults import ASSUMPTION_FAULTS
from tools.guest_images import ROOT_UUID, SWAP_UUID, GuestTree, copy_tree, guest_tree
from tools.standins import FolderFileSystem, StandInVolumes, menu_entries, volume


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GuestTree:
    return guest_tree(tmp_path_factory.mktemp("guest") / "tree")


def _volumes(tree: GuestTree) -> StandInVolumes:
    return StandInVolumes(
        (
            volume(
                1,
                "vfat",
                uuid="1A2B-3C4D",
                files=FolderFileSystem(tree.folder / "esp", name="partition 1"),
                type_guid=ESP_TYPE,
            ),
            volume(
                2,
                uuid=str(ROOT_UUID),
                label="rootfs",
                files=FolderFileSystem(tree.folder / "root"),
                type_guid=LINUX_ROOT_ARM64_TYPE,
            ),
            volume(3, "swap", uuid=str(SWAP_UUID)),
        )
    )


def _look(tree: GuestTree) -> tuple[GuestSystem, tuple[BootEntry, ...], Assumptions]:
    volumes = _volumes(tree)
    entries = menu_entries(FolderFileSystem(tree.folder / "root"))
    system = find_system(entries, volumes)
    assert system is not None
    return system, entries, find_assumptions(system, entries, volumes)


def test_the_good_guest_assumes_nothing(good: GuestTree) -> None:
    system, entries, assumptions = _look(good)
    assert assumptions == Assumptions((), ())
    assert check_no_assumptions(system, entries, assumptions).verdict is Verdict.PASS
    facts = guest_facts(system, entries)
    assert facts.os is not None
    assert facts.os.label == "Debian GNU/Linux 12 (bookworm)"
    assert facts.hostname == "small"
    assert facts.root == f"partition 2 (ext4), by root=UUID={ROOT_UUID}"
    assert facts.mounts == (("/boot/efi", "partition 1"),)


@pytest.mark.parametrize("name", ASSUMPTION_FAULTS)
def test_a_seeded_assumption_is_found_and_its_replacement_mends_it(good: GuestTree, name: str, tmp_path: Path) -> None:
    tree = copy_tree(good, tmp_path / "tree")
    fault = ASSUMPTION_FAULTS[name]
    fault.edit(tree)
    system, entries, assumptions = _look(tree)
    assert len(assumptions.serious) == 1, [each.why for each in assumptions.found]
    judgement = check_no_assumptions(system, entries, assumptions)
    assert judgement.verdict is Verdict.FAIL
    assert "line " in judgement.evidence[0].where
    assert judgement.evidence[0].expected
    assert fault.repairable == all(each.replacement is not None for each in assumptions.serious)
    _mend(tree, assumptions)
    _, _, after = _look(tree)
    assert not after.serious, [each.found for each in after.serious]


def _mend(tree: GuestTree, assumptions: Assumptions) -> None:
    by_file: dict[str, dict[int, str]] = {}
    for each in assumptions.found:
        line = _line(each)
        if line is not None and each.replacement is not None:
            by_file.setdefault(line[0], {})[line[1]] = each.replacement
    for path, changes in by_file.items():
        lines = tree.read(path).decode().split("\n")
        for number, text in changes.items():
            lines[number - 1] = text
        tree.write(path, "\n".join(lines).encode())


def _line(each: Assumption) -> tuple[str, int] | None:
    return None if each.line is None else (each.line.file.path, each.line.number)


def test_a_folder_stands_in_for_a_file_system(good: GuestTree) -> None:
    files = FolderFileSystem(good.folder / "root")
    assert files.read("/lib/os-release").startswith(b"PRETTY_NAME")
    with pytest.raises(InputError):
        files.read("/etc/shadow")
