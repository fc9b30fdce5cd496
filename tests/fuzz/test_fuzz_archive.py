"""Container images and tar archives with bytes changed: refused or read, and never anything else."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armvm.distribution.archive import oci_tree
from armvm.distribution.recipe import Architecture
from armvm.errors import InputError
from armvm.image.rootfs import staged
from tools.oci_images import Layer, OciLayout, docker_archive, layer_tar

LAYERS: tuple[Layer, Layer] = (
    [("a", None), ("a/one", b"1"), ("l", "a")],
    [("l/two", b"2"), ("a/.wh.one", b""), ("b/.wh..wh..opq", b"")],
)
CHANGES = st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8)


def _changed(content: bytes, changes: list[tuple[float, int]]) -> bytes:
    data = bytearray(content)
    for place, value in changes:
        data[int(place * len(data))] = value
    return bytes(data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHANGES, st.booleans())
def test_container_images(changes: list[tuple[float, int]], docker: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "image.tar"
        if docker:
            docker_archive(source, *LAYERS)
        else:
            layout = OciLayout(folder / "layout")
            layout.image(*LAYERS)
            layout.tar(source)
        source.write_bytes(_changed(source.read_bytes(), changes))
        outside = {path.name for path in folder.iterdir()}
        try:
            with oci_tree(source, Architecture.ARM64, scratch=folder) as tree:
                tree.finish()
        except InputError:
            pass
        assert {path.name for path in folder.iterdir()} == outside


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHANGES)
def test_tar_archives(changes: list[tuple[float, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "root.tar"
        source.write_bytes(_changed(layer_tar([*LAYERS[0], *LAYERS[1]]), changes))
        try:
            with staged(source, scratch=folder) as tree:
                tree.finish()
        except InputError:
            pass
        assert [path.name for path in folder.iterdir()] == ["root.tar"]
