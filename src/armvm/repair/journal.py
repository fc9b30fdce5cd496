"""The journal of a repair in place: what each place held and is to hold, on the disk before the image is touched.

A file beside the image, ``IMAGE.armvm-repair``: a header, the changes, and a mark that says that it is whole. Without
the mark the image is untouched; with it, the image can be brought to either of its two states, whatever happened since.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from armvm.atomic import sync_folder
from armvm.disk.storage import Disk
from armvm.disk.writable import ImageWriter, open_writer
from armvm.errors import BusyError, InputError, OutputError
from armvm.home import home
from armvm.units import KIB, MIB

SUFFIX = ".armvm-repair"
VERSION = 1
_MAGIC = b"armvm repair journal\n"
_COMMIT = b"COMMITTED\n"
_HEAD = struct.Struct("<21sII")
_RECORD = struct.Struct("<QI")
_END_OF_RECORDS = (1 << 64) - 1
_MOST_HEADER_BYTES = 64 * KIB
_MOST_CHANGE_BYTES = 4 * MIB
_COMPARED_AT_ONCE = 4 * KIB

Change = tuple[int, bytes, bytes]
Opener = Callable[[Path, str], ImageWriter]


@dataclass(frozen=True, slots=True)
class JournalHeader:
    """Which image a journal belongs to. ``format`` is its container, ``size_bytes`` the disk's size as a VM sees it."""

    image: str
    format: str
    size_bytes: int


def journal_path(image: Path) -> Path:
    """Where the journal of ``image`` is: beside the file itself, for a block device among what armvm keeps."""
    real = Path(os.path.realpath(image))
    with suppress(OSError):
        if stat.S_ISBLK(real.stat().st_mode):  # /dev is gone with the next boot
            return home() / "repairs" / (str(real).strip("/").replace("/", "-") + SUFFIX)
    return real.with_name(real.name + SUFFIX)


def write_in_place(
    image: Path, format: str, size_bytes: int, changes: Iterable[Change], *, opener: Opener = open_writer
) -> None:
    """Write ``changes`` (offset, old bytes, new bytes) into ``image``, whole, or to be finished or undone later.

    Raises BusyError when a journal exists or somebody has the image open, InputError when the image does not hold the
    old bytes (it changed since it was read), OutputError when something cannot be written; as long as no journal is
    left behind, the image is then untouched.
    """
    path = journal_path(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    with opener(image, format) as writer, _new(path) as file:
        try:
            _record(file, JournalHeader(str(image), format, size_bytes), changes)
            _require_fit(writer, size_bytes, _records(file, path), allow_new=False)
            file.seek(0, os.SEEK_END)
            file.write(_COMMIT)
            file.flush()
            os.fsync(file.fileno())
            sync_folder(path.parent)
        except OSError as error:
            path.unlink()
            raise OutputError(f"cannot write the journal {path}: {error.strerror}") from error
        except BaseException:
            path.unlink()
            raise
        _apply(writer, ((offset, new) for offset, _, new in _records(file, path)), path)
        _remove(path)


def resume(image: Path, *, opener: Opener = open_writer) -> bool:
    """Finish an interrupted repair. False when its journal was not whole: the image was never touched.

    Raises InputError when there is no journal, or it does not fit the image, which then stays as it is.
    """
    return _settle(image, opener, forward=True)


def undo(image: Path, *, opener: Opener = open_writer) -> bool:
    """Put back what stood in the image before an interrupted repair; as ``resume`` otherwise."""
    return _settle(image, opener, forward=False)


def left_behind(image: Path) -> bool:
    """Whether an interrupted repair of ``image`` waits to be finished or undone.

    A journal that is not whole, and that nobody is writing, is removed: the image was never touched.
    Raises BusyError while another process repairs the image.
    """
    path = journal_path(image)
    if not path.exists():
        return False
    with _existing(path) as file:
        if _is_committed(file, path):
            return True
        _remove(path)
        return False


def _settle(image: Path, opener: Opener, *, forward: bool) -> bool:
    path = journal_path(image)
    with _existing(path) as file:
        if not _is_committed(file, path):
            _remove(path)
            return False
        header = _header(file, path)
        with opener(image, header.format) as writer:
            _require_fit(writer, header.size_bytes, _records(file, path), allow_new=True)
            _apply(writer, ((offset, new if forward else old) for offset, old, new in _records(file, path)), path)
        _remove(path)
    return True


def _apply(writer: ImageWriter, contents: Iterable[tuple[int, bytes]], path: Path) -> None:
    try:
        for offset, content in contents:
            writer.write(offset, content)
        writer.flush()
    except OutputError as error:
        hint = f"the journal {path} is kept: go on with --resume, or take everything back with --undo"
        raise OutputError(error.message, hint=hint) from error


def _remove(path: Path) -> None:
    try:
        path.unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}") from error


