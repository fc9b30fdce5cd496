"""Container images made by script: OCI layouts and what ``docker save`` writes, good and lying."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard

Layer = Sequence[tuple[str, bytes | str | None]]
"""Members of a layer: (name, content); text is a symbolic link's target, None makes a folder."""


def layer_tar(members: Layer) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class OciLayout:
    """An OCI image layout that grows in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._manifests: list[Any] = []

    def blob(self, content: bytes) -> dict[str, Any]:
        """Add a blob; its descriptor."""
        name = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs/sha256" / name).write_bytes(content)
        return {"digest": f"sha256:{name}", "size": len(content)}

    def image(
        self,
        *layers: Layer,
        architecture: str = "arm64",
        variant: str | None = None,
        compression: str = "gzip",
        nested: bool = False,
    ) -> list[str]:
        """Add an image to the index; the digests of its layers."""
        packers = {
            "gzip": lambda data: gzip.compress(data, mtime=0),
            "zstd": zstandard.compress,
            "none": bytes,
        }
        blobs = [self.blob(packers[compression](layer_tar(layer))) for layer in layers]
        config = self.blob(json.dumps({"architecture": architecture, "os": "linux"}).encode())
        manifest = self.blob(json.dumps({"schemaVersion": 2, "config": config, "layers": blobs}).encode())
        platform = {"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {})}
        descriptor = {**manifest, "platform": platform, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
        if nested:
            inner = self.blob(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode())
            descriptor = {**inner, "mediaType": "application/vnd.oci.image.index.v1+json"}
        self._manifests.append(descriptor)
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self._manifests}))
        return [blob["digest"] for blob in blobs]

    def tar(self, path: Path) -> Path:
        """The layout as a tar archive."""
        with tarfile.open(path, "w") as tar:
            for file in sorted(self.folder.rglob("*")):
                tar.add(file, file.relative_to(self.folder), recursive=False)
        return path


def docker_archive(path: Path, *layers: Layer, architecture: str = "arm64", lie: bool = False) -> Path:
    """What ``docker save`` of an older Docker writes; with ``lie`` a layer is not what its digest says."""
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        blobs = [layer_tar(layer) for layer in layers]
        ids = [f"sha256:{hashlib.sha256(b'' if lie else blob).hexdigest()}" for blob in blobs]
        for number, blob in enumerate(blobs):
            add(f"{number}/layer.tar", blob)
        add("config.json", json.dumps({"architecture": architecture, "rootfs": {"diff_ids": ids}}).encode())
        names = [f"{number}/layer.tar" for number in range(len(blobs))]
        add("manifest.json", json.dumps([{"Config": "config.json", "Layers": names}]).encode())
    return path
