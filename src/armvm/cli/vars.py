"""``armvm vars``: the UEFI variables of a kept instance, read and edited while it does not run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from armvm.cli.options import Parser, common_options

DESCRIPTION = """\
Reads and edits the UEFI variables of a kept instance (armvm vm create). It must not be running.

NAME is a variable's name, where needed with its vendor: Timeout, db, shim:MokList, GUID:NAME, or NAME-GUID.
Every edit is one: all of it is checked first, and then done whole or not at all."""

EXAMPLES = """\
  armvm vars list web                           name and value, in words where the meaning is known
  armvm vars get web PlatformLang
  armvm vars set web Timeout 3
  armvm vars set web BootOrder=0001,0000 BootNext=0001 OsIndications='boot to firmware settings'
  armvm vars set web 'Boot0005=Debian|\\EFI\\debian\\grubaa64.efi'
  armvm vars set web 11112222-3333-4444-5555-666677778888:Own u32:7
  armvm vars delete web BootNext
  armvm vars export web -o web.json             and armvm vars import other web.json
  armvm vars enroll web --microsoft             Secure Boot, with the keys that the distribution ships
  armvm vars enroll web --pk pk.pem --kek kek.pem --db vendor.pem --db program.efi
  armvm vars reset web                          what a new instance has"""

_KINDS = {
    "hex": "VALUE is bytes, two digits each",
    "file": "VALUE names a file that holds the bytes",
    "string": "VALUE is text, kept as UCS-2 with its end",
    "ascii": "VALUE is text, kept as ASCII with its end",
    "u8": "VALUE is a number of 8 bits",
    "u16": "VALUE is a number of 16 bits",
    "u32": "VALUE is a number of 32 bits",
    "u64": "VALUE is a number of 64 bits",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of the verb."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=Parser)

    def action(name: str, function: str, summary: str, example: str) -> argparse.ArgumentParser:
        made = actions.add_parser(
            name, parents=[common_options()], help=summary, description=summary, epilog=f"example:\n  {example}"
        )
        made.add_argument("instance", metavar="INSTANCE")
        made.set_defaults(action=_later(function))
        return made

    listing = action("list", "vars_show:list_", "list the variables", "armvm vars list web -v")
    listing.add_argument("--json", action="store_true", help="machine-readable, with the bytes in hex")

    getting = action("get", "vars_show:get", "show one variable", "armvm vars get web db --raw > db.esl")
    getting.add_argument("name", metavar="NAME")
    _add_vendor(getting)
    form = getting.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="the bytes of its value, as they are")
    form.add_argument("--json", action="store_true", help="machine-readable, as armvm vars import takes it")

    _add_setting(action("set", "vars_edit:set_", "set variables", "armvm vars set web Timeout=3 BootNext=0001"))

    deleting = action("delete", "vars_edit:delete", "delete variables", "armvm vars delete web BootNext BootOrder")
    deleting.add_argument("names", metavar="NAME", nargs="+")
    _add_vendor(deleting)
    _add_editing(deleting)

    resetting = action("reset", "vars_edit:reset", "put back what a new instance has", "armvm vars reset web --yes")
    resetting.add_argument("-y", "--yes", action="store_true", help="do not ask")
    _add_dry_run(resetting)

    _add_exporting(
        action("export", "vars_files:export", "write variables to a file", "armvm vars export web -o w.json")
    )

    importing = action("import", "vars_files:import_", "take variables from a file", "armvm vars import web w.json")
    importing.add_argument(
        "source",
        metavar="SOURCE",
        help="JSON of armvm vars export or virt-fw-vars, a file or folder of Linux's efivarfs; - is standard input",
    )
    importing.add_argument("--replace", action="store_true", help="delete what SOURCE does not have")
    _add_editing(importing)

    _add_enrolling(
        action(
            "enroll", "vars_enroll:enroll", "enrol Secure Boot keys", "armvm vars enroll web --pk pk.pem --db db.pem"
        )
    )


def execute(options: argparse.Namespace) -> int:
    """Do the chosen action. Returns the exit code."""
    return int(options.action(options))


def _later(place: str) -> Callable[[argparse.Namespace], int]:
    """An action that loads its module when it is done."""
    module, _, function = place.partition(":")
    return lambda options: int(getattr(import_module(f"armvm.cli.{module}"), function)(options))


def _add_vendor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vendor", metavar="GUID", help="whose variable it is; or global, security-database, shim, …")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be different")


def _add_editing(parser: argparse.ArgumentParser) -> None:
    _add_dry_run(parser)
    parser.add_argument(
        "--force", action="store_true", help="write also a store that is damaged: what of it is lost stays so"
    )


def _add_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "assignments",
        metavar="NAME=VALUE",
        nargs="+",
        help="or one NAME VALUE; VALUE is in the words of well-known variables, or typed: u16:3, hex:00ff, …",
    )
    kinds = parser.add_mutually_exclusive_group()
    for kind, meaning in _KINDS.items():
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=meaning)
    _add_vendor(parser)
    parser.add_argument(
        "--attributes", metavar="LIST", help="of nv,bs,rt,at, or a number; default: as it is, or as its like have it"
    )
    _add_editing(parser)


def _add_exporting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these; default: all")
    _add_vendor(parser)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("-o", "--output", metavar="FILE", type=Path, help="the JSON file; default: standard output")
    target.add_argument("--efivarfs", metavar="FOLDER", type=Path, help="a new folder of files as Linux's efivarfs has")


def _add_enrolling(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--microsoft", action="store_true", help="the keys of the template that the distribution ships")
    source.add_argument(
        "--template", metavar="FILE", type=Path, help="the keys of another variable store, raw or qcow2"
    )
    parser.add_argument("--pk", metavar="FILE", help="the platform key: a certificate")
    for name, meaning in (
        ("kek", "key exchange keys: who may change db and dbx"),
        ("db", "what may boot: certificates, or EFI programs by their hash"),
        ("dbx", "what may not"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", action="append", default=[], help=meaning)
    parser.add_argument("--owner", metavar="GUID", help="who is said to have enrolled them; default: armvm")
    parser.add_argument("--replace", action="store_true", help="instead of the keys that are enrolled, not beside them")
    _add_editing(parser)
    parser.description = (
        "Enrols Secure Boot keys. FILE is a certificate (PEM or DER), a signature list (.esl) or update (.auth);\n"
        "for --db and --dbx also an EFI program, or sha256:HASH. With a platform key, Secure Boot is on."
    )
