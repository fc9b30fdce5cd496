"""No log, whatever stands in it, does anything but be read as far as it goes, and judged."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.platform.check import check_platform
from armvm.probe.report import Sitting, observe
from armvm.probe.wire import Speaker, decode, encode
from armvm.spec.catalogue import PROFILES
from tools.probe_logs import efi_story, good, linux_story

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8) | st.just("0x10"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
EFI = efi_story("vm", 1, None, found="aa").records()
LINUX = linux_story()


@cache
def log() -> bytes:
    return "".join(text for _, text, _ in good().logs()).encode()


def judge(data: bytes) -> None:
    observation = observe([Sitting(decode(data))])
    for profile in PROFILES:
        for finding in check_platform(observation, profile=profile).findings:
            assert finding.message.isprintable()
            assert all(entry.where.isprintable() and entry.found.isprintable() for entry in finding.evidence)


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=400))
def test_noise(noise: bytes) -> None:
    judge(noise)
    judge(b"@A1 " + noise + b"@A1 E 0000 . " + noise)


@settings(max_examples=60, deadline=4000)
@given(st.lists(st.tuples(st.integers(0, 120_000), st.binary(max_size=80), st.integers(0, 300)), max_size=6))
def test_damaged_logs(patches: list[tuple[int, bytes, int]]) -> None:
    data = log()
    for place, patch, lost in patches:
        data = data[:place] + patch + data[place + lost :]
    judge(data)


@settings(max_examples=150, deadline=4000)
@given(st.data())
def test_records_with_any_value(data: st.DataObject) -> None:
    story, speaker = data.draw(st.sampled_from([(EFI, Speaker.EFI), (LINUX, Speaker.LINUX)]))
    changed: list[dict[str, Any]] = [dict(record) for record in story]
    for _ in range(data.draw(st.integers(1, 4))):
        record = data.draw(st.sampled_from(changed))
        name = data.draw(st.sampled_from(sorted(record)))
        if name != "t":
            record[name] = data.draw(JSON)
    judge(encode(changed, speaker))


@settings(max_examples=100, deadline=1000)
@given(st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=5), max_size=6))
def test_what_is_encoded_is_read_back(records: list[dict[str, Any]]) -> None:
    typed = [{**record, "t": "x"} for record in records]
    runs = decode(encode(typed, Speaker.LINUX))
    assert sum(len(run.records) for run in runs) == len(typed)
