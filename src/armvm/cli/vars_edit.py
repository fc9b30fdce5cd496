"""``armvm vars set``, ``delete`` and ``reset``."""

from __future__ import annotations

import argparse
import sys
from uuid import UUID

from armvm.cli.vars_show import chosen, print_edit
from armvm.errors import UsageError
from armvm.firmware.value_syntax import parse_typed, parse_value
from armvm.firmware.variable_names import find_key, known_variable, parse_attributes, parse_vendor
from armvm.firmware.variables import (
    DEFAULT_ATTRIBUTES,
    Attributes,
    Variable,
    VariableStore,
    with_variables,
    without_variable,
)
from armvm.instance.store import find
from armvm.instance.variables import edit_variables, reset_variables


def set_(options: argparse.Namespace) -> int:
    """``armvm vars set``."""
    pairs = _pairs(options.assignments)
    vendor = None if options.vendor is None else parse_vendor(options.vendor)
    attributes = None if options.attributes is None else parse_attributes(options.attributes)

    def change(store: VariableStore) -> VariableStore:
        made: dict[tuple[str, UUID], Variable] = {}
        for name, text in pairs:
            key = find_key(store, name, vendor)
            if key in made:
                raise UsageError(f"{name} is set twice")
            made[key] = _made(key, text, store.find(*key), options.kind, attributes)
        return with_variables(store, made.values())

    edit = edit_variables(find(options.instance), change, force=options.force, dry_run=options.dry_run)
    print_edit(edit, quiet=options.quiet, dry_run=options.dry_run)
    return 0


def delete(options: argparse.Namespace) -> int:
    """``armvm vars delete``."""

    def change(store: VariableStore) -> VariableStore:
        for key in {chosen(store, name, options.vendor).key for name in options.names}:
            store = without_variable(store, *key)
        return store

    edit = edit_variables(find(options.instance), change, force=options.force, dry_run=options.dry_run)
    print_edit(edit, quiet=options.quiet, dry_run=options.dry_run)
    return 0


def reset(options: argparse.Namespace) -> int:
    """``armvm vars reset``."""
    instance = find(options.instance)
    instance.require()
    if not options.yes and not options.dry_run:
        _confirm(f"Forget all UEFI variables of {instance.name}, boot entries and Secure Boot keys too?")
    edit = reset_variables(instance, dry_run=options.dry_run)
    print_edit(edit, quiet=options.quiet, dry_run=options.dry_run)
    return 0


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    """The assignments: ``NAME VALUE``, or any number of ``NAME=VALUE``."""
    if len(words) == 2 and "=" not in words[0]:
        return [(words[0], words[1])]
    pairs = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UsageError(f"not an assignment: {word!r}", hint="NAME VALUE, or NAME=VALUE as often as you like")
        pairs.append((name, text))
    return pairs


def _made(
    key: tuple[str, UUID], text: str, old: Variable | None, kind: str | None, attributes: Attributes | None
) -> Variable:
    """The variable as it is to be. What is not given stays as it is, or is as usual for one of that name."""
    name, vendor = key
    data = parse_value(name, vendor, text, old=old) if kind is None else parse_typed(kind, text)
    if old is not None:
        return Variable(
            name,
            vendor,
            data,
            old.attributes if attributes is None else attributes,
            old.timestamp,
            old.monotonic_count,
            old.public_key_index,
        )
    if attributes is None:
        known = known_variable(name)
        attributes = known[1] if known is not None and known[0] == vendor else DEFAULT_ATTRIBUTES
    return Variable(name, vendor, data, attributes)


def _confirm(question: str) -> None:
    """Go on only when the user says yes. Raises UsageError when nobody is there to ask."""
    if not sys.stdin.isatty():
        raise UsageError("this asks first, and standard input is no terminal", hint="--yes answers")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was changed")
