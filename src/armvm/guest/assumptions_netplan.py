"""What netplan's YAML takes for granted about interfaces. Source: netplan's YAML configuration reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from armvm.guest.assumptions_interfaces import NetworkFacts, by_address, by_name, is_concrete
from armvm.guest.facts import Assumption, AssumptionKind, PlacedLine
from armvm.guest.mounted import GuestText
from armvm.printable import printable
from armvm.spec.verdict import Evidence
from armvm.units import KIB

if TYPE_CHECKING:
    from yaml.nodes import Node

_FOLDERS = ("/etc/netplan", "/usr/lib/netplan", "/lib/netplan")
_MOST_BYTES = 32 * KIB
"""What the YAML parser gets to read; it takes seconds for a megabyte."""
_MOST_INTERFACES = 200
_GLOB = re.compile(r"[*?\[]")
_TIED = {"macaddress": "a MAC address", "driver": "a driver"}


def netplan_assumptions(text: GuestText, facts: NetworkFacts) -> tuple[Assumption, ...]:
    """The definitions of wired interfaces that fit one interface only."""
    found: list[Assumption] = []
    seen: set[str] = set()
    for folder in _FOLDERS:
        for path in text.names(folder, (".yaml", ".yml")):
            name = path.rpartition("/")[2]
            if name not in seen:
                seen.add(name)
                found += _file(text, path, facts)
    return tuple(found)


def _file(text: GuestText, path: str, facts: NetworkFacts) -> list[Assumption]:
    import yaml

    lines = text.lines(path)
    if not lines:
        return []
    content = "\n".join(line.text for line in lines)
    if len(content) > _MOST_BYTES:
        text.unread.append(Evidence(lines[0].file.where, f"{len(content)} characters, too many to be parsed"))
        return []
    try:
        root = yaml.compose(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said = printable(" ".join(str(error).split())[:200])
        text.unread.append(Evidence(lines[0].file.where, f"no YAML that can be read: {said}"))
        return []
    interfaces = _value(_value(root, "network"), "ethernets")
    definitions = list(_pairs(interfaces))[:_MOST_INTERFACES]
    rendered = "cloud-init" in path
    return [
        each
        for key, body in definitions
        for each in _interface(key, body, lines, facts, alone=len(definitions) == 1, rendered=rendered)
    ]


def _interface(
    key: Node, body: Node, lines: Sequence[PlacedLine], facts: NetworkFacts, *, alone: bool, rendered: bool
) -> Iterator[Assumption]:
    say = 'Match by name: match: {name: "e*"}.'
    match = _value(body, "match")
    if match is None:
        name = str(key.value)
        if is_concrete(name):
            line = lines[key.start_mark.line]
            new = _with_match(line, key, body) if alone else None
            yield by_name(name, line, facts, remedy=say, replacement=new, rendered=rendered)
        return
    names = [str(each.value) for each in _scalars(_value(match, "name"))]
    loose = any(_GLOB.search(name) for name in names)
    tied = False
    for what, value in _pairs(match):
        line = lines[value.start_mark.line]
        if what.value in _TIED and not loose:
            new = "" if tied or names else _as_name(line, what, alone=alone)
            yield by_address(line, remedy=say, replacement=new, what=_TIED[what.value])
            tied = True
        elif what.value == "name" and names and not loose and any(map(is_concrete, names)):
            new = re.sub(re.escape(names[0]), '"e*"', line.text, count=1) if len(names) == 1 and alone else None
            yield by_name(names[0], line, facts, remedy=say, replacement=new, rendered=rendered)
    if tied:
        yield from _set_name(body, lines)


def _set_name(body: Node, lines: Sequence[PlacedLine]) -> Iterator[Assumption]:
    for what, value in _pairs(body):
        line = lines[what.start_mark.line]
        if what.value == "set-name" and line.text.strip().startswith("set-name"):
            yield Assumption(
                AssumptionKind.NETWORK,
                f"gives the name {printable(str(value.value))} to an interface that other VMs do not have",
                line.where,
                printable(line.text.strip()),
                "Take this line away.",
                line,
                "",
                serious=False,
            )


def _as_name(line: PlacedLine, key: Node, *, alone: bool) -> str | None:
    """The line ``macaddress: …`` as one that matches by name; None where more than that stands on the line."""
    own = re.match(rf"(\s*){re.escape(str(key.value))}\s*:\s*[^{{}},]*$", line.text)
    return f'{own[1]}name: "e*"' if own and alone else None


def _with_match(line: PlacedLine, key: Node, body: Node) -> str | None:
    """The line of an interface's key, with a match added to what stands below it; None where that is not safe."""
    from yaml.nodes import MappingNode

    if not isinstance(body, MappingNode) or body.flow_style or not body.value:
        return None
    first = body.value[0][0].start_mark
    if first.line <= key.start_mark.line or not re.fullmatch(r"\s*[\"']?\w+[\"']?:\s*", line.text):
        return None
    return f'{line.text.rstrip()}\n{" " * first.column}match: {{name: "e*"}}'


def _value(node: Node | None, key: str) -> Node | None:
    return next((value for name, value in _pairs(node) if name.value == key), None)


def _pairs(node: Node | None) -> Iterator[tuple[Node, Node]]:
    """A mapping's keys and values, of the keys that are plain words."""
    from yaml.nodes import MappingNode, ScalarNode

    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                yield key, value


def _scalars(node: Node | None) -> Iterator[Node]:
    from yaml.nodes import ScalarNode, SequenceNode

    if isinstance(node, ScalarNode):
        yield node
    elif isinstance(node, SequenceNode):
        yield from (each for each in node.value if isinstance(each, ScalarNode))