def _require_fit(disk: Disk, size_bytes: int, records: Iterable[Change], *, allow_new: bool) -> None:
    """Refuse an image that is not the journal's: nothing may be written over what neither side knows."""
    if disk.size_bytes != size_bytes:
        raise InputError(
            "is not the image that the repair belongs to",
            subject=disk.name,
            found=f"a disk of {disk.size_bytes} bytes",
            expected=str(size_bytes),
        )
    for offset, old, new in records:
        here = disk.read(offset, len(old))
        stray = _stray(here, old, new if allow_new else old)
        if stray is not None:
            raise InputError(
                "has changed since the repair was planned; nothing was written",
                subject=disk.name,
                offset_bytes=offset + stray,
                found=f"{here[stray]:02x}",
                expected=f"{old[stray]:02x} or {new[stray]:02x}" if allow_new else f"{old[stray]:02x}",
            )


def _stray(here: bytes, old: bytes, new: bytes) -> int | None:
    """The first byte that is neither the old nor the new one. A write that was cut off leaves a mixture of both."""
    if here in (old, new):
        return None
    for start in range(0, len(here), _COMPARED_AT_ONCE):
        stop = start + _COMPARED_AT_ONCE
        piece = here[start:stop]
        if piece in (old[start:stop], new[start:stop]):
            continue
        for index, (byte, was, becomes) in enumerate(zip(piece, old[start:stop], new[start:stop], strict=True)):
            if byte not in (was, becomes):
                return start + index
    return None


# The file


@contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """A new journal, locked; its name is free, or somebody else is at work."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise BusyError(
            f"a repair of this image is under way or was interrupted: {path}",
            hint="finish it with --resume, or take it back with --undo",
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write the journal {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "r+b") as file:
        _lock(file, path)
        yield file


@contextmanager
def _existing(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        raise InputError("there is no interrupted repair", subject=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", subject=str(path)) from error
    with file:
        _lock(file, path)
        if not os.fstat(file.fileno()).st_nlink:
            raise BusyError("another process has just ended this repair")
        yield file


def _lock(file: BinaryIO, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BusyError(f"another process is repairing this image ({path} is locked)") from error


def _record(file: BinaryIO, header: JournalHeader, changes: Iterable[Change]) -> None:
    """Everything but the mark: header, changes, and a digest over all of it."""
    digest = hashlib.sha256()

    def put(content: bytes) -> None:
        digest.update(content)
        file.write(content)

    fields = {"image": header.image, "format": header.format, "size_bytes": header.size_bytes}
    text = json.dumps(fields).encode("ascii")
    put(_HEAD.pack(_MAGIC, VERSION, len(text)) + text)
    for offset, old, new in changes:
        put(_RECORD.pack(offset, len(old)) + old + new)
    put(_RECORD.pack(_END_OF_RECORDS, 0))
    file.write(digest.digest())
    file.flush()
    os.fsync(file.fileno())


def _is_committed(file: BinaryIO, path: Path) -> bool:
    """Whether the mark stands at the end. Raises InputError when it does and what is before it is not what was written.

    A file without even the magic is only taken for a journal cut short when it is empty or a part of one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(len(_MAGIC))
    if head != _MAGIC[: len(head)]:
        raise InputError("is no repair journal", subject=str(path), offset_bytes=0)
    file.seek(max(size - len(_COMMIT), 0))
    if file.read() != _COMMIT:
        return False
    digest = hashlib.sha256()
    file.seek(0)
    left = size - len(_COMMIT) - digest.digest_size
    while left > 0:
        piece = file.read(min(left, MIB))
        digest.update(piece)
        left -= len(piece)
    if file.read(digest.digest_size) != digest.digest():
        raise InputError("the journal is damaged; nothing was written", subject=str(path))
    return True


def _header(file: BinaryIO, path: Path) -> JournalHeader:
    file.seek(0)
    try:
        _, version, length = _HEAD.unpack(file.read(_HEAD.size))
        if version != VERSION:
            raise InputError(
                "the journal was written by another version",
                subject=str(path),
                found=str(version),
                expected=str(VERSION),
            )
        fields = json.loads(file.read(min(length, _MOST_HEADER_BYTES)))
        return JournalHeader(str(fields["image"]), str(fields["format"]), int(fields["size_bytes"]))
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise InputError("the journal's header cannot be read", subject=str(path), offset_bytes=0) from error


def _records(file: BinaryIO, path: Path) -> Iterator[Change]:
    """The changes that the journal holds."""
    file.seek(0)
    try:
        _, _, length = _HEAD.unpack(file.read(_HEAD.size))
        position = _HEAD.size + length
        while True:
            file.seek(position)
            offset, size = _RECORD.unpack(file.read(_RECORD.size))
            if offset == _END_OF_RECORDS:
                return
            if size > _MOST_CHANGE_BYTES:
                raise InputError("a change in the journal is too long", subject=str(path), offset_bytes=position)
            old, new = file.read(size), file.read(size)
            position += _RECORD.size + 2 * size
            if len(new) != size:
                raise InputError("the journal is cut short", subject=str(path), offset_bytes=position)
            yield offset, old, new
    except struct.error as error:
        raise InputError("the journal is cut short", subject=str(path)) from error
