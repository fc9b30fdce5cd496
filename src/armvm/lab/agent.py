"""Our end inside a nested host: takes tasks from the port, runs them, sends back what they say and what they leave.

Run by the host's /init as ``python3 -m armvm.lab.agent``; it is running when the host is frozen, and goes on when the
host is resumed. A task that is an ``armvm`` command runs in a copy of this process, which has armvm loaded already:
under emulation that saves seconds.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import selectors
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from armvm.lab.recipe import IMAGE_DISK
from armvm.lab.wire import ALIVE_SECONDS, MOST_FILE_BYTES, PIECE_BYTES, PORT, Frame, Reader, WireError, serialise

_ADD_ENTROPY = 0x40085203  # RNDADDENTROPY (random(4))
_DISK_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_ENTRY = "armvm.cli.main"
"""By name: what runs here is armvm's command line as a program of its own; this room does not stand on it."""
_PRELOADED = (
    *(_ENTRY, "armvm.cli.run", "armvm.cli.probe", "armvm.disk.detect", "armvm.image.contents"),
    *("armvm.machine.qemu.backend", "armvm.machine.qemu.session", "armvm.machine.console", "armvm.machine.terminal"),
    *(
        "armvm.lab.xen_domain",
        "armvm.machine.xen.session",
        "armvm.platform.trial",
        "armvm.platform.check",
        "armvm.report.json",
        "armvm.firmware.varstore",
        "ctypes",
    ),
)


def main() -> int:
    """Serve the port for ever."""
    _preload()
    port = os.open(_port(), os.O_RDWR)
    send = _sender(port)
    send("ready", {"kernel": os.uname().release, "machine": os.uname().machine})
    reader = Reader()
    while True:
        data = os.read(port, PIECE_BYTES)
        if not data:
            time.sleep(_PAUSE_SECONDS)  # nobody has the other end open: there is no event for that
            continue
        for frame in reader.feed(data):
            if frame.kind == "end":
                return 0
            if frame.kind == "task":
                _serve(json.loads(frame.body), send)


Send = Callable[[str, Any], None]


def _sender(port: int) -> Send:
    def send(kind: str, body: Any = b"") -> None:
        data = memoryview(serialise(Frame(kind, body if isinstance(body, bytes) else json.dumps(body).encode())))
        while data:
            data = data[os.write(port, data) :]

    return send


def _serve(task: dict[str, Any], send: Send) -> None:
    """Run one task to its end; whatever goes wrong is said in ``done``."""
    result: dict[str, Any]
    try:
        _awake(task)
        if task.get("image") is not None:
            _await_image(int(task["image"]))
        send("started", {})
        result = {"code": _run([str(word) for word in task["command"]], float(task["timeout_seconds"]), send)}
        for name, path in task.get("collect", {}).items():
            _collect(str(name), Path(path), send)
    except (OSError, ValueError, KeyError, TypeError) as error:
        result = {"code": None, "error": f"{type(error).__name__}: {error}"}
    send("done", result)


def _awake(task: dict[str, Any]) -> None:
    """The time, and randomness, which stood still while the host was frozen: no two resumptions are to share them."""
    if "clock" in task:
        time.clock_settime(time.CLOCK_REALTIME, float(task["clock"]))
    if "entropy" in task:
        entropy = bytes.fromhex(task["entropy"])
        with Path("/dev/random").open("wb", buffering=0) as device:
            fcntl.ioctl(device, _ADD_ENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)


def _port() -> str:
    """The device of the port by its name (Linux, Documentation/ABI/testing/sysfs-class-virtio…)."""
    for folder in Path("/sys/class/virtio-ports").iterdir():
        if (folder / "name").read_text(encoding="ascii", errors="replace").strip() == PORT:
            return f"/dev/{folder.name}"
    raise SystemExit(f"armvm lab: no port {PORT}")


def _await_image(target: int) -> None:
    """Wait for the disk at SCSI target ``target``, and give it its name."""
    deadline = time.monotonic() + _DISK_SECONDS
    while time.monotonic() < deadline:
        for device in Path("/sys/block").glob("sd*"):
            if (device / "device").resolve().name.split(":")[2] == str(target) and Path("/dev", device.name).exists():
                Path(IMAGE_DISK).unlink(missing_ok=True)
                Path(IMAGE_DISK).symlink_to(f"/dev/{device.name}")
                return
        time.sleep(_PAUSE_SECONDS)
    raise OSError(f"the image did not come up as a SCSI disk within {_DISK_SECONDS:g} s")


def _run(command: Sequence[str], timeout_seconds: float, send: Send) -> int:
    """Run it; its exit code. Past the time it is killed with all that it started: 124, as timeout(1) says."""
    said, saying = os.pipe()
    noted, noting = os.pipe()
    child = os.fork()
    if not child:
        _become(command, saying, noting)
    os.close(saying)
    os.close(noting)
    deadline = time.monotonic() + timeout_seconds
    killed = _relay(said, noted, deadline, send)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL if killed else signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return 124 if killed else os.waitstatus_to_exitcode(status)


def _relay(said: int, noted: int, deadline: float, send: Send) -> bool:
    """Send on what the command says until it is over; whether its time was over first."""
    rest = b""
    with selectors.DefaultSelector() as selector, os.fdopen(said, "rb", 0) as out, os.fdopen(noted, "rb", 0) as err:
        selector.register(out, selectors.EVENT_READ)
        selector.register(err, selectors.EVENT_READ)
        while selector.get_map():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return True
            ready = selector.select(min(remaining, ALIVE_SECONDS))
            if not ready:
                send("alive", {})
            for key, _ in ready:
                data = os.read(key.fd, PIECE_BYTES)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fd == out.fileno():
                    send("said", data)
                else:
                    *lines, rest = (rest + data).split(b"\n")
                    rest = rest[-PIECE_BYTES:]
                    for line in lines:
                        send("note", line)
    if rest:
        send("note", rest)
    return False


def _become(command: Sequence[str], saying: int, noting: int) -> None:
    """In the new process: be the command. Never returns."""
    code = 70
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (saying, 1), (noting, 2)):
            os.dup2(source, target)
        os.closerange(3, 256)
        module, arguments = _inside(command)
        if module is None:
            os.execvp(command[0], list(command))  # noqa: S606 - a command of ours, no shell
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        code = importlib.import_module(module).main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:  # noqa: BLE001 - the last net before the process is gone
        os.write(2, f"armvm lab: {command[0]}: {type(error).__name__}: {error}\n".encode())
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def _inside(command: Sequence[str]) -> tuple[str | None, list[str]]:
    """The module of armvm that ``command`` runs, and the arguments; no module for any other program."""
    if command[0] == "armvm":
        return _ENTRY, list(command[1:])
    if tuple(command[:2]) == ("python3", "-m") and len(command) > 2 and command[2].startswith("armvm."):
        return command[2], list(command[3:])
    return None, list(command)


def _collect(name: str, path: Path, send: Send) -> None:
    """Send a file back in pieces; one that is not there is no error here: its absence is seen at the other end."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_FILE_BYTES + 1)
    except FileNotFoundError:
        return
    if len(content) > MOST_FILE_BYTES:
        raise OSError(f"{path} is larger than {MOST_FILE_BYTES} bytes")
    for start in range(0, max(len(content), 1), PIECE_BYTES):
        head = json.dumps({"name": name, "offset": start, "size": len(content)}).encode()
        send("file", head + b"\n" + content[start : start + PIECE_BYTES])


def _preload() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, WireError) as error:
        sys.exit(f"armvm lab: the agent fails: {error}")
