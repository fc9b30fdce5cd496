"""The entry point: finds the verb, imports only that one, and turns what comes out into an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from armvm.cli.options import Parser, common_options
from armvm.errors import ArmvmError, GuestError, MachineError
from armvm.printable import printable
from armvm.version import __version__

VERBS: dict[str, tuple[str, str]] = {
    "check": ("armvm.cli.check", "judge disk images against the specification, without booting them"),
    "inspect": ("armvm.cli.inspect", "say what a disk image holds, without judging it"),
    "build": ("armvm.cli.build", "make a portable disk image"),
    "convert": ("armvm.cli.convert", "write a disk image in another format, with other sectors, or of another size"),
    "repair": ("armvm.cli.repair", "say how to make a disk image conform, or make it conform"),
    "run": ("armvm.cli.run", "boot a disk image on a conforming virtual machine"),
    "probe": ("armvm.cli.probe", "judge a platform from inside the VM: this machine's, or any hypervisor's"),
    "lab": ("armvm.cli.lab", "boot images on real KVM and Xen without ARM hardware, under emulation"),
    "vm": ("armvm.cli.vm", "named instances: create, start, stop, console, snapshot and more"),
    "vars": ("armvm.cli.vars", "read and edit the UEFI variables of a kept instance"),
    "spec": ("armvm.cli.spec", "list and explain the requirements"),
    "doctor": ("armvm.cli.doctor", "say what this machine can run, and how to install what is missing"),
}
"""Verb to (module, one line). A verb's module has DESCRIPTION, EXAMPLES, ``add_arguments(parser)`` and
``execute(options) -> exit code``."""

_INTERRUPTED = 130
_FAULT = 70


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: this process's) and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = False
    try:
        options = _parse(arguments)
        verbose = options.verbose > 0
        code = int(options.execute(options))
        sys.stdout.flush()  # here, where a reader that has gone is no fault; at exit it would be one
        return code  # noqa: TRY300 - the flush belongs to the attempt
    except ArmvmError as error:
        if verbose:
            _print_traceback()
        explain(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("armvm: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough (| head): nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last net: a fault of ours is said, with the traceback for -v
        if verbose:
            _print_traceback()
        hint = "" if verbose else "; run again with -v for the traceback"
        print(f"armvm: a fault of ours: {type(error).__name__}: {printable(str(error))}{hint}", file=sys.stderr)
        return _FAULT


def entry() -> NoReturn:
    """Console-script entry point."""
    sys.exit(main())


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="armvm",
        description="One disk image, every ARM hypervisor: builds, checks and boots portable ARM VM images\n"
        "(VM System Specification for ARM Processors).",
        epilog="example:\n  armvm check disk.qcow2\n\n`armvm VERB --help` explains a verb and gives examples.",
    )
    parser.add_argument("--version", action="version", version=f"armvm {__version__}")
    parser.set_defaults(verbose=0, quiet=False)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    # With the verb in the first place nobody will see the others: making their parsers takes longer than all the rest.
    shown = [chosen] if chosen in VERBS and arguments[0] == chosen else list(VERBS)
    for verb in shown:
        module_name, summary = VERBS[verb]
        if verb != chosen:
            verbs.add_parser(verb, help=summary, add_help=False)
            continue
        module = importlib.import_module(module_name)
        subparser = verbs.add_parser(
            verb,
            help=summary,
            description=module.DESCRIPTION,
            epilog=f"examples:\n{module.EXAMPLES}",
            parents=[common_options()],
        )
        module.add_arguments(subparser)
        subparser.set_defaults(execute=module.execute)
    return parser.parse_args(arguments)


def explain(error: ArmvmError) -> None:
    """Say on standard error what went wrong, and what can be done about it."""
    print(f"armvm: {_shown(error.message)}", file=sys.stderr)
    tail = getattr(error, "console_tail" if isinstance(error, GuestError) else "output_tail", "")
    if isinstance(error, GuestError | MachineError) and tail:
        print("the last it said:", file=sys.stderr)
        for line in tail.splitlines():
            print(f"  | {printable(line)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {_shown(error.hint)}", file=sys.stderr)


def _shown(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


if __name__ == "__main__":
    entry()
