"""GRUB's commands, as far as they decide what boots (GRUB manual §16.3).

Each gives its result: it worked (True), failed (False), or nobody knows (None).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from armvm.errors import InputError
from armvm.guest import grub_bls
from armvm.guest.facts import PlacedFile
from armvm.guest.grub_condition import judge
from armvm.guest.grub_devices import Absent, NoAnswer, SearchKind
from armvm.guest.grub_loading import LOADING, options_of
from armvm.guest.grub_menu import present
from armvm.guest.grub_run import GrubRun
from armvm.guest.grub_script import parse_script
from armvm.guest.grub_values import (
    Call,
    Halt,
    Leave,
    LeaveLoop,
    Return,
)
from armvm.guest.trouble import TroubleKind, remark, untold
from armvm.printable import printable
from armvm.units import KIB

_ENV_HEAD = b"# GRUB Environment Block\n"
_MOST_ENV_BYTES = 64 * KIB
_SEARCH_KINDS = {
    "--fs-uuid": SearchKind.UUID,
    "-u": SearchKind.UUID,
    "--label": SearchKind.LABEL,
    "-l": SearchKind.LABEL,
    "--fs-label": SearchKind.LABEL,
    "--file": SearchKind.FILE,
    "-f": SearchKind.FILE,
    "--part-uuid": SearchKind.PARTUUID,
}
_HINTS = ("--hint", "--hint-ieee1275", "--hint-bios", "--hint-baremetal", "--hint-efi", "--hint-arc", "-h")


# Variables


def _set(run: GrubRun, call: Call) -> bool | None:
    if not call.arguments or call.arguments[0] is None:
        return True
    name, equals, value = call.arguments[0].partition("=")
    if equals:
        run.assign(name, value)
    return bool(equals)


def _export(run: GrubRun, call: Call) -> bool | None:
    for argument in call.arguments:
        if argument:
            name, equals, value = argument.partition("=")
            if equals:
                run.assign(name, value)
            run.environment.exported.add(name)
    return True


def _unset(run: GrubRun, call: Call) -> bool | None:
    for argument in call.arguments:
        run.environment.values.pop(argument or "", None)
    return True


def _load_env(run: GrubRun, call: Call) -> bool | None:
    options, names = options_of(call, frozenset({"-f", "--file"}))
    prefix = run.get("prefix")
    path = options.get("--file", options.get("-f"))
    if path is None and "--file" not in options and "-f" not in options:
        path = None if prefix is None else f"{prefix}/grubenv"
    place = run.find(path)
    if isinstance(place, NoAnswer):
        run.report(replace(run.no_answer(call, place), kind=TroubleKind.REMARK))
        return False if place.absent is Absent.MISSING else None
    try:
        block = place.files.read(place.path, max_bytes=_MOST_ENV_BYTES)
    except InputError as error:
        run.report(untold(place.where, printable(error.message)))
        return None
    if not block.startswith(_ENV_HEAD):
        run.report(remark(place.where, "no environment block of GRUB"))
        return False
    for name, value in _env_values(block):
        if not names or name in names:
            run.charge()
            run.assign(name, value)
    return True


def _env_values(block: bytes) -> list[tuple[str, str]]:
    """Name and value of each line of an environment block (grub-core/lib/envblk.c)."""
    text = block[len(_ENV_HEAD) :].decode("utf-8", "replace")
    values = []
    for line in text.replace("\\\n", "\0").split("\n"):
        if line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if equals:
            values.append((name, value.replace("\\\\", "\1").replace("\\", "").replace("\1", "\\").replace("\0", "\n")))
    return values


def _probe(run: GrubRun, call: Call) -> bool | None:
    options, others = options_of(call, frozenset({"-s", "--set"}))
    name = options.get("--set") or options.get("-s") or ""
    device = (others[0] if others else None) or ""
    volume = run.devices.find(device.removeprefix("(").partition(")")[0])
    value: str | None = None
    if volume is not None and volume.content is not None:
        if options.keys() & {"-u", "--fs-uuid"}:
            value = volume.content.uuid
        elif options.keys() & {"-l", "--label"}:
            value = volume.content.label
    if volume is not None and volume.partition is not None and "--part-uuid" in options:
        value = str(volume.partition.unique_guid)
    if name:
        run.assign(name, value)
    return None if value is None else True


# Finding file systems and configurations


def _search(run: GrubRun, call: Call) -> bool | None:
    options, others = options_of(call, frozenset(_HINTS))
    kind = next((_SEARCH_KINDS[name] for name in options if name in _SEARCH_KINDS), None)
    variable = options.get("--set", options.get("-s"))
    if kind is None or not others:
        return False
    return _searched(run, call, kind, others[0], (variable or "root") if "--set" in options or "-s" in options else "")


def _search_by(kind: SearchKind) -> Callable[[GrubRun, Call], bool | None]:
    def search(run: GrubRun, call: Call) -> bool | None:
        if not call.arguments:
            return False
        variable = call.arguments[1] if len(call.arguments) > 1 else ""
        return _searched(run, call, kind, call.arguments[0], variable or "")

    return search


def _searched(run: GrubRun, call: Call, kind: SearchKind, value: str | None, variable: str) -> bool | None:
    run.charge(16)
    answer = (
        NoAnswer(Absent.UNTOLD, "what is searched cannot be told at rest")
        if value is None
        else run.devices.search(kind, value)
    )
    if isinstance(answer, NoAnswer):
        run.report(run.no_answer(call, answer))
        if answer.absent is Absent.UNTOLD:
            if variable:
                run.assign(variable, None)
            return None
        return False
    if variable:
        run.assign(variable, answer)
    return True


def _with_config(run: GrubRun, call: Call, execute: Callable[[PlacedFile, str | None], bool | None]) -> bool | None:
    path = call.arguments[0] if call.arguments else ""
    place = run.find(path)
    if isinstance(place, NoAnswer):
        run.report(run.no_answer(call, place))
        return False if place.absent is Absent.MISSING else None
    try:
        device, rest = run.device_and_path(path or "")
        return execute(place, None if device is None else f"({device}){rest}")
    except InputError as error:
        run.report(untold(place.where, printable(error.message)))
        return None


def _source(run: GrubRun, call: Call) -> bool | None:
    try:
        return _with_config(run, call, run.run_config)
    except Return as end:
        return end.result


def _configfile(run: GrubRun, call: Call) -> bool | None:
    return _with_config(run, call, lambda place, name: _in_new_context(run, place, name))


def _in_new_context(run: GrubRun, place: PlacedFile, name: str | None) -> bool | None:
    before, count = (run.environment, run.menu), len(run.entries)
    run.environment, run.menu = run.environment.inner(), []
    result: bool | None = None
    halted = False
    try:
        try:
            result = run.run_config(place, name)
        except Leave as leave:
            halted = isinstance(leave, Halt)
        present(run)
    finally:
        run.environment, run.menu = before
    if halted or len(run.entries) > count:
        raise Halt
    return result


def _normal(run: GrubRun, call: Call) -> bool | None:
    """Run a configuration (``$prefix/grub.cfg``) and show its menu, or else the prompt: it does not come back."""
    if not call.arguments:
        prefix = run.get("prefix")
        call = replace(call, arguments=(None if prefix is None else f"{prefix}/grub.cfg",))
    with contextlib.suppress(Leave):
        _with_config(run, call, run.run_config)
    present(run)
    raise Halt


# Control flow


def _test(run: GrubRun, call: Call) -> bool | None:
    words = call.arguments
    if call.name == "[":
        if not words or words[-1] != "]":
            return False
        words = words[:-1]
    return judge(words, run.file_test)


def _eval(run: GrubRun, call: Call) -> bool | None:
    if None in call.arguments:
        return None
    text = " ".join(argument or "" for argument in call.arguments)
    run.charge(text=len(text))
    script = parse_script(text)
    return run.run(script.statements)


def _leave_loop(_run: GrubRun, call: Call) -> bool | None:
    levels = call.arguments[0] if call.arguments else "1"
    raise LeaveLoop(
        int(levels[:3]) if levels and levels.isascii() and levels.isdigit() else 1, again=call.name != "break"
    )


def _return(_run: GrubRun, call: Call) -> bool | None:
    raise Return(None if call.arguments and call.arguments[0] is None else (*call.arguments, "0")[0] == "0")


def _exit(run: GrubRun, call: Call) -> bool | None:
    if "--is-supported" in call.arguments:
        return None
    run.report(remark(call.line.where, "GRUB goes no further here"))
    raise Halt


def _shift(run: GrubRun, _call: Call) -> bool | None:
    run.positional = run.positional[1:]
    return True


def _setparams(run: GrubRun, call: Call) -> bool | None:
    run.positional = call.arguments
    return True


def _blscfg(run: GrubRun, call: Call) -> bool | None:
    _, others = options_of(call, frozenset({"--path", "-p"}))
    return grub_bls.add_entries(run, call, others[0] if others else None)


def _needs_file(run: GrubRun, call: Call) -> bool | None:
    """A font or a picture: it works when the file is there, and nothing depends on it."""
    _, others = options_of(call, frozenset({"-m", "--mode"}))
    return all(run.file_test("-f", name) for name in others if name is not None)


def _worked(_run: GrubRun, _call: Call) -> bool | None:
    return True


def _failed(_run: GrubRun, _call: Call) -> bool | None:
    return False


_HARMLESS = (
    "true : echo insmod rmmod terminal_output terminal_input terminal serial gfxmode background_color clear cls sleep "
    "save_env savedefault play password password_pbkdf2 lsefi ls cat videoinfo videotest drivemap nativedisk increment "
    "decrement set_background_image rescue background_image authenticate menu_indicator uppermem parttool wait trust "
    "legacy_password list_trusted distrust verify_detached hexdump pager list_env debug tr date keymap locale gettext"
)
_NOT_HERE = "false cmostest cmosclean cpuid keystatus lspci setpci"
"""Nobody presses a key in an untouched boot, and the rest is not on ARM."""

COMMANDS: dict[str, Callable[[GrubRun, Call], bool | None]] = {
    **LOADING,
    **dict.fromkeys(_HARMLESS.split(), _worked),
    **dict.fromkeys(_NOT_HERE.split(), _failed),
    **dict.fromkeys(("test", "["), _test),
    **dict.fromkeys(("source", "."), _source),
    **dict.fromkeys(("break", "continue"), _leave_loop),
    **dict.fromkeys(("exit", "normal_exit", "halt", "reboot", "fwsetup"), _exit),
    **dict.fromkeys(("search.fs_uuid", "search_fs_uuid"), _search_by(SearchKind.UUID)),
    **dict.fromkeys(("search.fs_label", "search_label", "search.label"), _search_by(SearchKind.LABEL)),
    **dict.fromkeys(("search.file", "search.fs_file", "search_fs_file"), _search_by(SearchKind.FILE)),
    "set": _set,
    "export": _export,
    "unset": _unset,
    "load_env": _load_env,
    "probe": _probe,
    "search": _search,
    "configfile": _configfile,
    "normal": _normal,
    "eval": _eval,
    "return": _return,
    "shift": _shift,
    "setparams": _setparams,
    "blscfg": _blscfg,
    "loadfont": _needs_file,
}
"""Every command that is followed, by its name."""
