"""What becomes of the variables of a machine that was killed while its firmware wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armvm.errors import OutputError
from armvm.firmware.variables import Variable, with_variable
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.instance import safekeeping, snapshots
from armvm.instance.store import Instance
from armvm.instance.variables import edit_variables, read_variables
from tools.kept import kept_instance, put_flash, raw_flash
from tools.varstores import AREA, Raw, flash

OWN = Variable("Own", EFI_GLOBAL_VARIABLE, b"kept" * 50)


@pytest.fixture
def web(tmp_path: Path) -> Instance:
    instance = kept_instance(tmp_path)
    edit_variables(instance, lambda store: with_variable(store, OWN))
    return instance


def events_of(instance: Instance) -> list[str]:
    return [json.loads(line)["event"] for line in instance.events.read_text().splitlines()]


def content_of(instance: Instance, folder: Path) -> bytes:
    return raw_flash(instance, folder).read_bytes()[: 3 * AREA]


@pytest.mark.parametrize("written", [0, 0x64, 0x400])
def test_a_store_that_was_cut_off_is_as_the_machine_started(web: Instance, tmp_path: Path, written: int) -> None:
    before = content_of(web, tmp_path)
    safekeeping.keep(web)
    assert web.kept_variables.stat().st_mode & 0o777 == 0o600
    put_flash(web, before[:written].ljust(AREA, b"\xff") + before[AREA:])
    assert read_variables(web).find("Own") == OWN
    assert content_of(web, tmp_path) == before
    assert not web.kept_variables.exists()
    assert events_of(web)[-1] == "variables-restored"


def test_what_the_machine_wrote_in_order_stays(web: Instance) -> None:
    safekeeping.keep(web)
    put_flash(web, flash(Raw("Other")))
    web.kept_variables.write_bytes(flash())
    assert [one.name for one in read_variables(web).variables] == ["Other"]
    assert not web.kept_variables.exists()
    assert "variables-restored" not in events_of(web)


def test_a_flash_that_cannot_be_read_is_made_anew(web: Instance, tmp_path: Path) -> None:
    before = content_of(web, tmp_path)
    safekeeping.keep(web)
    web.variables.write_bytes(b"QFI\xfb and no more")
    assert read_variables(web).find("Own") == OWN
    assert content_of(web, tmp_path) == before


def test_what_is_no_good_is_not_kept(web: Instance) -> None:
    safekeeping.keep(web)
    put_flash(web, flash(Raw("a"), checksum_error=1))
    safekeeping.keep(web)
    assert not web.kept_variables.exists()
    put_flash(web, bytes(AREA))
    safekeeping.keep(web)
    assert not web.kept_variables.exists()


def test_who_goes_back_to_a_snapshot_gives_it_up(web: Instance) -> None:
    """What the machine before had is not to come back over what the snapshot has."""
    web.snapshots.mkdir()
    safekeeping.keep(web)
    snapshots.announce(web, "then")
    assert not web.kept_variables.exists()


def test_somebody_else_has_written_there(web: Instance) -> None:
    web.kept_variables.write_bytes(b"nothing of ours")
    assert read_variables(web).find("Own") == OWN
    assert not web.kept_variables.exists()


def test_a_failure_is_tried_again(web: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_of(web, tmp_path)
    safekeeping.keep(web)
    put_flash(web, b"\xff" * AREA + before[AREA:])

    def full(*_: object) -> None:
        raise OutputError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("armvm.instance.variables._replace", full)
        with pytest.raises(OutputError):
            read_variables(web)
    assert read_variables(web).find("Own") == OWN
