"""``armvm vm ssh``, ``exec`` and ``copy``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.cli.action import Action
from armvm.errors import GuestError, InputError, OutputError, UsageError

if TYPE_CHECKING:
    from armvm.instance.guest import Agent
    from armvm.instance.store import Instance

_SSH_SECONDS = 600.0
_AGENT_SECONDS = 5.0


def _ssh_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance; it has to run")
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="what to run there (after --), else a shell")
    parser.add_argument("-l", "--user", metavar="USER", help="who to log in as (default: the instance's user)")
    parser.add_argument("-i", "--identity", type=Path, metavar="FILE", help="the private key (default: the instance's)")
    _timeout(parser, _SSH_SECONDS, "how long to wait for the ssh server")


def _timeout(parser: argparse.ArgumentParser, seconds: float | None, what: str) -> None:
    default = "none" if seconds is None else f"{seconds:g}"
    parser.add_argument(
        "--timeout", type=_seconds, default=seconds, metavar="SECONDS", help=f"{what} (default: {default})"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"not a time in seconds: {text!r}")
    return seconds


def _ssh(options: argparse.Namespace) -> int:
    from armvm.instance import ssh
    from armvm.instance.store import find

    instance = find(options.name)
    definition = _running(instance).definition()
    port = ssh.require_port(instance, definition)
    argv = ssh.command(
        instance,
        definition,
        port,
        [ssh.host(), *(["--", *options.command] if options.command else [])],
        identity=options.identity,
        user=options.user,
    )
    _wait(instance, port, options)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)  # noqa: S606 - from here on this process is ssh: its terminal, its signals, its exit code


def _running(instance: Instance) -> Instance:
    """``instance``. Raises UsageError when there is none, MachineError when it does not run."""
    from armvm.instance import client

    client.running_holder(instance)
    return instance


def _wait(instance: Instance, port: int, options: argparse.Namespace) -> None:
    from armvm.cli.terminal import notes
    from armvm.instance import ssh

    note = notes(quiet=options.quiet)
    ssh.wait_for_server(
        port,
        timeout_seconds=options.timeout,
        running=lambda: instance.holder[1],
        waiting=lambda: note(f"waiting for the ssh server of {instance.name}, up to {options.timeout:g} s"),
    )


def _exec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the instance; it has to run, and its guest agent too")
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="the program and its arguments (after --)")
    parser.add_argument("--stdin", action="store_true", help="give it this command's standard input (512 KiB at most)")
    _timeout(parser, None, "how long to wait for its end")


def _exec(options: argparse.Namespace) -> int:
    from armvm.instance.guest import MOST_INPUT_BYTES, Agent
    from armvm.instance.store import find

    if not options.command:
        raise UsageError("which program?", hint="armvm vm exec NAME -- PROGRAM ARGUMENT…")
    instance = _running(find(options.name))
    stdin = sys.stdin.buffer.read(MOST_INPUT_BYTES + 1) if options.stdin else b""
    done = Agent(instance).run(options.command, stdin=stdin, timeout_seconds=options.timeout)
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(done.stderr)
    sys.stderr.flush()
    if done.truncated:
        print("armvm: the guest agent has not kept all of what it said", file=sys.stderr)
    return done.exit_code


def _copy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="NAME:PATH in a guest, or a file of this host")
    parser.add_argument("target", metavar="TARGET", help="the other one of the two; - is standard output")
    parser.add_argument("-r", "--recursive", action="store_true", help="folders too (by ssh)")
    parser.add_argument("-l", "--user", metavar="USER", help="by ssh: who to log in as")
    parser.add_argument("-i", "--identity", type=Path, metavar="FILE", help="by ssh: the private key")
    parser.add_argument(
        "--by", choices=("auto", "agent", "ssh"), default="auto", help="the way (default: the agent if one answers)"
    )
    _timeout(parser, _SSH_SECONDS, "by ssh: how long to wait for the server")


def _copy(options: argparse.Namespace) -> int:
    from armvm.instance.store import find

    source, target = _place(options.source), _place(options.target)
    if (source is None) == (target is None):
        raise UsageError(
            "one of the two is NAME:PATH, the other a file of this host", hint="./a:b is a file called a:b"
        )
    name, path = source or target or ("", "")
    instance = _running(find(name))
    agent = _agent(instance, options)
    if agent is None:
        return _copy_by_ssh(instance, options, path, fetching=source is not None)
    if source is not None:
        _fetch(agent, path, options)
    else:
        _bring(agent, path, options)
    return 0


def _place(text: str) -> tuple[str, str] | None:
    """The instance and the path of NAME:PATH; None for a file of this host."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return None
    if not path:
        raise UsageError(f"{text}: which file of {name}?", hint="write NAME:PATH")
    return name, path


