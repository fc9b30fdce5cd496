"""Damaged qcow2 images: an answer or an InputError, within a second, whatever the bytes."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.errors import InputError
from tools.containers import MIB, converted, scattered_raw

_VARIANTS = (
    ("-o", "cluster_size=512"),
    ("-o", "cluster_size=4k,compat=0.10"),
    ("-c", "-o", "cluster_size=4k"),
    ("-c", "-o", "cluster_size=4k,compression_type=zstd"),
    ("-o", "cluster_size=16k,extended_l2=on"),
)
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
_ROUNDS = 150


@cache
def _good(folder: Path, variant: int) -> bytes:
    scattered_raw(folder / "raw", MIB // 2, pieces=6)
    return converted(folder / "raw", folder / f"image{variant}", "qcow2", *_VARIANTS[variant]).read_bytes()


def _damaged(chance: random.Random, good: bytes) -> bytes:
    """Some bytes changed, most of them where the header and the tables are, and now and then the end cut off."""
    content = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 8))):
        kind = chance.randrange(4)
        if kind == 0:
            position = chance.randrange(112)
        elif kind == 1:  # a byte of a word that looks like an entry of a table
            entries = [
                at for at in range(0, len(good) - 8, 8) if good[at] in (0x40, 0x80) and not any(good[at + 1 : at + 4])
            ]
            position = chance.choice(entries) + chance.randrange(8)
        else:
            position = chance.randrange(len(content))
        content[position] = chance.choice(_INTERESTING) if chance.random() < 0.5 else chance.randrange(256)
    if chance.random() < 0.1:
        del content[chance.randrange(len(content)) :]
    return bytes(content)


def _use(path: Path) -> None:
    with open_disk(path, format="qcow2") as disk:
        for start in (0, disk.size_bytes // 2, max(disk.size_bytes - MIB, 0)):
            disk.read(start, min(MIB, disk.size_bytes - start))
        for count, _ in enumerate(disk.extents()):
            if count > 100_000:
                break


@pytest.mark.parametrize("variant", range(len(_VARIANTS)))
def test_damage_comes_to_an_input_error(tmp_path: Path, variant: int) -> None:
    good = _good(tmp_path, variant)
    chance = random.Random(variant)
    path = tmp_path / "damaged"
    refused = 0
    for _ in range(_ROUNDS):
        path.write_bytes(_damaged(chance, good))
        start = time.process_time()
        try:
            _use(path)
        except InputError:
            refused += 1
        assert time.process_time() - start < 1
    assert 0 < refused < _ROUNDS


@pytest.mark.parametrize("variant", range(len(_VARIANTS)))
def test_every_byte_of_the_header(tmp_path: Path, variant: int) -> None:
    good = _good(tmp_path, variant)
    path = tmp_path / "damaged"
    path.write_bytes(good)
    for position in range(112):
        for value in (0, 0xFF, good[position] ^ 1):
            with path.open("r+b") as file:
                file.seek(position)
                file.write(bytes([value]))
            start = time.process_time()
            with suppress(InputError):
                _use(path)
            assert time.process_time() - start < 1, f"byte {position} = {value:#x}"
            with path.open("r+b") as file:
                file.seek(position)
                file.write(good[position : position + 1])
