"""GRUB's commands that fill the menu and load what is booted (GRUB manual §16.2, §16.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from armvm.guest.facts import PlacedFile
from armvm.guest.grub_devices import Absent, NoAnswer
from armvm.guest.grub_run import GrubRun
from armvm.guest.grub_values import Call, GrubEntry, GrubLoad, Halt, MenuItem
from armvm.guest.trouble import TroubleKind, remark

_ENTRY_OPTIONS = frozenset({"--class", "--users", "--hotkey", "--format", "--id", "--source", "-c"})


def options_of(call: Call, valued: frozenset[str]) -> tuple[dict[str, str | None], list[str | None]]:
    """The options (name to value, empty without one) and the other arguments; ``valued`` take the next one."""
    options: dict[str, str | None] = {}
    others: list[str | None] = []
    arguments = iter(call.arguments)
    for argument in arguments:
        if argument == "--":
            others += arguments
        elif argument is None or not argument.startswith("-") or argument == "-":
            others.append(argument)
        else:
            name, equals, value = argument.partition("=")
            options[name] = value if equals else next(arguments, "") if name in valued else ""
    return options, others


def _menu_item(run: GrubRun, call: Call) -> bool | None:
    options, others = options_of(call, _ENTRY_OPTIONS)
    if call.block is None:
        run.report(remark(call.line.where, "a menu entry without a block"))
        return False
    title = others[0] if others and others[0] is not None else "(untitled)"
    submenu = call.name == "submenu"
    run.add(
        MenuItem(
            title=title,
            id=options.get("--id") or title,
            line=call.line,
            body=call.block,
            arguments=tuple(others),
            trail=run.trail,
            submenu=submenu,
            certain=not run.uncertain,
        )
    )
    return True


def _command_line(arguments: tuple[str | None, ...]) -> str | None:
    """The arguments as the kernel gets them: what needs it in quotation marks (grub-core/lib/cmdline.c)."""
    words = []
    for argument in arguments:
        if argument is None:
            return None
        escaped = "".join(f"\\{c}" if c in "\\'\"" else c for c in argument)
        words.append(f'"{escaped}"' if " " in argument else escaped)
    return " ".join(words)


def _linux(run: GrubRun, call: Call) -> bool | None:
    place = run.find(call.arguments[0] if call.arguments else "")
    source = run.source or call.line
    command_line = _command_line(call.arguments[1:])
    if isinstance(place, NoAnswer):
        run.loads = [GrubLoad(None, source, command_line, troubles=(run.no_answer(call, place),))]
        return False if place.absent is Absent.MISSING else None
    run.loads = [GrubLoad(place, source, command_line)]
    return True


def _initrd(run: GrubRun, call: Call) -> bool | None:
    places: list[PlacedFile] = []
    troubles = []
    for argument in call.arguments:
        path = argument
        if path is not None and path.startswith("newc:"):  # newc:NAME:FILE wraps a file (linux.c)
            path = path.split(":", 2)[-1]
        place = run.find(path)
        if isinstance(place, NoAnswer):
            troubles.append(run.no_answer(call, place))
        else:
            places.append(place)
    run.loads = [
        replace(load, initrds=tuple(places), troubles=(*load.troubles, *troubles))
        if load.program is not None and not load.chained
        else load
        for load in run.loads
    ]
    return not troubles


def _devicetree(run: GrubRun, call: Call) -> bool | None:
    place = run.find(call.arguments[0] if call.arguments else "")
    if isinstance(place, NoAnswer):
        run.report(replace(run.no_answer(call, place), kind=TroubleKind.REMARK))
        return False
    run.report(remark(call.line.where, "replaces the hardware description that the VM gives"))
    return True


def _chainloader(run: GrubRun, call: Call) -> bool | None:
    _, others = options_of(call, frozenset())
    place = run.find(others[0] if others else "")
    if isinstance(place, NoAnswer):
        run.loads = [GrubLoad(None, call.line, chained=True, troubles=(run.no_answer(call, place),))]
        return False if place.absent is Absent.MISSING else None
    run.loads = [GrubLoad(place, call.line, _command_line(tuple(others[1:])), chained=True)]
    return True


def _boot(run: GrubRun, call: Call) -> bool | None:
    if not run.loads:
        return False
    if not run.in_entry:
        run.entries.append(
            GrubEntry(
                "(without a menu)", call.line, run.trail, tuple(run.loads), (), default=True, certain=not run.uncertain
            )
        )
        run.loads = []
    raise Halt


LOADING: dict[str, Callable[[GrubRun, Call], bool | None]] = {
    **dict.fromkeys(("menuentry", "submenu", "hiddenentry"), _menu_item),
    **dict.fromkeys(("linux", "linux16", "linuxefi"), _linux),
    **dict.fromkeys(("initrd", "initrd16", "initrdefi"), _initrd),
    **dict.fromkeys(("devicetree", "fdt"), _devicetree),
    "chainloader": _chainloader,
    "boot": _boot,
}
"""These commands, by their names."""
