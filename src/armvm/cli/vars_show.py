"""The variables of an instance as ``armvm vars`` shows them: lines for people, entries for programs, differences."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from armvm.errors import InputError, UsageError
from armvm.firmware.certificates import EXTRA, can_describe, describe_certificate, fingerprint
from armvm.firmware.device_path import format_device_path
from armvm.firmware.signatures import SHA256, X509, Signature, SignatureList
from armvm.firmware.values import describe, format_time, parse_load_option, signature_lists
from armvm.firmware.variable_files import SCHEMA, as_json
from armvm.firmware.variable_names import find_key, format_attributes, is_load_option, parse_vendor
from armvm.firmware.variables import Variable, VariableStore
from armvm.guid import EFI_GLOBAL_VARIABLE
from armvm.instance.store import find
from armvm.instance.variables import Edit, read_variables
from armvm.printable import printable


def list_(options: argparse.Namespace) -> int:
    """``armvm vars list``."""
    store = read(options.instance)
    variables = sorted(store.variables, key=lambda variable: (str(variable.vendor), variable.name))
    if options.json:
        print_json(variables)
        return 0
    for variable in variables:
        print(f"{variable.vendor} {printable(variable.name)} = {describe(variable)}")
        for line in _details(variable, verbose=options.verbose > 0):
            print(f"    {line}")
    return 0


def get(options: argparse.Namespace) -> int:
    """``armvm vars get``."""
    variable = chosen(read(options.instance), options.name, options.vendor)
    if options.raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(variable.data)
        sys.stdout.buffer.flush()
    elif options.json:
        print_json([variable])
    else:
        print(describe(variable))
        for line in _details(variable, verbose=options.verbose > 0):
            print(f"    {line}")
    return 0


def read(name: str) -> VariableStore:
    """The store of the instance ``name``. What is wrong with it is said on standard error."""
    instance = find(name)
    store = read_variables(instance)
    for problem in store.problems:
        print(f"armvm: {instance.variables}, {problem.evidence.where}: {problem.message}", file=sys.stderr)
    return store


def chosen(store: VariableStore, name: str, vendor: str | None) -> Variable:
    """The variable that the user named. Raises UsageError when the store has none of that name."""
    key = find_key(store, name, None if vendor is None else parse_vendor(vendor))
    variable = store.find(*key)
    if variable is None:
        raise UsageError(
            f"there is no variable {printable(key[0])} of vendor {key[1]}", hint="armvm vars list shows which there are"
        )
    return variable


def print_json(variables: Iterable[Variable]) -> None:
    """Print ``variables`` as a document that ``armvm vars import`` takes, with what is known of their meaning."""
    print(json.dumps({"schema": SCHEMA, "variables": [_entry(one) for one in variables]}, indent=2))


def print_edit(edit: Edit, *, quiet: bool, dry_run: bool) -> None:
    """Say what an edit changed, or would: a line for each variable, none when ``quiet``."""
    if quiet and not dry_run:
        return
    if not edit.changes:
        print("nothing changes")
    if edit.before is None:
        print("the store could not be read; it is made anew")
    for line in differences(edit.before or VariableStore(), edit.after):
        print(line)


def differences(before: VariableStore, after: VariableStore) -> Iterator[str]:
    """What tells two stores apart: ``+`` new, ``-`` gone, ``~`` changed."""
    old = {variable.key: variable for variable in before.variables}
    new = {variable.key: variable for variable in after.variables}
    for key in sorted(old.keys() | new.keys(), key=lambda key: (str(key[1]), key[0])):
        was, now = old.get(key), new.get(key)
        title = f"{key[1]} {printable(key[0])}"
        if was is None and now is not None:
            yield f"+ {title} = {describe(now)}"
        elif was is not None and now is None:
            yield f"- {title} = {describe(was)}"
        elif was is not None and now is not None and was != now:
            yield f"~ {title} = {describe(was)} -> {describe(now)}{_beside_the_value(was, now)}"


def _beside_the_value(was: Variable, now: Variable) -> str:
    notes = []
    if was.attributes != now.attributes:
        notes.append(f"attributes {format_attributes(was.attributes)} -> {format_attributes(now.attributes)}")
    if was.timestamp != now.timestamp:
        notes.append(f"written {format_time(now.timestamp) or 'at no time'}")
    if was.data != now.data and describe(was) == describe(now):
        notes.append("other bytes")
    return f" ({'; '.join(notes)})" if notes else ""


def _details(variable: Variable, *, verbose: bool) -> Iterator[str]:
    """What a line has no room for: certificates, the time of the last authenticated write, the bytes."""
    for one in signature_lists(variable):
        if one.kind == X509:
            yield from (_certificate_line(entry, verbose=verbose) for entry in one.entries)
    written = format_time(variable.timestamp)
    if written:
        yield f"written {written}"
    if verbose:
        yield f"{format_attributes(variable.attributes)}; {variable.data.hex() or 'empty'}"


def _certificate_line(entry: Signature, *, verbose: bool) -> str:
    owner = f", owner {entry.owner}" if verbose else ""
    certificate = describe_certificate(entry.data)
    mark = f"SHA-256 {fingerprint(entry.data)}{owner}"
    if certificate is None:
        why = "unreadable" if can_describe() else f"{EXTRA} shows its subject"
        return f"X.509 certificate ({why}), {mark}"
    issuer = "itself" if certificate.issuer == certificate.subject else certificate.issuer
    until = certificate.not_after[:10]
    return f"{certificate.subject}; issued by {issuer}, serial {certificate.serial:#x}, until {until}, {mark}"


def _entry(variable: Variable) -> dict[str, Any]:
    entry = {**as_json(variable), "value": describe(variable)}
    written = format_time(variable.timestamp)
    if written:
        entry["written"] = f"{written.replace(' ', 'T')}Z"
    lists = signature_lists(variable)
    if lists:
        entry["signatures"] = [_signature(one, signature) for one in lists for signature in one.entries]
    if variable.vendor == EFI_GLOBAL_VARIABLE and is_load_option(variable.name):
        try:
            option = parse_load_option(variable.data)
        except InputError:
            return entry
        entry["load_option"] = {
            "active": option.active,
            "hidden": option.hidden,
            "description": printable(option.description),
            "device_path": format_device_path(option.device_path),
            "optional_data": option.optional_data.hex(),
        }
    return entry


def _signature(one: SignatureList, entry: Signature) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": str(one.kind), "type_name": one.kind_name, "owner": str(entry.owner)}
    if one.kind == SHA256:
        return {**facts, "sha256": entry.data.hex()}
    if one.kind != X509:
        return {**facts, "hex": entry.data.hex()}
    facts["sha256"] = fingerprint(entry.data)
    certificate = describe_certificate(entry.data)
    if certificate is not None:
        facts |= {
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "serial": f"{certificate.serial:x}",
            "not_before": certificate.not_before,
            "not_after": certificate.not_after,
        }
    return facts
