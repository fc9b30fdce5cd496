from __future__ import annotations

import os
from pathlib import Path

import pytest

from armvm.atomic import replacing, write_file
from armvm.errors import OutputError


@pytest.fixture(params=["nameless", "named"], autouse=True)
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: as on Linux, and as where a file needs a name from the start."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")


def test_a_new_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "file", mode=0o600, overwrite=False) as file:
        file.write(b"new")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_one_in_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(OutputError, match="already there"), replacing(path, overwrite=False):
        pass
    write_file(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_one_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OutputError, match="already there"), replacing(path, overwrite=False) as file:
        file.write(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="cannot write"), replacing(path):
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), replacing(tmp_path / "no" / "file"):
        pass


def test_while_it_is_written_it_has_no_name(tmp_path: Path) -> None:
    with replacing(tmp_path / "file"):
        assert len(list(tmp_path.iterdir())) == (0 if hasattr(os, "O_TMPFILE") else 1)
