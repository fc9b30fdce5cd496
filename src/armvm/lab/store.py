"""Where nested hosts are kept, and who holds what while they are made, used and removed.

$ARMVM_HOME or $XDG_DATA_HOME/armvm
└── lab/HOST/
    ├── state            the frozen host, QEMU's migration stream: never changed, only replaced
    ├── manifest.json    what it was made of; written last, so that a state without it does not count
    ├── in-use           held (flock, shared) by every armvm and QEMU that runs the host
    └── making           held by the one that makes it

$XDG_CACHE_HOME/armvm/lab
├── making               held by the one that fetches packages
└── packages-KEY/        see ``packages``

Nothing lives between commands: a host is a file. What a killed command leaves behind is a lock that nobody holds, and
a scratch folder that the next one removes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from armvm.atomic import write_file
from armvm.errors import BusyError, OutputError
from armvm.home import cache, home
from armvm.lab.recipe import HostKind

SCRATCH = ".making-"
_MOST_MANIFEST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a frozen host was made of. ``key`` stands for all of it; ``created`` is seconds since 1970."""

    key: str
    kernel: str
    emulator: str
    """What QEMU's program says of its version: another QEMU may not take the state."""
    memory_bytes: int
    state_bytes: int
    created: int
    made_in_seconds: float | int


def cache_folder() -> Path:
    """Where the packages of nested hosts are kept."""
    return cache() / "lab"


def host_folder(kind: HostKind) -> Path:
    """Where the frozen host is kept."""
    return home() / "lab" / kind.value


def read_frozen(kind: HostKind) -> Frozen | None:
    """The frozen host, when there is one that is whole; a damaged one counts as none."""
    folder = host_folder(kind)
    try:
        with (folder / "manifest.json").open("rb") as file:
            value = json.loads(file.read(_MOST_MANIFEST_BYTES))
        frozen = Frozen(**value)
        whole = frozen.state_bytes == (folder / "state").stat().st_size
        sound = all(type(value[field.name]).__name__ in field.type for field in fields(Frozen))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return frozen if whole and sound else None


def write_frozen(kind: HostKind, frozen: Frozen) -> None:
    """Say that the state beside it is whole. Raises OutputError."""
    content = json.dumps(asdict(frozen), indent=2).encode() + b"\n"
    write_file(host_folder(kind) / "manifest.json", content, mode=0o600)


def make_folder(folder: Path) -> Path:
    """``folder``, made for this user alone where it is not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder


@contextmanager
def holding(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[int]:
    """Hold the lock file ``path``, which is made where it is not there; yields its descriptor.

    Raises BusyError, without ``wait``, when others hold it; OutputError when it cannot be made.
    """
    make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OutputError(f"cannot open {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(f"another armvm is using {path.parent}") from None
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder in ``folder``, whose ``making`` lock the caller holds; gone afterwards, with what killed ones left."""
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = make_folder(folder / f"{SCRATCH}{os.getpid()}")
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_host(kind: HostKind) -> int:
    """Remove the frozen host; how many bytes that frees. Raises BusyError while somebody uses or makes it."""
    folder = host_folder(kind)
    if not folder.is_dir():
        return 0
    with holding(folder / "making", wait=False), holding(folder / "in-use", wait=False):
        freed = _size(folder)
        (folder / "manifest.json").unlink(missing_ok=True)
        (folder / "state").unlink(missing_ok=True)
        for left in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
    # The lock files stay: whoever waits for one must not come to hold a file that has no name any more.
    return freed


def remove_cache() -> int:
    """Remove the packages of all hosts; how many bytes that frees. Raises BusyError while somebody fetches some."""
    folder = cache_folder()
    if not folder.is_dir():
        return 0
    with holding(folder / "making", wait=False):
        freed = _size(folder)
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif left.name != "making":
                with suppress(OSError):
                    left.unlink()
    return freed


def cache_bytes() -> int:
    """How much the cache holds."""
    return _size(cache_folder())


def _size(folder: Path) -> int:
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(top, name).lstat().st_size
    return total


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
