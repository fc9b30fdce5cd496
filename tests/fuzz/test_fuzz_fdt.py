"""No device tree, patched, cut or made of noise, does anything but be read or refused with a printable message."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.errors import InputError
from armvm.platform.bindings import check_bindings, cpu_nodes, described_memory, stdout_node
from armvm.platform.fdt import parse_fdt
from armvm.platform.fdt_values import interrupt_map, interrupts, reg, regions, windows
from tools.device_trees import blob, flatten, virt

BASES = (flatten(virt()), flatten(virt(gic=2, cpus=9), reservations=((1, 2),)), flatten(virt(), version=16))
WORDS = st.sampled_from([struct.pack(">I", word) for word in (0, 1, 2, 3, 4, 9, 0xFFFFFFFF, 0x7FFFFFFF, 0x8001)])
PATCHES = st.lists(st.tuples(st.integers(0, 6000), st.one_of(st.binary(min_size=1, max_size=8), WORDS)), max_size=8)
TOKENS = st.lists(st.one_of(WORDS, st.binary(max_size=12).map(lambda data: data + bytes(-len(data) % 4))), max_size=60)


def check_tree(content: bytes) -> None:
    try:
        tree = parse_fdt(content)
    except InputError as error:
        assert str(error).isprintable()
        return
    for problem in (*tree.problems, *check_bindings(tree)):
        assert problem.message.isprintable()
        assert problem.evidence.where.isprintable()
        assert problem.evidence.found.isprintable()
    cpu_nodes(tree)
    described_memory(tree)
    stdout_node(tree)
    for node in tree.nodes:
        assert tree.find("/") is tree.root
        for read in (reg, regions, windows, interrupts, interrupt_map):
            try:
                read(tree, node)
            except InputError as error:
                assert str(error).isprintable()


@settings(max_examples=300, deadline=1000)
@given(st.sampled_from(BASES), PATCHES)
def test_patched_trees(base: bytes, patches: list[tuple[int, bytes]]) -> None:
    content = bytearray(base)
    for place, patch in patches:
        content[place : place + len(patch)] = patch
    check_tree(bytes(content))


@settings(max_examples=100, deadline=1000)
@given(st.sampled_from(BASES), st.integers(0, 6000))
def test_cut_trees(base: bytes, length: int) -> None:
    check_tree(base[:length])


@settings(max_examples=200, deadline=1000)
@given(TOKENS, st.binary(max_size=20))
def test_structures_of_noise(tokens: list[bytes], strings: bytes) -> None:
    check_tree(blob(struct.pack(">II", 1, 0) + b"".join(tokens), strings))
