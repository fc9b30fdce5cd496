"""``armvm vm``: named instances. Each action stands in a module of its own, which alone is imported."""

from __future__ import annotations

import argparse
from importlib import import_module

from armvm.cli.options import Parser, common_options

DESCRIPTION = """\
Machines that are kept: each in a folder of its own, with its own disk over the image, its own UEFI variables, a console
log, and a process that runs it in the background. The image under it is never changed."""

EXAMPLES = """\
  armvm vm create web disk.qcow2 --user ada --ssh-key ~/.ssh/id_ed25519.pub
  armvm vm start web && armvm vm ssh web
  armvm vm snapshot web clean && armvm vm restore web clean
  armvm vm list
`armvm vm ACTION --help` explains an action."""

ACTIONS: dict[str, tuple[str, str]] = {
    "create": ("armvm.cli.vm_create", "make an instance of an image"),
    "clone": ("armvm.cli.vm_clone", "make an instance of another one, or of its snapshot"),
    "rename": ("armvm.cli.vm_clone", "give an instance another name"),
    "delete": ("armvm.cli.vm_clone", "delete an instance with its disks and snapshots"),
    "list": ("armvm.cli.vm_list", "list the instances"),
    "show": ("armvm.cli.vm_list", "say everything about an instance"),
    "start": ("armvm.cli.vm_power", "start an instance in the background"),
    "stop": ("armvm.cli.vm_power", "ask the guest to power off"),
    "restart": ("armvm.cli.vm_power", "stop and start"),
    "kill": ("armvm.cli.vm_power", "end an instance at once, as a power cut would"),
    "console": ("armvm.cli.vm_console", "the console on this terminal, or for a script"),
    "log": ("armvm.cli.vm_console", "what the guest has said, with times"),
    "ssh": ("armvm.cli.vm_guest", "log in, or run a command, by ssh"),
    "exec": ("armvm.cli.vm_guest", "run a command by the guest agent"),
    "copy": ("armvm.cli.vm_guest", "copy files from and to the guest"),
    "attach": ("armvm.cli.vm_devices", "add a disk or a network card, also while it runs"),
    "detach": ("armvm.cli.vm_devices", "take a disk or a network card away, also while it runs"),
    "snapshot": ("armvm.cli.vm_snapshots", "keep disks, variables and memory as they are now; list, delete"),
    "restore": ("armvm.cli.vm_snapshots", "go back to a snapshot"),
    "export": ("armvm.cli.vm_export", "describe an instance for another hypervisor"),
    "import": ("armvm.cli.vm_export", "make an instance of another hypervisor's description"),
}
"""Action to (module, one line). A module has, for each of its actions, ``ACTIONS[action]``: an ``Action``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of the verb. A module that is loaded is the chosen action's only (see ``_Lazy``)."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=_Lazy)
    for name, (_, summary) in ACTIONS.items():
        actions.add_parser(name, help=summary, parents=[common_options()])  # type: ignore[list-item] # the stubs want its own class


def execute(options: argparse.Namespace) -> int:
    """Do the chosen action. Returns the exit code."""
    return int(options.action(options))


class _Lazy(Parser):
    """An action's parser, which learns its arguments when it is the one to parse them."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Load the action's module first."""
        name = self.prog.rpartition(" ")[2]
        action = import_module(ACTIONS[name][0]).ACTIONS[name]
        self.description, self.epilog = action.description, f"examples:\n{action.examples}"
        action.add_arguments(self)
        self.set_defaults(action=action.execute)
        if not action.runs_command or "--" not in args:
            return super().parse_known_args(args, namespace)
        # argparse would have the command begin where the first positional ends, options of ours or not.
        middle = args.index("--")
        found, rest = super().parse_known_args(args[:middle], namespace)
        found.command = [*found.command, *args[middle + 1 :]]
        return found, rest
