"""Images of other hypervisors (vmdk, vhdx, vhd, vdi), read through QEMU's own programs: nothing of them is parsed here.

``qemu-img info`` says what an image is and which other files it leads to (any is a refusal); then a private
``qemu-nbd`` serves it, read-only, over a socket that nobody else can reach.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from armvm.disk.nbd import NbdClient, NbdError
from armvm.disk.raw import RawDisk
from armvm.disk.storage import BaseDisk, Extent
from armvm.errors import InputError, OutputError
from armvm.printable import printable
from armvm.process import ProgramError, require_program, run

FORMATS = ("vmdk", "vhdx", "vpc", "vdi")
"""The formats read this way, as QEMU spells them."""

_TIMEOUT_SECONDS = 30.0
_STDERR_BYTES = 4096
_ONE_FILE = "make it one file where its other files are: qemu-img convert -O qcow2 IMAGE ONE.qcow2"

# qemu-nbd takes over a listening socket as systemd hands it on: descriptor 3, and its own process id in LISTEN_PID
# (sd_listen_fds(3)). Here standard input is that socket, and standard output the reading end of a pipe that nobody
# writes to: when it closes, by close() or by our death of whatever kind, the watcher behind it kills qemu-nbd.
_LAUNCH = (
    "{ cat <&1 >/dev/null; kill -9 $$; } </dev/null 2>/dev/null & "
    'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 </dev/null >/dev/null'
)


class ForeignDisk(BaseDisk):
    """The image at ``path``, in one of FORMATS, served by a qemu-nbd that lives as long as this disk.

    ``name`` is what messages call it (default: the path); the file is not needed by that path once this is made.
    With ``writable`` it is locked as QEMU locks the image of a VM, and ``write`` changes it; any format that QEMU
    writes can then be given, qcow2 too.
    Raises InputError when QEMU cannot read the image or it needs other files, MissingError when a program is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        *,
        sector_size: int = 512,
        name: str | None = None,
        writable: bool = False,
    ) -> None:
        path = os.fspath(path)
        name = path if name is None else name
        with RawDisk(path, name=name) as file:  # judges what kind of file it is before QEMU opens it
            if format == "vmdk":
                _refuse_vmdk_descriptor(file)
            elif format == "vpc":
                _refuse_vhd_difference(file)
        node = _node(path, format)
        _refuse_other_files(node, path, name, format)
        if writable:
            node = _node(path, format, writable=True)
        self._server = _Server(node, name, writable=writable)
        super().__init__(name, format, self._server.client.size_bytes, sector_size)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return self._server.client.read(offset, length)
        except (NbdError, OSError) as error:
            raise self._server.failure(error, offset) from error

    def write(self, offset: int, content: bytes) -> None:
        """Put ``content`` at ``offset``. Raises InputError when it does not fit, OutputError when QEMU cannot."""
        if offset < 0 or offset + len(content) > self.size_bytes:
            raise InputError("a write goes past the end", subject=self.name, offset_bytes=offset)
        try:
            self._server.client.write(offset, content)
        except (NbdError, OSError) as error:
            raise OutputError(f"{self.name}: {self._server.said(error)}") from error

    def flush(self) -> None:
        """Have what was written on the disk. Raises OutputError when that fails."""
        try:
            self._server.client.flush()
        except (NbdError, OSError) as error:
            raise OutputError(f"{self.name}: {self._server.said(error)}") from error

    def extents(self) -> Iterator[Extent]:
        """Data and zeros as QEMU tells them."""
        position = 0
        while position < self.size_bytes:
            try:
                runs = list(self._server.client.allocation(position, self.size_bytes - position))
            except (NbdError, OSError) as error:
                raise self._server.failure(error, position) from error
            for length, data in runs:
                yield Extent(position, length, data)
                position += length

    def close(self) -> None:
        """End qemu-nbd."""
        self._server.close()


def _refuse_vmdk_descriptor(file: RawDisk) -> None:
    """Refuse a vmdk that is (or hands over to) a text that names other files, before QEMU opens whatever it names.

    An image with data of its own begins with KDMV or COWD; in the first, a capacity of 0 hands over to the text.
    """
    head = file.read(0, min(20, file.size_bytes))
    if head[:4] == b"COWD" or (head[:4] == b"KDMV" and any(head[12:20])):
        return
    raise InputError("only describes other files", subject=file.name, found="a vmdk descriptor", hint=_ONE_FILE)


