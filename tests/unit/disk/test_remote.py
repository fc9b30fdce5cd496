"""What servers do wrong, each by a server that does it; that they are read well by nginx is a foreign test."""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.disk.http import HttpLimits
from armvm.disk.read_ahead import BLOCK_BYTES
from armvm.disk.remote import FsspecDisk, HttpDisk, is_url, open_remote, shown_name
from armvm.errors import InputError, MissingError, UsageError
from tools.containers import converted, scattered_raw
from tools.web_servers import Answer, Request, misbehaving

MIB = 1 << 20
CONTENT = random.Random(7).randbytes(MIB + 333)
LIMITS = HttpLimits(connect_seconds=2, silence_seconds=0.4, total_seconds=2, attempts=3, backoff_seconds=0.01)


def _part(request: Request) -> None:
    request.part()


def _answer(status: int, body: bytes = b"", **headers: str | None) -> Answer:
    return lambda request: request.answer(status, body, **headers)


def _other(**headers: str | None) -> Answer:
    return lambda request: request.part(headers)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def _read_all(*answers: Answer, limits: HttpLimits = LIMITS) -> tuple[bytes, int]:
    """The disk that the answers give, read whole; and in how many requests."""
    with misbehaving(CONTENT, *answers) as server, HttpDisk(server.url + "/disk.img", limits=limits) as disk:
        return disk.read(0, disk.size_bytes), disk.requests


def _open_and_read(url: str) -> None:
    with HttpDisk(url, limits=LIMITS) as disk:
        disk.read(0, disk.size_bytes)
        if not disk.size_bytes:
            raise InputError("is empty")


def _whole(request: Request) -> None:
    request.answer(200, request.content, Content_Length=str(len(request.content)), ETag='"one"')


