"""Container images as root trees: an OCI image layout (folder or tar) or what ``docker save`` writes, layer by layer.

Sources: OCI Image Specification 1.1 (image-layout.md, image-index.md, manifest.md, layer.md); Docker Image
Specification v1.2 ("Combined Image JSON + Filesystem Changeset Format"). Every digest is verified
before its bytes are used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from armvm.distribution.recipe import Architecture
from armvm.errors import InputError
from armvm.image.archives import BoundedTarInfo, open_stream, open_tar, reading_archive
from armvm.image.staging import StagedTree
from armvm.printable import printable
from armvm.units import GIB, MIB

_MOST_JSON_BYTES = 4 * MIB
_MOST_LAYERS = 1024
_MOST_INDEX_DEPTH = 4
_MOST_MANIFESTS = 4096
_MOST_MEMBERS = 200_000
_MOST_LINKS = 8
_MOST_LAYER_BYTES = 256 * GIB
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_INDEX_TYPES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_VARIANTS = {Architecture.ARM64: ("v8", ""), Architecture.ARMHF: ("v7", "", "v6")}
"""The variants that can run, best first: Debian's armhf is ARMv7; what has no variant says nothing."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer in the store. ``digest`` is the file's, ``diff_id`` its decompressed bytes'; one may be unknown."""

    name: str
    digest: str | None
    diff_id: str | None


@contextmanager
def oci_tree(source: Path, architecture: Architecture, *, scratch: Path) -> Iterator[StagedTree]:
    """The root tree of the container image at ``source`` for ``architecture``, below ``scratch`` while the block runs.

    Raises InputError for what is no such image, has none for the architecture, or is not what its digests say.
    """
    staging = scratch / "root"
    staging.mkdir(mode=0o700)
    try:
        with reading_archive(source), _open_store(source) as store:
            tree = StagedTree(staging, str(source))
            for layer in _layers(store, architecture):
                _verify(store, layer)
                with store.open(layer.name) as raw, open_tar(raw) as archive:
                    tree.unpack_layer(archive)
        yield tree
    finally:
        shutil.rmtree(staging)


class _Store(ABC):
    """The files of an image, by name."""

    def __init__(self, subject: str) -> None:
        self.subject = subject

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def open(self, name: str) -> BufferedReader:
        """The file's bytes. Raises InputError when there is none."""

    def json(self, name: str, digest: str | None = None) -> Any:
        """A JSON document, verified."""
        with self.open(name) as file:
            content = file.read(_MOST_JSON_BYTES + 1)
        if len(content) > _MOST_JSON_BYTES:
            raise self.wrong(f"{name} is larger than {_MOST_JSON_BYTES // MIB} MiB")
        if digest is not None and f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise self.wrong(f"{name} is not what its digest says")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self.wrong(f"{name} is no JSON") from error

    def wrong(self, message: str) -> InputError:
        """The error about this image."""
        return InputError(printable(message), subject=self.subject)


class _FolderStore(_Store):
    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder.resolve()

    def has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def open(self, name: str) -> BufferedReader:
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder):
            raise self.wrong(f"{name} leads out of the image")
        try:
            return path.open("rb")
        except OSError as error:
            raise self.wrong(f"{name} cannot be read: {error.strerror}") from error


class _TarStore(_Store):
    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        super().__init__(str(path))
        self._archive = archive
        self._members: dict[str, tarfile.TarInfo] = {}
        for count, member in enumerate(archive):
            if count == _MOST_MEMBERS:
                raise self.wrong(f"more than {_MOST_MEMBERS} files")
            self._members[_normal(member.name)] = member

    def has(self, name: str) -> bool:
        return _normal(name) in self._members

    def open(self, name: str) -> BufferedReader:
        member = self._members.get(_normal(name))
        for _ in range(_MOST_LINKS):  # docker save once wrote a layer that stands twice as a link
            if member is None or not (member.issym() or member.islnk()):
                break
            base = PurePosixPath(member.name).parent if member.issym() else PurePosixPath()
            member = self._members.get(_normal(str(base / member.linkname)))
        file = self._archive.extractfile(member) if member is not None and member.isreg() else None
        if file is None:
            raise self.wrong(f"there is no file {name} in it")
        return file  # type: ignore[return-value]  # an ExFileObject is a BufferedReader, typeshed says IO[bytes]


def _normal(name: str) -> str:
    """A member's name without ``.`` and ``..``, which end at the archive's root."""
    parts: list[str] = []
    for part in PurePosixPath(name).parts:
        if part == "..":
            parts = parts[:-1]
        elif part not in ("/", "."):
            parts.append(part)
    return "/".join(parts)


@contextmanager
def _open_store(source: Path) -> Iterator[_Store]:
    if source.is_dir():
        yield _FolderStore(source)
        return
    with tarfile.open(source, mode="r:*", tarinfo=BoundedTarInfo) as archive:
        yield _TarStore(source, archive)


def _layers(store: _Store, architecture: Architecture) -> list[_Layer]:
    if store.has("index.json") and store.has("oci-layout"):
        layers = _oci_layers(store, architecture)
    elif store.has("manifest.json"):
        layers = _docker_layers(store, architecture)
    else:
        raise InputError(
            "no container image",
            subject=store.subject,
            expected="an OCI image layout (oci-layout, index.json) or what `docker save` writes (manifest.json)",
        )
    if len(layers) > _MOST_LAYERS:
        raise store.wrong(f"more than {_MOST_LAYERS} layers")
    return layers


