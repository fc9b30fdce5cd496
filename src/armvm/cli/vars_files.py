"""``armvm vars export`` and ``import``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from armvm.atomic import write_file
from armvm.cli.vars_show import chosen, print_edit, read
from armvm.firmware.variable_files import (
    MOST_FILE_BYTES,
    merged,
    parse_json,
    read_import,
    serialise_json,
    write_folder,
)
from armvm.firmware.variables import VariableStore, with_variables
from armvm.instance.store import find
from armvm.instance.variables import edit_variables


def export(options: argparse.Namespace) -> int:
    """``armvm vars export``."""
    store = read(options.instance)
    variables = store.variables
    if options.names:
        keys = {chosen(store, name, options.vendor).key for name in options.names}
        variables = tuple(one for one in variables if one.key in keys)
    if options.efivarfs is not None:
        write_folder(options.efivarfs, variables)
    elif options.output is not None:
        write_file(options.output, serialise_json(variables))
    else:
        sys.stdout.write(serialise_json(variables).decode("ascii"))
    return 0


def import_(options: argparse.Namespace) -> int:
    """``armvm vars import``."""
    if options.source == "-":
        imported = parse_json(sys.stdin.buffer.read(MOST_FILE_BYTES + 1), subject="standard input")
    else:
        imported = read_import(Path(options.source))
    if imported.volatile and not options.quiet:
        print(f"armvm: volatile, not kept in a store: {', '.join(imported.volatile)}", file=sys.stderr)

    def change(store: VariableStore) -> VariableStore:
        added = merged(store, imported.variables)
        if options.replace:
            store = replace(store, variables=())
        return with_variables(store, added)

    edit = edit_variables(find(options.instance), change, force=options.force, dry_run=options.dry_run)
    print_edit(edit, quiet=options.quiet, dry_run=options.dry_run)
    return 0
