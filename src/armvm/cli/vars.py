"""``armvm vars``: the UEFI variables of a kept instance, read while it does not run."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from armvm.cli.options import Parser, common_options
from armvm.disk.detect import open_disk
from armvm.errors import UsageError
from armvm.firmware.values import describe
from armvm.firmware.variables import Variable, VariableStore
from armvm.firmware.varstore import READ_BYTES, parse_store
from armvm.instance.store import find
from armvm.printable import printable

DESCRIPTION = "Reads the UEFI variables of a kept instance (armvm run IMAGE --name NAME). It must not be running."

EXAMPLES = """\
  armvm vars list web               name and value, in words where the meaning is known
  armvm vars list web -v            and the bytes
  armvm vars list web --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of the verb."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser("list", parents=[common_options()], help="list the variables")
    listing.add_argument("instance", metavar="INSTANCE")
    listing.add_argument("--json", action="store_true", help="machine-readable, with the bytes in hex")
    listing.set_defaults(action=_list)


def execute(options: argparse.Namespace) -> int:
    """Do the chosen action. Returns the exit code."""
    return int(options.action(options))


def _list(options: argparse.Namespace) -> int:
    variables = sorted(_read(options.instance).variables, key=lambda variable: (str(variable.vendor), variable.name))
    if options.json:
        import json

        print(json.dumps({"schema": "armvm.variables/1", "variables": [_as_json(one) for one in variables]}, indent=2))
        return 0
    for variable in variables:
        print(f"{variable.vendor} {printable(variable.name)} = {describe(variable)}")
        if options.verbose:
            print(f"    {_attributes(variable)}; {variable.data.hex() or 'empty'}")
    return 0


def _read(name: str) -> VariableStore:
    """The instance's store. What is wrong with it is said on standard error."""
    instance = find(name)
    if not instance.exists:
        raise UsageError(f"there is no instance {name}", hint=f"armvm run IMAGE --name {name} makes it")
    with instance.locked(), open_disk(instance.variables, format="qcow2", sector_size=512) as flash:
        store = parse_store(flash.read(0, min(READ_BYTES, flash.size_bytes)), subject=str(instance.variables))
    for problem in store.problems:
        print(f"armvm: {instance.variables}, {problem.evidence.where}: {problem.message}", file=sys.stderr)
    return store


def _as_json(variable: Variable) -> dict[str, Any]:
    return {
        "name": printable(variable.name),
        "vendor": str(variable.vendor),
        "attributes": int(variable.attributes),
        "value": describe(variable),
        "hex": variable.data.hex(),
    }


def _attributes(variable: Variable) -> str:
    names = [flag.name.lower().replace("_", " ") for flag in variable.attributes if flag.name]
    return ", ".join(names) or "no attributes"
