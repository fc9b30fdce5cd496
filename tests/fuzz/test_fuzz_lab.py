"""What a nested host says is foreign text: frames, results and reports in any state are refused in words of ours."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.errors import InputError, MachineError
from armvm.lab.outer import _result, _take_piece
from armvm.lab.recipe import Task
from armvm.lab.verdicts import parse_reports
from armvm.lab.wire import Frame, Reader, WireError, serialise

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["schema", "profile", "reports", "subject", "findings", "kind", "name", "code", "error"])
            | st.text(max_size=4),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.lists(st.binary(max_size=64), max_size=8), st.binary(max_size=200))
def test_the_reader_finds_frames_or_says_that_one_is_damaged(noise: list[bytes], body: bytes) -> None:
    reader = Reader()
    with suppress(WireError):
        for piece in [*noise, serialise(Frame("said", body))]:
            for frame in reader.feed(piece):
                assert frame.kind.isalpha()


@settings(max_examples=40)
@given(JSON)
def test_a_report_is_one_or_is_refused(value: object) -> None:
    for document in (value, {"schema": "armvm.report/1", "profile": "p", "reports": [value]}):
        with suppress(InputError):
            parse_reports(json.dumps(document).encode(), subject="x")


@given(JSON, st.binary(max_size=64))
def test_results_and_pieces_do_not_surprise(value: object, content: bytes) -> None:
    body = json.dumps(value).encode()
    _take_piece(json.dumps({"name": "name", "offset": value, "size": value}).encode() + b"\n", Task(("x",), 1), {})
    _take_piece(body + b"\n" + content, Task(("x",), 1, {"name": "/x"}), {})
    with suppress(MachineError):
        _result(body, {}, [])
