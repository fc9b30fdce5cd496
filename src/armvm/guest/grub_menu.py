"""GRUB's menus: which entry starts untouched, and what each of them loads (grub-core/normal/menu.c)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from armvm.guest.grub_run import GrubRun
from armvm.guest.grub_values import GrubEntry, Leave, MenuItem


def present(run: GrubRun, *, titles: tuple[str, ...] = (), default: str | None = None) -> None:
    """Run every entry of ``run``'s menu and put what comes of it into ``run.entries``.

    ``default`` names the entry that starts untouched; without it the variable of that name does.
    """
    menu = run.menu
    if not menu:
        return
    known = run.get("default") is not None or default is not None
    wanted, rest = _default_of(menu, default if default is not None else run.get("default") or "")
    fallback = _numbered(menu, run.get("fallback") or "")
    if not titles and not run.uncertain and not run.in_entry:
        run.waits = run.get("timeout") in ("", "-1")
    with run.deeper():
        for at, item in enumerate(menu):
            run.charge()
            _run_item(run, item, titles, rest if known and at == wanted else None, is_fallback=at == fallback)


def _run_item(run: GrubRun, item: MenuItem, titles: tuple[str, ...], chosen: str | None, *, is_fallback: bool) -> None:
    """Run one entry. ``chosen`` is None unless it is the default; for a submenu it says which of its entries is."""
    path = (*titles, item.title)
    title = " > ".join(path)
    certain = item.certain and not run.uncertain
    entry = GrubEntry(title, item.source or item.line, item.trail, (), (), chosen is not None, is_fallback, certain)
    with _own_state(run, item):
        try:
            with run.in_file(item.line):
                run.run(item.body)
        except Leave:
            pass
        try:
            if item.submenu:
                present(run, titles=path, default=chosen or "")
        finally:
            entry = replace(entry, loads=tuple(run.loads), troubles=tuple(run.troubles))
            nested = run.entries
    if nested:
        run.entries += [
            replace(
                inner,
                title=inner.title if item.submenu else f"{title} > {inner.title}",
                default=inner.default and entry.default,
                fallback=entry.fallback,
                certain=inner.certain and certain,
            )
            for inner in nested
        ]
    else:
        run.entries.append(entry)


@contextmanager
def _own_state(run: GrubRun, item: MenuItem) -> Iterator[None]:
    """What an entry does stays its own: it runs from the menu's variables, and changes them for nobody else."""
    before = run.environment, run.troubles, run.loads, run.menu, run.entries
    also_before = run.trail, run.source, run.positional, run.in_entry
    run.environment = run.environment.inner() if item.submenu else run.environment.copy()
    run.troubles, run.loads, run.menu, run.entries = [], [], [], []
    run.trail, run.source, run.positional, run.in_entry = item.trail, item.source, item.arguments, not item.submenu
    run.export("chosen", item.id)
    try:
        yield
    finally:
        run.environment, run.troubles, run.loads, run.menu, run.entries = before
        run.trail, run.source, run.positional, run.in_entry = also_before


def _default_of(menu: Sequence[MenuItem], wanted: str) -> tuple[int, str]:
    """The place of the entry that ``wanted`` names, 0 when there is none, and what it says of the submenu's entries.

    It is a number, an id or a title; ``>`` goes into submenus, ``>>`` stands for itself (get_entry_number).
    """
    first, rest = _split(wanted)
    number = _numbered(menu, first)
    if number is not None:
        return number, rest
    for at, item in enumerate(menu):
        if first and first in (item.id, item.title):
            return at, rest
    return 0, ""


def _numbered(menu: Sequence[MenuItem], text: str) -> int | None:
    digits = text.split(maxsplit=1)[0] if text.split() else ""
    if digits.isascii() and digits.isdigit() and int(digits[:6]) < len(menu):
        return int(digits[:6])
    return None


def _split(wanted: str) -> tuple[str, str]:
    at = 0
    while (at := wanted.find(">", at)) >= 0:
        if wanted[at : at + 2] != ">>":
            return wanted[:at].replace(">>", ">"), wanted[at + 1 :]
        at += 2
    return wanted.replace(">>", ">"), ""
