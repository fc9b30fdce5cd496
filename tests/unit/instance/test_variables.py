from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import BusyError, InputError, MissingError, OutputError, UsageError
from armvm.firmware.first_boot import first_boot_variables
from armvm.firmware.variables import (
    FLASH_SIZE_BYTES,
    Variable,
    VariableStore,
    new_instance_variables,
    with_variable,
    without_variable,
)
from armvm.firmware.varstore import parse_store, serialise_store
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.instance import variables as subject
from armvm.instance.lock import HolderKind
from armvm.instance.store import Instance, find
from armvm.instance.variables import edit_variables, new_store, read_store_file, read_variables, reset_variables
from tools.kept import kept_instance, put_flash, raw_flash
from tools.machines import machine_of
from tools.varstores import AREA, Raw, flash, journal, variable_area

NEW = (*first_boot_variables(), *new_instance_variables())
TIMEOUT = Variable("Timeout", EFI_GLOBAL_VARIABLE, b"\7\0")


@pytest.fixture
def web(tmp_path: Path) -> Instance:
    return kept_instance(tmp_path)


def set_timeout(store: VariableStore) -> VariableStore:
    return with_variable(store, TIMEOUT)


def test_an_edit_is_in_the_store_and_qemu_img_finds_it_sound(web: Instance) -> None:
    edit = edit_variables(web, set_timeout)
    assert edit.changes
    assert edit.before is not None
    assert edit.before.variables == NEW
    assert read_variables(web).variables == edit.after.variables == (*first_boot_variables(), TIMEOUT)
    subprocess.run(["qemu-img", "check", "-q", web.variables], check=True, timeout=60)
    assert web.variables.stat().st_mode & 0o777 == 0o600


def test_what_stands_behind_the_store_is_kept(web: Instance, tmp_path: Path) -> None:
    put_flash(web, (flash(Raw("a")) + b"\xaa" * 1000).ljust(5 << 20, b"\xff") + b"the end")
    edit_variables(web, set_timeout)
    raw = raw_flash(web, tmp_path).read_bytes()
    assert len(raw) == FLASH_SIZE_BYTES
    assert raw[3 * AREA :].rstrip(b"\0") == (b"\xaa" * 1000).ljust((5 << 20) - 3 * AREA, b"\xff") + b"the end"
    assert [one.name for one in parse_store(raw).variables] == ["a", "Timeout"]


def test_firmware_that_keeps_no_variables_has_none_to_edit(tmp_path: Path) -> None:
    """U-Boot would never see them."""
    machine = machine_of(disk=tmp_path / "image.raw")
    boot = kept_instance(tmp_path, "boot", machine, code=b"U-Boot".ljust(4096, b"\0"))
    before = boot.variables.read_bytes()
    for attempt in (read_variables, lambda one: edit_variables(one, set_timeout), reset_variables):
        with pytest.raises(UsageError, match="firmware of boot keeps no variables") as caught:
            attempt(boot)
        assert "ubootefi.var" in str(caught.value.hint)
    assert boot.variables.read_bytes() == before
    # Without its firmware nothing is known of it; the store can still be seen to.
    (tmp_path / "code.fd").unlink()
    assert read_variables(boot).variables == NEW


def test_what_changes_nothing_writes_nothing(web: Instance) -> None:
    before = web.variables.stat()
    assert not edit_variables(web, lambda store: store).changes
    assert edit_variables(web, set_timeout, dry_run=True).changes
    with pytest.raises(UsageError, match="no variable"):
        edit_variables(web, lambda store: without_variable(store, "Gone"))
    after = web.variables.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_damaged_store_is_written_only_by_force(web: Instance) -> None:
    put_flash(web, flash(Raw("a"), checksum_error=1))
    with pytest.raises(InputError, match="checksum is wrong") as caught:
        edit_variables(web, set_timeout)
    assert "--force" in str(caught.value.hint)
    assert [one.name for one in edit_variables(web, set_timeout, force=True).after.variables] == ["a", "Timeout"]
    assert read_variables(web).problems == ()


def test_an_interrupted_rewrite_is_no_damage(web: Instance) -> None:
    put_flash(web, flash(Raw("a"), working=journal((0b100, 0b101)), spare=variable_area(Raw("b"))))
    edit_variables(web, set_timeout)
    assert [one.name for one in read_variables(web).variables] == ["b", "Timeout"]
    assert read_variables(web).problems == ()


def test_a_blank_store_is_formatted(web: Instance) -> None:
    put_flash(web, b"\0")
    edit_variables(web, set_timeout)
    assert read_variables(web).variables == (TIMEOUT,)


def test_reset_works_whatever_was_there(web: Instance) -> None:
    edit_variables(web, set_timeout)
    assert reset_variables(web, dry_run=True).changes
    assert read_variables(web).variables == (*first_boot_variables(), TIMEOUT)
    reset_variables(web)
    assert read_variables(web).variables == NEW
    for content in (b"no qcow2", b""):
        web.variables.write_bytes(content)
        with pytest.raises(InputError):
            read_variables(web)
        assert reset_variables(web).before is None
        assert read_variables(web).variables == NEW
    web.variables.unlink()
    reset_variables(web)
    assert read_variables(web).variables == NEW


def test_a_secure_machine_starts_with_its_makers_keys() -> None:
    machine = machine_of()
    shipped = Path("/usr/share/AAVMF/AAVMF_VARS.ms.fd")
    secure = replace(machine, secure_boot=True, firmware=replace(machine.firmware, vars_template=shipped))
    assert parse_store(new_store(secure)).find("PK") is not None
    assert parse_store(new_store(replace(secure, secure_boot=False))).find("PK") is None
    assert read_store_file(shipped).find("PK") is not None


def test_a_running_machine_is_left_alone_at_once(web: Instance) -> None:
    with web.locked(kind=HolderKind.MACHINE):
        for attempt in (
            lambda: read_variables(web),
            lambda: edit_variables(web, set_timeout),
            lambda: reset_variables(web),
        ):
            with pytest.raises(BusyError, match="running"):
                attempt()


def test_no_such_instance() -> None:
    with pytest.raises(UsageError, match="no instance nobody"):
        edit_variables(find("nobody"), set_timeout)


def test_a_full_disk_loses_nothing(web: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    names = {path.name for path in web.folder.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        edit_variables(web, set_timeout)
    monkeypatch.undo()
    assert read_store_file(web.variables).variables == NEW
    assert {path.name for path in web.folder.iterdir()} == {*names, "lock"}


def test_a_firmware_that_is_gone_is_said_at_reset(web: Instance, tmp_path: Path) -> None:
    (tmp_path / "code.fd").unlink()
    with pytest.raises((InputError, MissingError), match=r"code\.fd"):
        reset_variables(web)


def test_a_full_store_is_refused_whole(web: Instance) -> None:
    with pytest.raises(UsageError, match="the variable store holds"):
        edit_variables(web, lambda store: with_variable(store, replace(TIMEOUT, data=bytes(300_000))))
    assert read_variables(web).variables == NEW
    assert subject.WAIT_SECONDS > 60
    assert len(serialise_store([TIMEOUT])) == 3 * AREA