def _agent(instance: Instance, options: argparse.Namespace) -> Agent | None:
    """The guest agent, None when ssh is the way."""
    from armvm.instance.addresses import ssh_port
    from armvm.instance.guest import Agent

    if options.by == "ssh" or (options.by == "auto" and options.recursive):
        return None
    if options.recursive:
        raise UsageError("the guest agent copies single files only", hint="--by ssh copies folders")
    agent = Agent(instance)
    try:
        agent.ping(timeout_seconds=_AGENT_SECONDS)
    except (GuestError, UsageError):
        if options.by == "agent" or ssh_port(instance.definition().machine) is None:
            raise
        return None
    return agent


def _fetch(agent: Agent, path: str, options: argparse.Namespace) -> None:
    from armvm.atomic import replacing
    from armvm.cli.terminal import steps

    if options.target == "-":
        agent.fetch(path, sys.stdout.buffer)
        return
    target = Path(options.target)
    if target.is_dir():
        target /= Path(path).name
    with steps(quiet=options.quiet) as progress, replacing(target) as file:
        agent.fetch(path, file, progress=lambda done: progress("copying", done, done))


def _bring(agent: Agent, path: str, options: argparse.Namespace) -> None:
    from armvm.cli.terminal import steps

    source = Path(options.source)
    if path.endswith("/"):
        path += source.name
    try:
        with steps(quiet=options.quiet) as progress, source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            agent.bring(file, path, progress=lambda done: progress("copying", done, max(size, done)))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(source)) from error


def _copy_by_ssh(instance: Instance, options: argparse.Namespace, path: str, *, fetching: bool) -> int:
    """Copy by scp. What comes to this host gets its name when it is whole."""
    import secrets
    import shutil

    from armvm.instance import ssh
    from armvm.process import run

    definition = instance.definition()
    port = ssh.require_port(instance, definition)
    remote = f"{ssh.host()}:{path}"
    target = Path(options.target)
    if fetching and target.is_dir():
        target /= Path(path).name
    beside = target.absolute().with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    pair = [remote, str(beside)] if fetching else [os.path.abspath(options.source), remote]  # noqa: PTH100 - no resolving
    more = ["-q", "-B", *(["-r"] if options.recursive else [])]
    argv = ssh.command(
        instance, definition, port, [*more, *pair], program="scp", identity=options.identity, user=options.user
    )
    _wait(instance, port, options)
    try:
        run("scp", argv[1:], timeout_seconds=24 * 3600.0)
        if fetching:
            _replace(beside, target)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
    return 0


def _replace(beside: Path, target: Path) -> None:
    try:
        beside.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error


ACTIONS = {
    "ssh": Action(
        "Log in to a running instance by ssh, or run a command there; waits until its ssh server answers.\n\n"
        "The key is the instance's own, if it was created with one, else those that ssh finds. Which machine it is,\n"
        "is remembered in the instance's folder, not in ~/.ssh.",
        "  armvm vm ssh web\n  armvm vm ssh web -- uname -a",
        _ssh_arguments,
        _ssh,
        runs_command=True,
    ),
    "exec": Action(
        "Run a program in the guest by its agent (qemu-guest-agent), and exit with its exit code. What it said is\n"
        "shown when it has ended.",
        "  armvm vm exec web -- systemctl is-active ssh\n  armvm vm exec web --stdin -- sh < script.sh",
        _exec_arguments,
        _exec,
        runs_command=True,
    ),
    "copy": Action(
        "Copy a file from or to a running instance: by its guest agent, or by ssh where none answers.\n\n"
        "A file of this host appears whole, or not at all.",
        "  armvm vm copy web:/var/log/syslog .\n  armvm vm copy site.conf web:/etc/nginx/sites-enabled/\n"
        "  armvm vm copy -r web:/srv ./srv",
        _copy_arguments,
        _copy,
    ),
}
