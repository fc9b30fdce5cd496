"""A file on a web server, read by ranges; whatever the server does, in bounded time (RFC 9110 §13 to §15).

Every answer is held against the first: same size, same validators, the very range that was asked for. Imports urllib3:
only ``armvm.disk.remote`` imports this, when it is needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import NoReturn
from urllib.parse import unquote, urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError, SSLError
from urllib3.util import Timeout, Url, make_headers, parse_url

from armvm.disk.http_connections import Watchdog, connect_pools, in_words
from armvm.disk.storage import Traffic
from armvm.errors import InputError
from armvm.printable import printable
from armvm.version import __version__

PIECE_BYTES = 64 * 1024
"""The most that a stream gives at a time."""
_STEP_BYTES = 1 << 20
"""How much of a stream has to come within ``HttpLimits.total_seconds``."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_DOWNLOAD = "download it first, and name the file"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How long and how often is tried. ``total_seconds`` is for one read with all that it takes."""

    connect_seconds: float = 10
    silence_seconds: float = 20
    total_seconds: float = 120
    attempts: int = 5
    backoff_seconds: float = 0.5
    redirects: int = 10


@dataclass(frozen=True, slots=True)
class _Version:
    """What tells one content of a file from another (RFC 9110 §8.8)."""

    size_bytes: int
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry (RFC 9110 §13.1.5): a strong entity tag, else the date."""
        return self.etag if self.etag is not None and not self.etag.startswith("W/") else self.modified

    def __str__(self) -> str:
        marks = [mark for mark in (self.etag, self.modified) if mark]
        return printable(", ".join([f"{self.size_bytes} bytes", *marks])[:200])


class _AgainError(Exception):
    """An attempt failed in a way that another may not. ``wait_seconds`` is what the server asked to wait."""

    def __init__(self, what: str, wait_seconds: float | None = None) -> None:
        super().__init__(what)
        self.wait_seconds = wait_seconds


class HttpFile:
    """The file at ``url``, called ``name`` in messages; what it costs is counted in ``traffic``.

    The first request tells size, validators and whether the server gives ranges; its content is ``head``.
    Raises InputError when the server does not give the file out in ranges.
    """

    def __init__(
        self, url: str, *, name: str, traffic: Traffic, head_bytes: int, limits: HttpLimits | None = None
    ) -> None:
        self._name = name
        self._traffic = traffic
        self._limits = limits or HttpLimits()
        self._version: _Version | None = None
        self._watchdog = Watchdog()
        self._until = 0.0
        parsed = self._parse(url)
        self._authorization = make_headers(basic_auth=unquote(parsed.auth)) if parsed.auth else {}
        self._origin = self._location = parsed._replace(auth=None, fragment=None)
        self._pools = connect_pools(self._origin, self._watchdog.watch)
        try:
            with self._limit():
                self.head = b"".join(self._receive(0, head_bytes))
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self._version.size_bytes if self._version is not None else 0

    def fetch(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``. Raises InputError when they cannot be had in time."""
        with self._limit():
            return b"".join(self._receive(offset, offset + length))

    def stream(self) -> Iterator[bytes]:
        """The whole file in pieces of at most PIECE_BYTES, by one request where the connection holds.

        Raises InputError where it cannot be had, or comes too slowly.
        """
        pieces = self._receive(0, self.size_bytes)
        position = 0
        while position < self.size_bytes:
            step: list[bytes] = []
            end = min(position + _STEP_BYTES, self.size_bytes)
            with self._limit():
                while position < end:
                    step.append(next(pieces))
                    position += len(step[-1])
            yield from step

    def close(self) -> None:
        """Let go of the connections."""
        self._pools.clear()
        self._watchdog.close()

    # One read, with all the requests that it takes

    @contextmanager
    def _limit(self) -> Iterator[None]:
        self._until = time.monotonic() + self._limits.total_seconds
        with self._watchdog.limit(self._limits.total_seconds):
            yield

    def _receive(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` to ``end``, asked for again from where they were cut off.

        While the file is unknown, ``end`` is only the most that is wanted.
        """
        position, failures = start, 0
        while position < (end if self._version is None else min(end, self._version.size_bytes)):
            try:
                for piece in self._attempt(position, end):
                    position += len(piece)
                    failures = 0
                    yield piece
                if self._version is not None and not self._version.size_bytes:
                    return
            except _AgainError as again:
                failures += 1
                self._wait(failures, again)

    def _attempt(self, start: int, end: int) -> Iterator[bytes]:
        """One request and its body. Raises _AgainError where another may do better."""
        try:
            response = self._ask(start, end)
            if response is not None:
                yield from self._body(response)
        except (HTTPError, OSError) as error:
            self._judge(error)

    def _judge(self, error: Exception) -> NoReturn:
        """What a failure of the connection comes to."""
        if self._watchdog.expired:
            raise self._too_slow() from None
        what = in_words(error)
        hopeless = isinstance(error, SSLError) or (isinstance(error, NewConnectionError) and self._version is None)
        if hopeless:
            raise self._error(f"the server cannot be reached: {what}") from error
        raise _AgainError(f"the connection failed: {what}") from error

    def _wait(self, failures: int, again: _AgainError) -> None:
        if failures >= self._limits.attempts:
            raise self._error(f"{again}, {failures} times in a row") from again
        wait = again.wait_seconds
        if wait is None:
            wait = self._limits.backoff_seconds * 2 ** (failures - 1)
        elif wait > self._until - time.monotonic():
            raise self._error(f"{again}, and asks to come back in {wait:.0f} s") from again
        if wait >= self._until - time.monotonic():
            raise self._too_slow() from again
        time.sleep(wait)

    def _ask(self, start: int, end: int) -> urllib3.BaseHTTPResponse | None:
        """Ask for a range; the answer whose body is exactly that. None when the file turns out to be empty."""
        if self._version is not None:
            end = min(end, self._version.size_bytes)
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if self._version is not None and self._version.validator is not None:
            headers["If-Range"] = self._version.validator
        response = self._follow(headers)
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            self._verify(response, start, end)
            return response
        response.close()
        if response.status in _GONE and self._location != self._origin:
            # A signed address, to which the server redirected, has run out: ask for another.
            self._location = self._origin
            response = self._follow(headers)
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                self._verify(response, start, end)
                return response
            response.close()
        self._refuse(response)
        return None

    def _refuse(self, response: urllib3.BaseHTTPResponse) -> None:
        """What an answer without the range comes to: an error, or (returning) an empty file."""
        status, headers = response.status, response.headers
        if status in _TRANSIENT:
            raise _AgainError(f"the server answers {_status(response)}", _retry_after(headers.get("Retry-After")))
        if self._version is not None and status in {200, 412, 416}:
            found = _version_of(response, _whole_size(response))
            if status != HTTPStatus.OK or not _same(found, self._version):
                raise self._changed(found)
            raise self._error("the server gave parts of the file, and no longer does", hint=_DOWNLOAD)
        empty = (status == HTTPStatus.OK and headers.get("Content-Length") == "0") or (
            status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and headers.get("Content-Range") == "bytes */0"
        )
        if empty:
            self._version = _Version(0, None, None)
            return
        if status == HTTPStatus.OK:
            raise self._error("the server does not give out parts of a file", hint=_DOWNLOAD)
        raise self._error(f"the server answers {_status(response)}")

    def _follow(self, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Ask where the file was last found, and go where the answers lead."""
        for _ in range(self._limits.redirects + 1):
            response = self._request(headers)
            if response.status not in _REDIRECTS:
                return response
            response.close()
            self._location = self._redirected(response.headers.get("Location", ""))
        raise self._error(f"the server redirects more than {self._limits.redirects} times")

    def _request(self, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        self._traffic.requests += 1
        here, origin = self._location, self._origin
        own = (here.scheme, here.host, here.port) == (origin.scheme, origin.host, origin.port)
        response = self._pools.request(
            "GET",
            here.url,
            headers={
                **headers,
                "Accept-Encoding": "identity",
                "User-Agent": f"armvm/{__version__}",
                **(self._authorization if own else {}),
            },
            preload_content=False,
            decode_content=False,
            redirect=False,
            retries=False,
            timeout=Timeout(connect=self._limits.connect_seconds, read=self._limits.silence_seconds),
        )
        if self._watchdog.expired:  # cut off among the header's fields, of which there are only some then
            response.close()
            raise self._too_slow()
        return response

    def _redirected(self, target: str) -> Url:
        try:
            joined = urljoin(self._location.url, target)
        except ValueError:
            joined = ""
        new = self._parse(joined)._replace(auth=None, fragment=None)
        if self._location.scheme == "https" and new.scheme != "https":
            raise self._error("the server redirects from https to plain http", hint=_DOWNLOAD)
        return new

    def _parse(self, url: str) -> Url:
        try:
            parsed = parse_url(url)
        except (LocationParseError, ValueError):
            parsed = Url()
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise self._error("no address of a file on a web server")
        return parsed

    # One answer

    def _verify(self, response: urllib3.BaseHTTPResponse, start: int, end: int) -> None:
        """Refuse an answer that is not the range asked for, of the file as it was. Takes the first for the truth."""
        try:
            self._judge_answer(response, start, end)
        except BaseException:
            response.close()
            raise

    def _judge_answer(self, response: urllib3.BaseHTTPResponse, start: int, end: int) -> None:
        said = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(said.strip())
        if match is None:
            self._lies("Content-Range", said, f"bytes {start}-…")
        first, last, size = (int(number) for number in match.groups())
        version = _version_of(response, size)
        if self._version is not None and not _same(version, self._version):
            raise self._changed(version)
        if (first, last) != (start, min(end, size) - 1) or last < first:
            self._lies("Content-Range", said, f"bytes {start}-{min(end, size) - 1}/{size}")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity":
            raise self._error("the server changes the content on its way", found=printable(encoding[:80]))
        length = response.headers.get("Content-Length")
        if length is not None and length.strip() != str(last - first + 1):
            self._lies("Content-Length", length, str(last - first + 1))
        self._version = self._version or version
        self._expected = last - first + 1

    def _body(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """The body, which has to be as long as announced: no byte less, no byte more."""
        left = self._expected
        whole = False
        try:
            while left:
                piece = response.read1(min(left, PIECE_BYTES))
                if self._watchdog.expired:
                    raise self._too_slow()
                if not piece:
                    raise _AgainError(f"the server ended the connection {left} bytes early")
                self._traffic.transferred_bytes += len(piece)
                left -= len(piece)
                yield piece
            if response.read(1):
                raise self._error("the server sends more than it was asked for")
            whole = True
        finally:
            if whole:
                response.release_conn()
            else:
                response.close()
                self._watchdog.forget_closed()

    def _lies(self, header: str, said: str, expected: str) -> NoReturn:
        found = printable(said[:80]) or "nothing"
        raise self._error(f"the server's {header} does not fit what was asked for", found=found, expected=expected)

    def _changed(self, found: _Version) -> InputError:
        return self._error(
            "changed on the server while it was read",
            found=str(found),
            expected=str(self._version),
            hint=f"try again; if it keeps changing, {_DOWNLOAD}",
        )

    def _too_slow(self) -> InputError:
        return self._error(f"the server did not give what was asked for within {self._limits.total_seconds:g} s")

    def _error(
        self, message: str, *, found: str | None = None, expected: str | None = None, hint: str | None = None
    ) -> InputError:
        if self._location_moved:
            message += f" (redirected to {printable(self._location.host or '')})"
        return InputError(message, subject=self._name, found=found, expected=expected, hint=hint)

    @property
    def _location_moved(self) -> bool:
        here = getattr(self, "_location", None)
        return here is not None and here.host != self._origin.host


def _version_of(response: urllib3.BaseHTTPResponse, size_bytes: int) -> _Version:
    return _Version(size_bytes, response.headers.get("ETag"), response.headers.get("Last-Modified"))


def _same(found: _Version, known: _Version) -> bool:
    """Whether an answer is of the known content: a validator that was there must still be, and be the same."""
    return (
        found.size_bytes == known.size_bytes
        and (known.etag is None or found.etag == known.etag)
        and (known.modified is None or found.modified == known.modified)
    )


def _whole_size(response: urllib3.BaseHTTPResponse) -> int:
    """The size of the whole file as an answer without a range has it; -1 when it does not say."""
    text = response.headers.get("Content-Length", "")
    if response.status != HTTPStatus.OK:
        text = response.headers.get("Content-Range", "").removeprefix("bytes */")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1


def _status(response: urllib3.BaseHTTPResponse) -> str:
    return printable(f"{response.status} {response.reason or ''}".strip()[:80])


def _retry_after(text: str | None) -> float | None:
    """The seconds that Retry-After asks for (RFC 9110 §10.2.3): a number, or a date; None for anything else."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