def _refuse_vhd_difference(file: RawDisk) -> None:
    """Refuse the difference to a parent VHD (disk type 4 in its footer): QEMU would read it as if it stood alone."""
    for offset in (0, max(file.size_bytes - 512, 0)):
        footer = file.read(offset, min(64, file.size_bytes - offset))
        if footer.startswith(b"conectix") and footer[60:] == b"\0\0\0\4":
            hint = "merge it into its parent where that is"
            raise InputError(
                "is only the difference to a parent", subject=file.name, offset_bytes=offset + 60, hint=hint
            )


def _node(path: str, format: str, *, writable: bool = False) -> str:
    """The image as QEMU's options: this file and no other, this format; nothing written and nothing locked, or both."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError("QEMU cannot be told a file name that is not UTF-8", subject=path) from None
    return "json:" + json.dumps(
        {
            "driver": format,
            "read-only": not writable,
            "force-share": not writable,
            "backing": None,
            "file": {"driver": "file", "filename": str(Path(path).absolute())},
        }
    )


def _refuse_other_files(node: str, path: str, name: str, format: str) -> None:
    try:
        completed = run("qemu-img", ["info", "--output=json", node], timeout_seconds=_TIMEOUT_SECONDS)
        info: dict[str, Any] = json.loads(completed.stdout)
        extents = info.get("format-specific", {}).get("data", {}).get("extents", [])
        others = [extent["filename"] for extent in extents if extent["filename"] != str(Path(path).absolute())]
        others += [info[key] for key in ("backing-filename", "full-backing-filename") if key in info]
    except ProgramError as error:
        said = printable(error.stderr.strip().replace(node, name).replace(path, name)) or error.message
        raise InputError(f"QEMU cannot read it as {format}: {said}", subject=name) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("qemu-img describes it in a way that armvm does not understand", subject=name) from error
    if others:
        raise InputError("needs other files", subject=name, found=printable(str(others[0])), hint=_ONE_FILE)


class _Server:
    """A qemu-nbd of our own and the connection to it."""

    def __init__(self, node: str, name: str, *, writable: bool = False) -> None:
        self._name = name
        options = [] if writable else ["--read-only"]
        program = require_program("qemu-nbd")
        with ExitStack() as undo:
            self._stderr: BinaryIO = undo.enter_context(tempfile.TemporaryFile())
            listener, connection = _private_socket()
            undo.enter_context(connection)
            # With no listener left on our side, the death of qemu-nbd ends the connection: nothing waits for nobody.
            with listener:
                self._process, lifeline = _launch([program, *options, node], listener, self._stderr)
            undo.callback(self._kill)
            undo.callback(os.close, lifeline)
            try:
                self.client = NbdClient(connection, timeout_seconds=_TIMEOUT_SECONDS)
            except (NbdError, OSError) as error:
                raise self.failure(error, None) from error
            undo.callback(self.client.close)
            self._undo = undo.pop_all()

    def failure(self, error: Exception, offset: int | None) -> InputError:
        """What went wrong, in QEMU's words where it has any."""
        return InputError(f"qemu-nbd cannot read it: {self.said(error)}", subject=self._name, offset_bytes=offset)

    def said(self, error: Exception) -> str:
        """QEMU's own words, else those of ``error``."""
        self._stderr.seek(0)
        said = self._stderr.read(_STDERR_BYTES).decode(errors="replace").strip()
        return printable(said or str(error))

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Leave, end the process, and let go of everything; a second time nothing is left to do."""
        self._undo.close()


def _private_socket() -> tuple[socket.socket, socket.socket]:
    """A listening socket and our connection to it, not yet accepted; its name is gone, so nobody else connects."""
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        connection = undo.enter_context(socket.socket(socket.AF_UNIX))
        try:
            with tempfile.TemporaryDirectory(prefix="armvm-") as folder:
                listener.bind(f"{folder}/nbd")
                listener.listen(1)
                connection.connect(f"{folder}/nbd")
        except OSError as error:
            raise OutputError(f"cannot make a socket in {tempfile.gettempdir()}: {error}") from error
        undo.pop_all()
    return listener, connection


def _launch(command: list[str], listener: socket.socket, stderr: BinaryIO) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``command`` on ``listener``; the process, and the descriptor whose closing kills it."""
    watched, lifeline = os.pipe()
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _LAUNCH, "sh", *command],
            stdin=listener.fileno(),
            stdout=watched,
            stderr=stderr,
            start_new_session=True,
        )
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(watched)
    return process, lifeline
