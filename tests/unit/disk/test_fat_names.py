from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armvm.disk.fat_names import name_fault, needs_long_name, short_aliases


@pytest.mark.parametrize(
    ("names", "aliases"),
    [
        (["BOOTAA64.EFI"], [b"BOOTAA64EFI"]),
        (["grub.cfg", "noext"], [b"GRUB    CFG", b"NOEXT      "]),
        (["A long name.txt", "A long name.text"], [b"ALONGN~1TXT", b"ALONGN~1TEX"]),
        (["A long name.txt", "A long names.txt"], [b"ALONGN~1TXT", b"ALONGN~2TXT"]),
        (["a.b.c", ".bashrc", "..x"], [b"AB~1    C  ", b"BASHRC~1   ", b"X~1        "]),
        (["a+b.t=t", "日本", "é.é"], [b"A_B~1   T_T", b"__~1       ", b"_~1     _  "]),
        (["toolongname", "TOOLON~1"], [b"TOOLON~2   ", b"TOOLON~1   "]),
        (["x y", "xy"], [b"XY~1       ", b"XY         "]),
        (["kernel.image"], [b"KERNEL~1IMA"]),
        ([" lead", "\u017f~1"], [b"LEAD~1     ", b"_~1~1      "]),
    ],
)
def test_aliases(names: list[str], aliases: list[bytes]) -> None:
    assert short_aliases(names) == aliases


def test_aliases_of_thousands_of_like_names_are_unique() -> None:
    names = [f"vmlinuz-6.1.0-{number}-cloud-arm64" for number in range(12_000)]
    aliases = short_aliases(names)
    assert len(set(aliases)) == len(names)
    assert aliases[0] == b"VMLINU~10-0"
    assert all(len(alias) == 11 for alias in aliases)


legal_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name_fault(name) is None
)


@given(st.lists(legal_names, max_size=12, unique_by=str.casefold))
def test_aliases_are_always_legal_and_unique(names: list[str]) -> None:
    aliases = short_aliases(names)
    assert len(set(aliases)) == len(names)
    for alias in aliases:
        base, extension = alias[:8].rstrip(b" "), alias[8:].rstrip(b" ")
        assert base
        for part in (base, extension):
            assert part.isascii()
            assert part == part.upper()
            assert not set(part) & set(b' "*+,./:;<=>?[\\]|')


@pytest.mark.parametrize(
    ("name", "needed"),
    [("BOOTAA64.EFI", False), ("KERNEL", False), ("grub.cfg", True), ("Kernel", True), ("A long name.txt", True)],
)
def test_a_long_name_is_kept_where_the_alias_says_less(name: str, needed: bool) -> None:
    assert needs_long_name(name, short_aliases([name])[0]) is needed


@pytest.mark.parametrize(
    "name", [".", "..", "a:b", "what?", "tab\there", "dot.", "space ", "x" * 256, "😀" * 128, "\ud800", "a\x7f"]
)
def test_illegal_names(name: str) -> None:
    assert name_fault(name)


@pytest.mark.parametrize("name", ["a", ".hidden", "x" * 255, "😀" * 127, "a+b,c;d=[e]", " lead"])
def test_legal_names(name: str) -> None:
    assert name_fault(name) is None