def _cut(request: Request) -> None:
    start, end = request.asked
    request.part(body=request.content[start : start + (end - start) // 2], length=end - start)
    request.close_connection = True


def _garbage(request: Request) -> None:
    request.wfile.write(b"\xff\0 this is no HTTP\r\n\r\n")
    request.close_connection = True


def _silence(request: Request) -> None:
    time.sleep(2)


def _drip(request: Request) -> None:
    """A header that never ends, a byte at a time."""
    request.wfile.write(b"HTTP/1.0 206 Partial Content\r\nX: ")
    while True:
        request.wfile.write(b"x")
        time.sleep(0.05)


def _drip_body(request: Request) -> None:
    start, end = request.asked
    request.part(body=b"", length=end - start)
    while True:
        request.wfile.write(b"x")
        time.sleep(0.05)


def _endless(request: Request) -> None:
    request.part({"Content_Length": None}, body=b"")
    while True:
        request.wfile.write(bytes(65536))


def _around(request: Request) -> None:
    request.answer(302, Location=request.path + "x")


def _changed_range(change: Callable[[int, int], str]) -> Answer:
    return lambda request: request.part({"Content_Range": change(*request.asked)})


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (_whole, "does not give out parts"),
        (_answer(404), "404 Not Found"),
        (_answer(403), "403 Forbidden"),
        (_answer(500), "500 Internal Server Error, 3 times in a row"),
        (_answer(999, b""), "answers 999"),
        (_answer(204), "answers 204"),
        (_answer(200, b"", Content_Length="0"), "is empty"),
        (_answer(416, Content_Range="bytes */0"), "is empty"),
        (_other(Content_Range=None), "Content-Range does not fit"),
        (_other(Content_Range="bytes 0-65535/*"), "Content-Range does not fit"),
        (_other(Content_Range="bytes 0-99999999999999999999/999999999999999999999"), "Content-Range does not fit"),
        (_other(Content_Range="bytes 0-65535/-5"), "Content-Range does not fit"),
        (_other(Content_Range="items 0-65535/100000"), "Content-Range does not fit"),
        (_other(Content_Range="bytes 0-65535/65535"), "Content-Range does not fit"),
        (_other(Content_Range="bytes 65535-0/65535"), "Content-Range does not fit"),
        (_changed_range(lambda start, end: f"bytes {start + 1}-{end}/{len(CONTENT)}"), "Content-Range does not fit"),
        (_changed_range(lambda start, end: f"bytes {start}-{end - 2}/{len(CONTENT)}"), "Content-Range does not fit"),
        (_other(Content_Range="bytes \x1b[31m-\x1b[0m"), r"found bytes \\x1b"),
        (_other(Content_Length="5"), "Content-Length does not fit"),
        (_other(Content_Length="999999999999"), "Content-Length does not fit"),
        (_other(Content_Encoding="gzip"), "changes the content on its way: found gzip"),
        (_cut, "connection failed: .*, 3 times in a row"),
        (_garbage, "connection failed: .*, 3 times in a row"),
        (_silence, "connection failed: .*timed out.*, 3 times in a row"),
        (_drip, "within 2 s"),
        (_drip_body, "within 2 s"),
        (_endless, "sends more than it was asked for"),
        (_around, "redirects more than 10 times"),
        (_answer(302), "redirects more than 10 times"),
        (_answer(302, Location="ftp://127.0.0.1/x"), "no address of a file on a web server"),
        (_answer(302, Location="http://[::1"), "no address of a file on a web server"),
        (_answer(302, Location="file:///etc/passwd"), "no address of a file on a web server"),
        (_answer(503, Retry_After="99999"), "asks to come back in 99999 s"),
        (_answer(429, Retry_After=formatdate(time.time() + 5000)), "asks to come back in 4[0-9]{3} s"),
    ],
)
def test_servers_that_misbehave_at_once(first: Answer, message: str) -> None:
    start = time.monotonic()
    with misbehaving(CONTENT, first) as server, pytest.raises(InputError, match=message) as caught:
        _open_and_read(server.url + "/disk.img?secret=1")
    assert time.monotonic() - start < LIMITS.total_seconds + 2
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (_other(ETag='"two"'), "changed on the server while it was read"),
        (_other(ETag=None), "changed on the server while it was read"),
        (_whole, "no longer does"),
        (_answer(200, b"x", Content_Length="1", ETag='"two"'), "changed on the server while it was read"),
        (_answer(412), "changed on the server while it was read"),
        (_answer(416, Content_Range="bytes */7"), "changed on the server while it was read"),
        (_answer(404), "404 Not Found"),
        (_changed_range(lambda start, end: f"bytes {start}-{end - 1}/{len(CONTENT) + 1}"), "changed on the server"),
        (_changed_range(lambda start, end: f"bytes 0-{end - start - 1}/{len(CONTENT)}"), "Content-Range does not fit"),
        (_other(Content_Encoding="br"), "changes the content"),
    ],
)
def test_servers_that_misbehave_later(later: Answer, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read_all(_part, later)


def test_if_range_carries_the_strong_validator() -> None:
    modified = "Wed, 21 Oct 2015 07:28:00 GMT"
    for fields, expected in (
        ({"ETag": '"one"', "Last_Modified": modified}, '"one"'),
        ({"ETag": 'W/"one"', "Last_Modified": modified}, modified),
        ({"ETag": 'W/"one"'}, None),
    ):
        with misbehaving(CONTENT, _other(**fields)) as server, HttpDisk(server.url, limits=LIMITS) as disk:
            assert disk.read(len(CONTENT) - 9, 9) == CONTENT[-9:]
            assert [seen.get("if-range") for seen in server.seen] == [None, expected]
            assert {seen["accept-encoding"] for seen in server.seen} == {"identity"}


@pytest.mark.parametrize(
    "bad",
    [
        _cut,
        _garbage,
        _silence,
        _answer(503),
        _answer(503, Retry_After="0"),
        _answer(429, Retry_After=formatdate(time.time())),
        _answer(500, Retry_After="soon"),
    ],
)
def test_what_passes_is_tried_again(bad: Answer) -> None:
    content, requests = _read_all(bad, _part, bad, bad, _part)
    assert content == CONTENT
    assert requests == 5


def test_after_a_cut_only_the_rest_is_asked_for() -> None:
    with misbehaving(CONTENT, _part, _cut, _part) as server, HttpDisk(server.url, limits=LIMITS) as disk:
        assert disk.read(0, disk.size_bytes) == CONTENT
        assert disk.transferred_bytes == len(CONTENT)
        half = BLOCK_BYTES + (len(CONTENT) - BLOCK_BYTES) // 2
        assert server.ranges[2] == f"bytes={half}-{len(CONTENT) - 1}"


def test_server_that_always_cuts_is_given_up_in_time() -> None:
    def one_byte(request: Request) -> None:
        start, end = request.asked
        request.part(body=request.content[start : start + 1], length=end - start)
        request.close_connection = True

    start = time.monotonic()
    with pytest.raises(InputError, match=r"within 1 s|times in a row"):
        _read_all(_part, one_byte, limits=HttpLimits(total_seconds=1, backoff_seconds=0.01))
    assert time.monotonic() - start < 3


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        start = time.monotonic()
        with pytest.raises(InputError, match="cannot be reached: Connection refused"):
            HttpDisk(f"http://127.0.0.1:{taken.getsockname()[1]}/", limits=LIMITS)
        assert time.monotonic() - start < 1


def test_redirects_are_followed_and_remembered() -> None:
    def away(request: Request) -> None:
        if request.path == "/a":
            request.answer(301, Location="b?token=t")
        else:
            request.part()

    with misbehaving(CONTENT, away) as server, HttpDisk(server.url + "/a", limits=LIMITS) as disk:
        assert disk.read(0, disk.size_bytes) == CONTENT
        assert server.paths == ["/a", "/b?token=t", "/b?token=t"]


def test_address_that_ran_out_is_asked_for_again() -> None:
    def store(request: Request) -> None:
        if request.path == "/a":
            request.answer(302, Location=f"/b?{len(request.server.paths)}")
        elif request.path == f"/b?{len(request.server.paths) - 1}":
            request.part()
        else:
            request.answer(403)

    with misbehaving(CONTENT, store) as server, HttpDisk(server.url + "/a", limits=LIMITS) as disk:
        assert disk.read(0, disk.size_bytes) == CONTENT
        assert server.paths == ["/a", "/b?1", "/b?1", "/a", "/b?4"]


def test_password_goes_to_its_own_server_only_and_into_no_message() -> None:
    def elsewhere(request: Request) -> None:
        if request.path == "/b":
            request.answer(404)
        else:
            request.answer(302, Location=f"http://localhost:{request.server.server_port}/b")

    with misbehaving(CONTENT, elsewhere) as server:
        with pytest.raises(InputError, match="404") as caught:
            HttpDisk(server.url.replace("//", "//user:p%40ss@") + "/a?key=k", limits=LIMITS)
        assert [seen.get("authorization") for seen in server.seen] == ["Basic dXNlcjpwQHNz", None] * 2
    message = str(caught.value)
    assert "127.0.0.1" in message
    assert "redirected to localhost" in message
    assert not any(secret in message for secret in ("user", "p%40ss", "p@ss", "key=k"))


def test_stream_is_one_request_and_goes_on_after_a_cut() -> None:
    with misbehaving(CONTENT, _part, _cut, _part) as server, HttpDisk(server.url, limits=LIMITS) as disk:
        assert b"".join(disk.stream()) == CONTENT
        assert server.ranges[1] == f"bytes=0-{len(CONTENT) - 1}"
        assert len(server.ranges) == 3


def test_stream_that_drips_ends_in_time() -> None:
    start = time.monotonic()
    with (
        misbehaving(CONTENT, _part, _drip_body) as server,
        HttpDisk(server.url, limits=LIMITS) as disk,
        pytest.raises(InputError, match="within 2 s"),
    ):
        list(disk.stream())
    assert time.monotonic() - start < LIMITS.total_seconds + 2


def test_nothing_is_left_open() -> None:
    def count() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    with misbehaving(CONTENT, _part, _cut, _part, _drip, _part) as server:
        before, threads = count(), threading.active_count()
        with HttpDisk(server.url, limits=LIMITS) as disk:
            disk.read(MIB - 5, 5)
        time.sleep(0.1)  # the server's side
        assert count() <= before + 1
        assert threading.active_count() <= threads + 1


def test_qcow2_on_a_server_reads_as_the_raw_disk(tmp_path: Path) -> None:
    content = scattered_raw(tmp_path / "raw", 8 * MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", "qcow2", "-c")
    with misbehaving(image.read_bytes(), _part) as server, open_disk(server.url + "/image?x=y") as disk:
        assert (disk.format, disk.name) == ("qcow2", server.url + "/image?…")
        assert disk.read(0, disk.size_bytes) == content
        assert disk.traffic is not None
        assert disk.traffic.requests == len(server.ranges)


def test_backing_files_are_not_looked_for_from_afar(tmp_path: Path) -> None:
    scattered_raw(tmp_path / "base", MIB)
    top = converted(tmp_path / "base", tmp_path / "top", "qcow2", "-B", "base", "-o", "backing_fmt=raw")
    with misbehaving(top.read_bytes(), _part) as server, pytest.raises(InputError, match="difference to a backing"):
        open_disk(server.url, allow_backing_files=True)


@pytest.mark.parametrize("format", ["vmdk", "vhdx", "vpc", "vdi"])
def test_formats_that_qemu_reads_are_not_read_from_afar(tmp_path: Path, format: str) -> None:
    scattered_raw(tmp_path / "raw", MIB)
    image = converted(tmp_path / "raw", tmp_path / "image", format)
    with misbehaving(image.read_bytes(), _part) as server, pytest.raises(InputError, match="from a server") as caught:
        open_disk(server.url)
    assert "download it first" in (caught.value.hint or "")


def test_in_place_means_a_file() -> None:
    with pytest.raises(InputError, match=r"http://h/x\?…: is on a server"):
        open_disk("http://u:p@h/x?y", in_place=True)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a/b.img", "https://host/a/b.img"),
        ("https://user:pass@host:8/a?X-Amz-Signature=1#f", "https://host:8/a?…"),
        ("https://a@b@host/x", "https://host/x"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("https://host/\x1b[2J", "https://host/\\x1b[2J"),
        ("/plain/path?x@y", "/plain/path?x@y"),
        ("C:/x", "C:/x"),
    ],
)
def test_shown_names_hold_no_secrets(url: str, shown: str) -> None:
    assert shown_name(url) == shown
    assert is_url(url) is (url != shown or url.startswith("https"))


def test_unknown_schemes() -> None:
    for url in ("gopher://x/y", "reference://x", "filecache://x", "zip://x::file://y"):
        with pytest.raises(UsageError, match="images are not read from"):
            open_remote(url)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    import fsspec

    system = fsspec.filesystem("memory")
    yield lambda content: system.pipe_file("/box/disk.img", content)
    system.store.clear()


def test_object_store(memory: Callable[[bytes], None], tmp_path: Path) -> None:
    content = scattered_raw(tmp_path / "raw", 3 * MIB)
    memory(converted(tmp_path / "raw", tmp_path / "image", "qcow2").read_bytes())
    with open_disk("memory://box/disk.img") as disk:
        assert disk.format == "qcow2"
        assert disk.read(0, disk.size_bytes) == content
        assert disk.traffic is not None
        assert disk.traffic.transferred_bytes


def test_object_that_changes(memory: Callable[[bytes], None]) -> None:
    memory(CONTENT)
    with FsspecDisk("memory://box/disk.img") as disk:
        assert disk.read(5, 9) == CONTENT[5:14]
        memory(CONTENT[::-1])
        assert disk.read(5, 9) == CONTENT[5:14]  # kept
        with pytest.raises(InputError, match="changed on the server"):
            disk.read(MIB, 9)


def test_object_that_is_not_there(memory: Callable[[bytes], None]) -> None:
    memory(CONTENT)
    with pytest.raises(InputError, match="no such file"):
        FsspecDisk("memory://box/other.img")
    with pytest.raises(InputError, match="is no file"):
        FsspecDisk("memory://box")


def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingError, match="s3:// is read through s3fs") as caught:
        open_remote("s3://bucket/disk.img")
    assert caught.value.install == "pip install 'armvm[remote]'"
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingError, match="gs:// is read through fsspec"):
        open_remote("gs://bucket/disk.img")
