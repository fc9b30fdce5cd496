"""``armvm vars enroll``."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from uuid import UUID

from armvm.cli.clock import timestamp
from armvm.cli.vars_show import print_edit
from armvm.disk.raw import RawDisk
from armvm.errors import MissingError, UsageError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import find_firmware
from armvm.firmware.secure_boot import DATABASES, OWNER, SecureBoot, enrol, find_database, read_keys, secure_boot
from armvm.firmware.signatures import SignatureList, hash_list
from armvm.firmware.variables import VariableStore
from armvm.image.authenticode import authenticode_sha256
from armvm.instance.store import find
from armvm.instance.variables import edit_variables, read_store_file

_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")


def enroll(options: argparse.Namespace) -> int:
    """``armvm vars enroll``."""
    owner = _owner(options.owner)
    given = {"PK": [options.pk] if options.pk else [], "KEK": options.kek, "db": options.db, "dbx": options.dbx}
    keys = {
        name: tuple(one for source in sources for one in _keys(name, source, owner))
        for name, sources in given.items()
        if sources
    }
    template = _template(options)
    if not keys and template is None:
        raise UsageError("nothing to enrol", hint="--microsoft, --template FILE, or any of --pk --kek --db --dbx")
    seconds = timestamp()
    edit = edit_variables(
        find(options.instance),
        lambda store: enrol(store, keys, template=template, replace=options.replace, seconds=seconds).store,
        force=options.force,
        dry_run=options.dry_run,
    )
    print_edit(edit, quiet=options.quiet, dry_run=options.dry_run)
    if not options.quiet:
        state = secure_boot(edit.after)
        print(f"Secure Boot is {state.value}")
        if state is SecureBoot.ON and find_database(edit.after, "db") is None:
            print("armvm: db is empty: nothing will boot", file=sys.stderr)
    return 0


def _owner(text: str | None) -> UUID:
    try:
        return OWNER if text is None else UUID(text)
    except ValueError:
        raise UsageError(f"not a GUID: {text!r}") from None


def _keys(name: str, source: str, owner: UUID) -> tuple[SignatureList, ...]:
    """What a file, or a hash, puts into the database ``name``."""
    match = _HASH.fullmatch(source)
    if name in {"db", "dbx"}:
        if match:
            return (hash_list([bytes.fromhex(match.group(1))], owner),)
        if Path(source).is_file():
            with RawDisk(source) as program:
                if program.read(0, min(2, program.size_bytes)) == b"MZ":
                    return (hash_list([authenticode_sha256(program)], owner),)
    return read_keys(Path(source), owner)


def _template(options: argparse.Namespace) -> VariableStore | None:
    """The store whose keys are taken. Raises MissingError when the system ships none, UsageError for one without."""
    path = options.template
    if options.microsoft:
        try:
            path = find_firmware(ExecutionState.AARCH64, secure_boot=True).vars_template
        except MissingError:
            path = None
        if path is None:
            raise MissingError(
                "this system has no firmware whose variable store comes with Microsoft's keys",
                component="firmware-aarch64",
                hint="Debian and Ubuntu ship one in qemu-efi-aarch64; --template FILE takes the keys of another store, "
                "and --pk, --kek and --db your own",
            )
    if path is None:
        return None
    store = read_store_file(path)
    if not any(find_database(store, name) for name in DATABASES):
        raise UsageError(f"{path} holds no Secure Boot keys")
    return store