def _oci_layers(store: _Store, architecture: Architecture) -> list[_Layer]:
    seen: list[str] = []
    for descriptor in _manifests(store, _mapping(store, store.json("index.json"), "index.json"), architecture, seen):
        name, digest = _blob(store, descriptor)
        manifest = _mapping(store, store.json(name, digest), name)
        config_name, config_digest = _blob(store, manifest.get("config"))
        config = _mapping(store, store.json(config_name, config_digest), config_name)
        found = str(config.get("architecture"))
        if found != architecture.oci:
            seen.append(found)
            continue
        layers = manifest.get("layers")
        if not isinstance(layers, list):
            raise store.wrong(f"{name} has no list of layers")
        return [_Layer(*_blob(store, layer), None) for layer in layers]
    raise InputError(
        f"no image for {architecture.value} in it",
        subject=store.subject,
        found=printable(", ".join(dict.fromkeys(seen)) or "nothing")[:200],
        expected=f"architecture {architecture.oci!r}",
        hint="--arch chooses; `skopeo copy --override-arch` makes one for another architecture",
    )


def _manifests(store: _Store, index: dict[str, Any], architecture: Architecture, seen: list[str]) -> list[Any]:
    """The descriptors of image manifests that may be for ``architecture``, the best first; indexes are followed."""
    found: list[tuple[int, Any]] = []
    pending: list[tuple[dict[str, Any], int]] = [(index, 0)]
    count = 0
    while pending:
        here, depth = pending.pop(0)
        manifests = here.get("manifests")
        if not isinstance(manifests, list):
            raise store.wrong("an index has no list of manifests")
        for descriptor in manifests:
            count += 1
            if count > _MOST_MANIFESTS or depth > _MOST_INDEX_DEPTH:
                raise store.wrong("its indexes are nested too deep")
            descriptor = _mapping(store, descriptor, "a manifest's descriptor")  # noqa: PLW2901 - the same, checked
            if descriptor.get("mediaType") in _INDEX_TYPES:
                name, digest = _blob(store, descriptor)
                pending.append((_mapping(store, store.json(name, digest), name), depth + 1))
                continue
            platform = descriptor.get("platform")
            if not isinstance(platform, dict):
                found.append((len(_VARIANTS[architecture]), descriptor))  # its configuration will say
                continue
            variant = str(platform.get("variant") or "")
            seen.append(f"{platform.get('architecture')}{'/' if variant else ''}{variant}")
            if platform.get("architecture") == architecture.oci and variant in _VARIANTS[architecture]:
                found.append((_VARIANTS[architecture].index(variant), descriptor))
    return [descriptor for _, descriptor in sorted(found, key=lambda item: item[0])]


def _docker_layers(store: _Store, architecture: Architecture) -> list[_Layer]:
    manifests = store.json("manifest.json")
    if not isinstance(manifests, list) or not manifests:
        raise store.wrong("manifest.json is no list of images")
    seen = []
    for manifest in manifests[:_MOST_MANIFESTS]:
        manifest = _mapping(store, manifest, "manifest.json")  # noqa: PLW2901 - the same, checked
        config_name, layers = manifest.get("Config"), manifest.get("Layers")
        if not isinstance(config_name, str) or not isinstance(layers, list):
            raise store.wrong("manifest.json names no configuration and layers")
        config = _mapping(store, store.json(config_name), config_name)
        seen.append(str(config.get("architecture")))
        if seen[-1] != architecture.oci:
            continue
        rootfs = config.get("rootfs")
        diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
            raise store.wrong("its configuration has no digest for every layer")
        return [_Layer(str(name), None, str(diff_id)) for name, diff_id in zip(layers, diff_ids, strict=True)]
    raise InputError(
        f"no image for {architecture.value} in it",
        subject=store.subject,
        found=printable(", ".join(dict.fromkeys(seen)))[:200],
        expected=f"architecture {architecture.oci!r}",
    )


def _mapping(store: _Store, value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise store.wrong(f"{what} is no JSON object")
    return value


def _blob(store: _Store, descriptor: Any) -> tuple[str, str]:
    """(file name, digest) of what a descriptor points to."""
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise store.wrong(f"a descriptor has no sha256 digest: {str(digest)[:80]}")
    return f"blobs/sha256/{match[1]}", match[0]


def _verify(store: _Store, layer: _Layer) -> None:
    """Read the whole layer once: what is unpacked afterwards is what the manifest means."""
    expected = layer.digest or layer.diff_id
    digest, count = hashlib.sha256(), 0
    with store.open(layer.name) as raw:
        stream = raw if layer.digest is not None else open_stream(raw)
        while chunk := stream.read(MIB):
            digest.update(chunk)
            count += len(chunk)
            if count > _MOST_LAYER_BYTES:
                raise store.wrong(f"layer {layer.name} is larger than {_MOST_LAYER_BYTES // GIB} GiB")
    if f"sha256:{digest.hexdigest()}" != expected:
        raise store.wrong(f"layer {layer.name} is not what its digest says")
