"""Container images: layers in order, whiteouts, the right platform, and nothing that is not what its digest says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armvm.distribution.archive import oci_tree
from armvm.distribution.recipe import Architecture
from armvm.errors import InputError
from tools.oci_images import Layer, OciLayout, docker_archive

ARM64, ARMHF = Architecture.ARM64, Architecture.ARMHF


def _read(source: Path, scratch: Path, architecture: Architecture = ARM64) -> dict[str, bytes | str | None]:
    """Everything in the image's tree: content of files, targets of links, None for folders."""
    scratch.mkdir(exist_ok=True)
    with oci_tree(source, architecture, scratch=scratch) as tree:
        root = tree.finish()
        return {
            entry.path: entry.link_target
            if entry.link_target is not None
            else (root.staging / entry.path).read_bytes()
            if entry.is_file
            else None
            for entry in root.entries
            if entry.path
        }


LOWER: Layer = [("a", None), ("a/one", b"1"), ("a/two", b"2"), ("b", None), ("b/x", b"x"), ("c", b"c"), ("d", b"d")]
UPPER: Layer = [
    ("a/.wh.one", b""),
    ("b/new", b"new"),
    ("b/.wh..wh..opq", b""),
    ("c", None),
    ("c/inside", b"i"),
    ("d", "a/two"),
]
MERGED = {"a": None, "a/two": b"2", "b": None, "b/new": b"new", "c": None, "c/inside": b"i", "d": "a/two"}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("packed", [False, True])
def test_layers_are_applied_in_order(tmp_path: Path, compression: str, packed: bool) -> None:
    layout = OciLayout(tmp_path / "image")
    layout.image(LOWER, UPPER, compression=compression)
    source = layout.tar(tmp_path / "image.tar") if packed else layout.folder
    assert _read(source, tmp_path / "s") == MERGED


def test_what_docker_saves(tmp_path: Path) -> None:
    assert _read(docker_archive(tmp_path / "d.tar", LOWER, UPPER), tmp_path / "s") == MERGED


def test_a_folder_becomes_a_file_and_a_link_a_folder(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "image")
    layout.image([("a/b/c", b"1"), ("l", "a")], [("a", b"file")], [("l", None), ("l/x", b"x")])
    assert _read(layout.folder, tmp_path / "s") == {"a": b"file", "l": None, "l/x": b"x"}


def test_a_whiteout_spares_what_its_own_layer_brings(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "image")
    layout.image([("a/old", b"old")], [("a/new", b"new"), (".wh.a", b"")])
    assert _read(layout.folder, tmp_path / "s") == {"a": None, "a/new": b"new"}


def test_the_platform_is_chosen(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "image")
    layout.image([("amd64", b"")], architecture="amd64")
    layout.image([("v6", b"")], architecture="arm", variant="v6")
    layout.image([("v7", b"")], architecture="arm", variant="v7", nested=True)
    layout.image([("v8", b"")], architecture="arm64", variant="v8", nested=True)
    assert _read(layout.folder, tmp_path / "s") == {"v8": b""}
    assert _read(layout.folder, tmp_path / "s", ARMHF) == {"v7": b""}


def test_another_platform_is_refused_by_name(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "image")
    layout.image([("x", b"")], architecture="riscv64")
    with pytest.raises(InputError, match="riscv64"):
        _read(layout.folder, tmp_path / "s")
    with pytest.raises(InputError, match="s390x"):
        _read(docker_archive(tmp_path / "d.tar", LOWER, architecture="s390x"), tmp_path / "t")


def test_a_layer_that_was_changed_is_refused(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "image")
    digests = layout.image(LOWER, UPPER)
    blob = layout.folder / "blobs/sha256" / digests[1].removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes() + b"\0")
    with pytest.raises(InputError, match="not what its digest says"):
        _read(layout.folder, tmp_path / "s")
    with pytest.raises(InputError, match="not what its digest says"):
        _read(docker_archive(tmp_path / "d.tar", LOWER, lie=True), tmp_path / "t")


def test_a_layer_cannot_leave_the_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layout = OciLayout(tmp_path / "image")
    layout.image(
        [("way", str(outside)), ("up", "../../..")], [("way/evil", b"x"), ("up/evil", b"x"), ("way/.wh.y", b"")]
    )
    assert _read(layout.folder, tmp_path / "s")["evil"] == b"x"
    assert not list(outside.iterdir())
    for number, name in enumerate(("../evil", "a/../../evil", "a/.wh..")):
        bad = OciLayout(tmp_path / f"bad{number}")
        bad.image([("a", None), (name, b"x")])
        with pytest.raises(InputError):
            _read(bad.folder, tmp_path / f"t{number}")


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{",
        '{"manifests": {}}',
        '{"manifests": [1]}',
        '{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}',
        '{"manifests": [{"digest": "md5:0"}]}',
        "[" * 100_000,
        json.dumps({"manifests": [{"digest": "sha256:" + "0" * 64}]}),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, index: str) -> None:
    layout = OciLayout(tmp_path / "image")
    (layout.folder / "index.json").write_text(index)
    with pytest.raises(InputError, match="image"):
        _read(layout.folder, tmp_path / "s")


def test_an_index_that_names_itself_ends(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "image")
    inner = layout.blob(b"{}")
    for _ in range(8):
        kind = "application/vnd.oci.image.index.v1+json"
        inner = layout.blob(json.dumps({"manifests": [{**inner, "mediaType": kind}] * 2}).encode())
    (layout.folder / "index.json").write_text(json.dumps({"manifests": [{**inner, "mediaType": kind}]}))
    with pytest.raises(InputError, match="nested too deep"):
        _read(layout.folder, tmp_path / "s")


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no container image"):
        _read(tmp_path / "empty", tmp_path / "s")
    (tmp_path / "x.tar").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x\.tar"):
        _read(tmp_path / "x.tar", tmp_path / "t")
