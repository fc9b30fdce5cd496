"""The journal: at whatever step a repair dies, the image can be brought to one of its two states, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from armvm.disk.writable import ImageWriter, RawWriter, open_writer
from armvm.errors import BusyError, InputError, OutputError
from armvm.repair import journal
from armvm.repair.journal import Change, journal_path, left_behind, resume, undo, write_in_place

SIZE = 64 * 1024


class PowerCutError(BaseException):
    """The moment at which everything stops."""


class DyingWriter(RawWriter):
    """Writes until its steps are used up; the write at which it dies is half done."""

    steps = 0

    def write(self, offset: int, content: bytes) -> None:
        if type(self).steps == 0:
            super().write(offset, content[: len(content) // 2])
            raise PowerCutError
        type(self).steps -= 1
        super().write(offset, content)

    def flush(self) -> None:
        if type(self).steps == 0:
            raise PowerCutError
        type(self).steps -= 1
        super().flush()


def dying_after(steps: int) -> Callable[[Path, str], ImageWriter]:
    class Writer(DyingWriter):
        pass

    Writer.steps = steps
    return lambda path, _format: Writer(path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def changes_of(old: bytes, seed: int = 2) -> list[Change]:
    source = random.Random(seed)
    offsets = sorted(source.sample(range(SIZE // 512), 9))
    return [(o * 512, old[o * 512 : o * 512 + 512], source.randbytes(512)) for o in offsets]


def applied(old: bytes, changes: list[Change]) -> bytes:
    new = bytearray(old)
    for offset, _, content in changes:
        new[offset : offset + len(content)] = content
    return bytes(new)


def test_a_repair_that_is_not_disturbed_leaves_no_journal(image: Path) -> None:
    old = image.read_bytes()
    changes = changes_of(old)
    write_in_place(image, "raw", SIZE, changes)
    assert image.read_bytes() == applied(old, changes)
    assert not journal_path(image).exists()
    assert not left_behind(image)


@pytest.mark.parametrize("steps", range(10))
@pytest.mark.parametrize("settle", [resume, undo])
@pytest.mark.parametrize("again", [0, 4, 9])
def test_dying_at_any_write_and_again_while_settling(
    image: Path, steps: int, again: int, settle: Callable[..., bool]
) -> None:
    old = image.read_bytes()
    changes = changes_of(old)
    new = applied(old, changes)
    with pytest.raises(PowerCutError):
        write_in_place(image, "raw", SIZE, changes, opener=dying_after(steps))
    assert left_behind(image)
    with pytest.raises(BusyError, match="interrupted"):
        write_in_place(image, "raw", SIZE, changes)
    with pytest.raises(PowerCutError):
        settle(image, opener=dying_after(again))
    assert settle(image)
    assert image.read_bytes() == (new if settle is resume else old)
    assert not journal_path(image).exists()


def test_one_may_change_ones_mind_between_undo_and_resume(image: Path) -> None:
    old = image.read_bytes()
    changes = changes_of(old)
    for first, last, expected in ((undo, resume, applied(old, changes)), (resume, undo, old)):
        image.write_bytes(old)
        with pytest.raises(PowerCutError):
            write_in_place(image, "raw", SIZE, changes, opener=dying_after(5))
        with pytest.raises(PowerCutError):
            first(image, opener=dying_after(3))
        assert last(image)
        assert image.read_bytes() == expected


def test_a_journal_cut_off_anywhere_means_an_untouched_image(image: Path) -> None:
    old = image.read_bytes()
    with pytest.raises(PowerCutError):
        write_in_place(image, "raw", SIZE, changes_of(old), opener=dying_after(0))
    whole = journal_path(image).read_bytes()
    image.write_bytes(old)
    for length in [*range(200), *range(200, len(whole) - 60, 97), *range(len(whole) - 60, len(whole))]:
        for settle in (resume, undo):
            journal_path(image).write_bytes(whole[:length])
            assert settle(image) is False, length
            assert image.read_bytes() == old
            assert not journal_path(image).exists()
        journal_path(image).write_bytes(whole[:length])
        assert not left_behind(image)
    journal_path(image).write_bytes(whole)
    assert resume(image)


def test_a_damaged_journal_writes_nothing(image: Path) -> None:
    old = image.read_bytes()
    with pytest.raises(PowerCutError):
        write_in_place(image, "raw", SIZE, changes_of(old), opener=dying_after(0))
    half = image.read_bytes()
    whole = journal_path(image).read_bytes()
    for place in range(0, len(whole) - 10, 211):
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        journal_path(image).write_bytes(damaged)
        with pytest.raises(InputError):
            resume(image)
        assert image.read_bytes() == half
        assert journal_path(image).exists()


def test_an_image_that_is_not_the_journals_is_refused_untouched(image: Path) -> None:
    old = image.read_bytes()
    changes = changes_of(old)
    with pytest.raises(PowerCutError):
        write_in_place(image, "raw", SIZE, changes, opener=dying_after(4))
    half = bytearray(image.read_bytes())
    place = changes[6][0] + 17
    half[place] = next(value for value in range(256) if value not in (changes[6][1][17], changes[6][2][17]))
    for stranger, match in ((bytes(half), "changed since"), (bytes(half) + bytes(512), "is not the image")):
        image.write_bytes(stranger)
        for settle in (resume, undo):
            with pytest.raises(InputError, match=match):
                settle(image)
            assert image.read_bytes() == stranger
    assert journal_path(image).exists()


def test_an_image_that_changed_since_the_plan_is_refused(image: Path) -> None:
    changes = changes_of(image.read_bytes())
    other = bytearray(image.read_bytes())
    other[changes[3][0]] ^= 1
    image.write_bytes(other)
    with pytest.raises(InputError, match="changed since"):
        write_in_place(image, "raw", SIZE, changes)
    assert image.read_bytes() == other
    assert not journal_path(image).exists()


def test_a_place_that_holds_the_new_bytes_already_is_a_change_too(image: Path) -> None:
    changes = changes_of(image.read_bytes())
    other = applied(image.read_bytes(), changes[:1])
    image.write_bytes(other)
    with pytest.raises(InputError, match="changed since"):
        write_in_place(image, "raw", SIZE, changes)
    assert image.read_bytes() == other


def test_a_journal_is_nobody_elses_to_read(image: Path) -> None:
    with pytest.raises(PowerCutError):
        write_in_place(image, "raw", SIZE, changes_of(image.read_bytes()), opener=dying_after(0))
    assert journal_path(image).stat().st_mode & 0o777 == 0o600


def test_an_image_in_use_is_refused(image: Path) -> None:
    old = image.read_bytes()
    with open_writer(image, "raw"), pytest.raises(BusyError):
        write_in_place(image, "raw", SIZE, changes_of(old))
    assert image.read_bytes() == old
    assert not journal_path(image).exists()


def test_nothing_to_settle_is_said(image: Path) -> None:
    for settle in (resume, undo):
        with pytest.raises(InputError, match="no interrupted repair"):
            settle(image)


def test_a_repair_under_way_keeps_others_out(image: Path) -> None:
    journal_path(image).write_bytes(b"")
    with journal_path(image).open("r+b") as file:
        journal._lock(file, journal_path(image))
        for act in (resume, undo, left_behind):
            with pytest.raises(BusyError):
                act(image)
    assert journal_path(image).exists()


def test_a_disk_without_room_for_the_journal_leaves_the_image_alone(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    old = image.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_in_place(image, "raw", SIZE, changes_of(old))
    assert image.read_bytes() == old
    assert not journal_path(image).exists()


def test_a_link_to_an_image_shares_its_journal(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.mkdir()
    (link / "link.img").symlink_to(image)
    assert journal_path(link / "link.img") == journal_path(image)
