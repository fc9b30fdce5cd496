"""Web servers for tests: nginx as it is, and one of our own that misbehaves on demand."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_NGINX = """
{user}
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  log_format bytes '$status $body_bytes_sent $connection';
  access_log {folder}/access.log bytes;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen 127.0.0.1:{port}{tls};
    root {root};
    {server}
  }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx: where it is, and what it says that it sent."""

    url: str
    log: Path

    def sent(self) -> list[tuple[int, int, int]]:
        """Status, body bytes and connection of every answer so far."""
        deadline = time.monotonic() + 5
        while not self.log.read_bytes().endswith(b"\n") and time.monotonic() < deadline:
            time.sleep(0.01)
        return [
            (int(status), int(size), int(connection))
            for status, size, connection in (line.split() for line in self.log.read_text().splitlines())
        ]


@contextmanager
def nginx(root: Path, folder: Path, *, server: str = "", tls: tuple[Path, Path] | None = None) -> Iterator[Nginx]:
    """Serve ``root`` while the block runs; ``server`` is more of nginx's configuration, ``{url}`` in it this server."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    if tls is not None:
        server += f" ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]};"
    config = folder / "nginx.conf"
    config.write_text(
        _NGINX.format(
            user="user root;" if os.getuid() == 0 else "",
            folder=folder,
            root=root,
            port=port,
            tls=" ssl" if tls else "",
            server=server.replace("{url}", url),
        )
    )
    process = subprocess.Popen(
        ["nginx", "-c", config, "-p", folder, "-e", folder / "error.log"],
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline, "nginx does not listen"
                time.sleep(0.02)
        yield Nginx(url, folder / "access.log")
    finally:
        process.terminate()
        process.wait(20)


Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request to the misbehaving server, with what its answers are made of."""

    server: Misbehaving

    @property
    def content(self) -> bytes:
        return self.server.content

    @property
    def asked(self) -> tuple[int, int]:
        """The first byte asked for, and the one behind the last."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match is not None, self.headers["Range"]
        return int(match[1]), min(int(match[2]) + 1, len(self.content))

    def part(
        self,
        headers: Mapping[str, str | None] | None = None,
        *,
        body: bytes | None = None,
        length: int | None = None,
    ) -> None:
        """The range asked for, with header fields changed (``{"Content_Range": …}``), or left out (None)."""
        start, end = self.asked
        body = self.content[start:end] if body is None else body
        fields: dict[str, str | None] = {
            "Content_Range": f"bytes {start}-{end - 1}/{len(self.content)}",
            "Content_Length": str(len(body) if length is None else length),
            "ETag": '"one"',
            **(headers or {}),
        }
        self.answer(206, body, **fields)

    def answer(self, status: int, body: bytes = b"", **headers: str | None) -> None:
        """Any answer."""
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        self.server.paths.append(self.path)
        self.server.seen.append({name.lower(): value for name, value in self.headers.items()})
        number = len(self.server.ranges) - 1
        answers = self.server.answers
        try:
            answers[min(number, len(answers) - 1)](self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


class Misbehaving(ThreadingHTTPServer):
    """A server that answers the nth request with the nth answer, and all further ones with the last."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, content: bytes, answers: list[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.content = content
        self.answers = answers
        self.ranges: list[str] = []
        self.paths: list[str] = []
        self.seen: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def misbehaving(content: bytes, *answers: Answer) -> Iterator[Misbehaving]:
    """Run one while the block runs."""
    server = Misbehaving(content, list(answers))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
