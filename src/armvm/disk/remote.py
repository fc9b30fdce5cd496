"""Disk images on servers, read by the ranges that are needed: http and https, and object stores through fsspec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from armvm.disk.read_ahead import BLOCK_BYTES, MOST_FETCHED_BYTES, ReadAhead
from armvm.disk.storage import BaseDisk, Traffic
from armvm.errors import InputError, MissingError, UsageError
from armvm.printable import printable

if TYPE_CHECKING:
    from armvm.disk.http import HttpLimits

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_STORES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "sftp": "paramiko",
    "ftp": None,
    "memory": None,
}
"""Scheme to the package that fsspec needs for it."""
_INSTALL = "pip install 'armvm[remote]'"
_MARKS = ("ETag", "etag", "generation", "version_id", "LastModified", "last_modified", "mtime", "created", "md5Hash")
"""What file systems of fsspec call that by which a changed file is known."""


def is_url(text: str) -> bool:
    """Whether ``text`` names something on a server rather than a file."""
    return _URL.match(text) is not None


def shown_name(text: str) -> str:
    """A path or URL as it may be shown and kept: without user, password and query, which hold secrets."""
    scheme = _URL.match(text)
    if scheme is None:
        return text
    address, question, _ = text[scheme.end() :].partition("#")[0].partition("?")
    host, slash, path = address.partition("/")
    return printable(f"{scheme[0]}{host.rpartition('@')[2]}{slash}{path}{'?…' if question else ''}")


class RemoteDisk(BaseDisk):
    """A file on a server as a disk, its blocks kept; ``traffic`` counts what that costs."""

    traffic: Traffic

    def __init__(self, name: str, size_bytes: int, traffic: Traffic) -> None:
        super().__init__(name, "raw", size_bytes)
        self.traffic = traffic
        traffic.size_bytes = size_bytes
        self._blocks = ReadAhead(size_bytes, self._fetch)

    @property
    def transferred_bytes(self) -> int:
        """How many bytes of content were received so far."""
        return self.traffic.transferred_bytes

    @property
    def requests(self) -> int:
        """How many requests were sent so far."""
        return self.traffic.requests

    def _fetch(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def _read(self, offset: int, length: int) -> bytes:
        return self._blocks.read(offset, length)

    def stream(self) -> Iterator[bytes]:
        """The whole file in order, past the kept blocks: for what has to be read whole."""
        for offset in range(0, self.size_bytes, MOST_FETCHED_BYTES):
            yield self._fetch(offset, min(MOST_FETCHED_BYTES, self.size_bytes - offset))


class HttpDisk(RemoteDisk):
    """The file at an http or https URL. Raises InputError when the server does not give it out in ranges.

    Changed content, a server that lies, and one that is too slow are InputErrors too, of whatever read meets them.
    """

    def __init__(self, url: str, *, limits: HttpLimits | None = None) -> None:
        from armvm.disk.http import HttpFile

        traffic = Traffic()
        name = shown_name(url)
        self._file = HttpFile(url, name=name, traffic=traffic, head_bytes=BLOCK_BYTES, limits=limits)
        super().__init__(name, self._file.size_bytes, traffic)
        self._blocks.put(0, self._file.head)

    def _fetch(self, offset: int, length: int) -> bytes:
        return self._file.fetch(offset, length)

    def stream(self) -> Iterator[bytes]:
        """The whole file in order, by one request where the connection holds."""
        return self._file.stream()

    def close(self) -> None:
        """Close the connections."""
        self._file.close()


class FsspecDisk(RemoteDisk):
    """The file at a URL of an object store, through fsspec; retries and time-outs are those of its library there.

    Raises MissingError when a library is missing, InputError when the file cannot be read.
    """

    def __init__(self, url: str) -> None:
        name = shown_name(url)
        scheme = url.partition("://")[0].lower()
        try:
            import fsspec
        except ImportError:
            raise MissingError(f"{scheme}:// is read through fsspec", component="fsspec", install=_INSTALL) from None
        traffic = Traffic()
        try:
            self._system, self._path = fsspec.core.url_to_fs(url)
            self._mark = self._ask_mark()
        except ImportError as error:
            package = _STORES.get(scheme) or "a library that is not installed"
            message = f"{scheme}:// is read through {package}"
            raise MissingError(message, component=package, install=_INSTALL) from error
        except Exception as error:  # what the libraries behind fsspec raise has no common base
            raise _unreadable(name, error) from error
        size_bytes = self._mark[0]
        if not isinstance(size_bytes, int):
            raise InputError("is no file", subject=name, found="a folder, or something of unknown size")
        traffic.requests += 1
        super().__init__(name, size_bytes, traffic)

    def _ask_mark(self) -> tuple[Any, ...]:
        self._system.invalidate_cache(self._system._parent(self._path))
        info = self._system.info(self._path)
        size = info.get("size") if info.get("type") != "directory" else None
        return (size, *(str(info[key]) for key in _MARKS if key in info))

    def _fetch(self, offset: int, length: int) -> bytes:
        try:
            content = self._system.cat_file(self._path, start=offset, end=offset + length)
            mark = self._ask_mark()
        except Exception as error:  # as above
            raise _unreadable(self.name, error) from error
        self.traffic.requests += 2
        self.traffic.transferred_bytes += len(content)
        if mark != self._mark or len(content) != length:
            raise InputError("changed on the server while it was read", subject=self.name, offset_bytes=offset)
        return bytes(content)


def _unreadable(name: str, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError("there is no such file", subject=name)
    said = printable(str(error).splitlines()[0][:200]) if str(error) else ""
    return InputError(f"cannot be read: {type(error).__name__}{f': {said}' if said else ''}", subject=name)


def open_remote(url: str) -> RemoteDisk:
    """Open the file at ``url``. Raises UsageError for a scheme that nobody here speaks, and as the disks do."""
    scheme = url.partition("://")[0].lower()
    if scheme in {"http", "https"}:
        return HttpDisk(url)
    if scheme in _STORES:
        return FsspecDisk(url)
    known = ", ".join(f"{known}://" for known in ("http", "https", *_STORES) if known != "memory")
    raise UsageError(f"images are not read from {printable(scheme)}://", hint=f"from files, and from {known}")
