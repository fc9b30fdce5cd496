"""``armvm repair`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armvm.repair.journal import journal_path
from conftest import Armvm
from tools.disk_images import BROKEN, disk_image
from tools.fat_images import save_sparse
from tools.repairs import much_to_repair


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return much_to_repair(tmp_path / "disk.img")


def test_by_default_nothing_is_written_and_everything_is_said(armvm: Armvm, image: Path) -> None:
    before = image.read_bytes()
    result = armvm("repair", image)
    assert result.returncode == 0, result.stderr
    for word in ("6 edits would be made", "LBA 0", "BOOTAA64.EFI", "ubootefi.var", "NvVars", "FSInfo", "why:"):
        assert word in result.stdout
    assert "musts fail; would then be: nothing failed" in result.stdout
    assert "nothing was written" in result.stdout
    assert image.read_bytes() == before
    assert [path.name for path in image.parent.iterdir() if path.is_file()] == ["disk.img"]


def test_the_plan_as_json(armvm: Armvm, image: Path) -> None:
    document = json.loads(armvm("repair", "--format", "json", image).stdout)
    assert document["schema"] == "armvm.repair/1"
    assert document["mode"] == "plan"
    assert (document["before"]["conforms"], document["unrepairable"]) == (False, [])
    assert all(set(edit) == {"requirement", "where", "action", "reason"} for edit in document["edits"])


def test_only_and_except_choose(armvm: Armvm, image: Path) -> None:
    def requirements(*options: str) -> set[str]:
        result = armvm("repair", "--format", "json", *options, image)
        return {edit["requirement"] for edit in json.loads(result.stdout)["edits"]}

    assert requirements("--only", "image.gpt") == {"image.gpt"}
    assert "image.gpt" not in requirements("--except", "image.gpt")
    wrong = armvm("repair", "--only", "image.gtp", image)
    assert wrong.returncode == 2
    assert "image.gpt" in wrong.stderr


def test_a_good_image_needs_nothing(armvm: Armvm, tmp_path: Path) -> None:
    good = save_sparse(disk_image(), tmp_path / "good.img")
    before = good.stat().st_mtime_ns
    result = armvm("repair", "--write", good)
    assert (result.returncode, result.stdout) == (0, f"{good}: nothing to repair\n")
    assert good.stat().st_mtime_ns == before


def test_what_cannot_be_repaired_is_said_and_exits_1(armvm: Armvm, tmp_path: Path) -> None:
    broken = save_sparse(BROKEN["fat chain-loop"][1](), tmp_path / "broken.img")
    result = armvm("repair", broken)
    assert result.returncode == 1
    assert "left  image.esp-fat32" in result.stdout
    assert "by hand: " in result.stdout


def test_what_may_not_be_written_is_refused(armvm: Armvm, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"mine")
    assert armvm("repair", "-o", out, image).returncode == 69
    assert out.read_bytes() == b"mine"
    assert armvm("repair", "-o", out, "--force", image).returncode == 0
    assert armvm("repair", "--force", image).returncode == 2
    assert armvm("repair", "--write", "-o", out, image).returncode == 2
    assert armvm("repair", "--resume", "--undo", image).returncode == 2


@pytest.mark.parametrize("option", ["--resume", "--undo"])
def test_without_an_interrupted_repair_there_is_nothing_to_settle(armvm: Armvm, image: Path, option: str) -> None:
    result = armvm("repair", option, image)
    assert result.returncode == 65
    assert "no interrupted repair" in result.stderr


def test_an_interrupted_repair_comes_first(armvm: Armvm, image: Path) -> None:
    from armvm.disk.raw import RawDisk
    from armvm.disk.writable import RawWriter
    from armvm.repair.journal import write_in_place
    from tools.repairs import plan

    class PowerCutError(BaseException):
        pass

    class Writer(RawWriter):
        def flush(self) -> None:
            raise PowerCutError

    before = image.read_bytes()
    with RawDisk(image) as disk, plan(disk)[1] as patched, pytest.raises(PowerCutError):
        write_in_place(image, "raw", disk.size_bytes, patched.changes(), opener=lambda path, _format: Writer(path))
    for options in ([], ["--write"], ["-o", f"{image}.out"]):
        refused = armvm("repair", *options, image)
        assert refused.returncode == 69
        assert "--resume" in refused.stderr
    undone = armvm("repair", "--undo", image)
    assert (undone.returncode, "taken back" in undone.stdout) == (0, True)
    assert image.read_bytes() == before
    assert not journal_path(image).exists()


def test_a_journal_that_was_never_whole_is_no_obstacle(armvm: Armvm, image: Path) -> None:
    journal_path(image).write_bytes(b"armvm repair jour")
    settled = armvm("repair", "--resume", image)
    assert (settled.returncode, "untouched" in settled.stdout) == (0, True)
    journal_path(image).write_bytes(b"")
    assert armvm("repair", "--write", image).returncode == 0
    assert armvm("check", image).returncode == 0
    assert not journal_path(image).exists()
