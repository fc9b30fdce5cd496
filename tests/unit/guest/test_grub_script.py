"""GRUB's language is read as GRUB reads it, and what it refuses is refused (``tests/foreign`` asks GRUB itself)."""

from __future__ import annotations

import pytest

from armvm.guest.grub_script import Command, For, Function, If, Part, While, parse_script


def _words(text: str) -> list[tuple[Part, ...]]:
    (command,) = parse_script(text).statements
    assert isinstance(command, Command)
    return [word.parts for word in command.words]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", [Part("a")]),
        ("a'b $c'", [Part("a"), Part("b $c", quoted=True)]),
        ('"b $c"', [Part("", quoted=True), Part("b ", quoted=True), Part("c", variable=True, quoted=True)]),
        ("${x}y", [Part("x", variable=True), Part("y")]),
        ("$x-$1", [Part("x", variable=True), Part("-"), Part("1", variable=True)]),
        (r"a\ b", [Part("a"), Part(" ", quoted=True), Part("b")]),
        (r'"\$\"\\\n"', [Part("", quoted=True), *(Part(c, quoted=True) for c in ("$", '"', "\\", "\\n"))]),
        ("a#b", [Part("a#b")]),
    ],
)
def test_words(text: str, parts: list[Part]) -> None:
    assert _words(text) == [tuple(parts)]


def test_lines_are_counted_through_quotation_marks_comments_and_continuations() -> None:
    script = parse_script("# a\necho 'x\ny' \\\n z # w\n\n  last\n")
    assert [statement.line for statement in script.statements] == [2, 6]
    assert not script.problems


def test_statements() -> None:
    text = (
        "if a; then b; elif c\nthen d; else e; fi\nfor i in x y; do z; done\nwhile a; do b; done\nuntil a; do b; done\n"
        "function f {\n  g\n}\nmenuentry 'x' --class y {\n  linux /k\n}\n"
    )
    kinds = [type(statement) for statement in parse_script(text).statements]
    assert kinds == [If, For, While, While, Function, Command]


def test_a_wrong_statement_costs_itself_alone() -> None:
    script = parse_script("set a=1\nmenuentry x { }\nset b=2\nif a; then\nfi\nset c=3\n")
    assert [problem.line for problem in script.problems] == [2, 5]
    assert len(script.statements) == 3


@pytest.mark.parametrize(
    "text", ["if a; then " * 40 + "b" + "; fi" * 40, "menuentry x {" * 5000, "{" * 5000, "'", '"a']
)
def test_what_is_nested_too_deep_or_never_closed_is_dropped(text: str) -> None:
    assert parse_script(text).problems
