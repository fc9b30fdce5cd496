"""An initial RAM disk as the kernel unpacks it: one archive behind another, each packed in its own way, as one tree.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst, init/initramfs.c (``unpack_to_rootfs``).
Contents are kept of small files only; others are unpacked again when somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from armvm.disk.decompress import Compression, Member, recognise
from armvm.disk.files import BaseFileSystem, FileEntry, FileKind, join
from armvm.disk.storage import BaseDisk, Disk, MemoryDisk, Slice
from armvm.errors import ArmvmError, InputError, MissingError
from armvm.guest.cpio import MAGICS, ByteStream, CpioEntry, read_archives
from armvm.printable import printable
from armvm.spec.verdict import Evidence, Problem
from armvm.units import KIB, MIB

MOST_UNPACKED_BYTES = 768 * MIB
MOST_ENTRIES = 100_000
_MOST_SEGMENTS = 64
_MOST_DEPTH = 64
_MOST_PROBLEMS = 20
_MOST_KEPT_BYTES = 16 * MIB
_MOST_OPENED_BYTES = 64 * MIB
_SMALL_BYTES = 32 * KIB
_PIECE_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of archives that are packed alike: where it begins in its file, and with what it is compressed."""

    disk: Disk
    offset: int
    compression: Compression | None
    entries: int = 0

    def stream(self, *, most_bytes: int) -> tuple[ByteStream, Member | None]:
        """Its unpacked bytes, from the beginning. The member knows where it ends once the stream has ended."""
        if self.compression is None:
            pieces: Iterator[bytes] = _raw_pieces(self.disk, self.offset)
            return ByteStream(pieces, name=self.disk.name, most_bytes=most_bytes), None
        member = Member(self.disk, self.offset, self.compression)
        return ByteStream(iter(member), name=self.disk.name, most_bytes=most_bytes), member


@dataclass(frozen=True, slots=True)
class _Content:
    """Where a file's bytes are: at ``offset`` of what a segment unpacks to, or kept."""

    segment: Segment
    offset: int
    kept: bytes | None


def keep_small(path: str, size_bytes: int) -> bool:
    """What is kept unless the caller says otherwise: files of at most 32 KiB that are no modules."""
    return size_bytes <= _SMALL_BYTES and ".ko" not in path


class Initramfs(BaseFileSystem):
    """The tree that the kernel finds at boot. ``problems`` are what is wrong with it; ``segments`` what it came in.

    It is not ``complete`` when a part could not be read: then what is not in it may still be there.
    """

    def __init__(self, name: str = "initial RAM disk") -> None:
        super().__init__(name, "cpio")
        self.segments: tuple[Segment, ...] = ()
        self.problems: tuple[Problem, ...] = ()
        self.complete = True
        self.unpacked_bytes = 0
        self._folders: dict[str, dict[str, FileEntry]] = {"/": {}}
        self._linked: dict[tuple[int, int, int], list[str]] = {}
        self._kept_bytes = 0
        self._count = 0

    # FileSystem

    def _root(self) -> FileEntry:
        return FileEntry("/", FileKind.FOLDER)

    def _list(self, folder: FileEntry) -> Iterable[FileEntry]:
        return self._folders[folder.path].values()

    def _child(self, folder: FileEntry, name: str) -> FileEntry | None:
        return self._folders[folder.path].get(name)

    def _open(self, entry: FileEntry) -> Disk:
        content = entry.node
        if not isinstance(content, _Content):
            return MemoryDisk(b"", name=self._subject(entry.path))
        if content.kept is not None:
            return MemoryDisk(content.kept, name=self._subject(entry.path))
        segment = content.segment
        if segment.compression is None:
            return Slice(segment.disk, segment.offset + content.offset, entry.size_bytes, name=printable(entry.path))
        return _PackedFile(segment, content.offset, entry.size_bytes, name=self._subject(entry.path))

    # Reading

    def read_from(self, disk: Disk, keep: Callable[[str, int], bool]) -> None:
        """Unpack the archives in ``disk`` over what is already there."""
        offset: int | None = 0
        while offset is not None:
            offset = self._next_segment(disk, offset, keep)

    def _next_segment(self, disk: Disk, offset: int, keep: Callable[[str, int], bool]) -> int | None:
        """Read the segment at ``offset`` or behind the zeros there; the offset behind it, or None at the end."""
        try:
            segment = self._segment_at(disk, offset)
            return None if segment is None else self._segment(segment, keep)
        except (InputError, MissingError) as error:
            self.complete = False
            self._problem("initrd-unreadable", f"a part of the initial RAM disk cannot be read: {_said(error)}", disk)
            return None

    def _segment_at(self, disk: Disk, offset: int) -> Segment | None:
        """What begins at ``offset`` or behind the zeros there; None at the end."""
        offset = _skip_zeros(disk, offset)
        if offset >= disk.size_bytes:
            return None
        head = disk.read(offset, min(9, disk.size_bytes - offset))
        plain = head[:6] in MAGICS and not offset % 4
        compression = None if plain else recognise(head)
        if compression is None and not plain:
            what = "junk" if offset else "no cpio archive, or of a compression that Linux does not have"
            raise InputError(what, subject=disk.name, offset_bytes=offset, found=printable(repr(head)[2:-1]))
        if len(self.segments) >= _MOST_SEGMENTS:
            raise InputError("has too many parts", subject=disk.name, expected=f"at most {_MOST_SEGMENTS}")
        return Segment(disk, offset, compression)

    def _segment(self, segment: Segment, keep: Callable[[str, int], bool]) -> int:
        stream, member = segment.stream(most_bytes=MOST_UNPACKED_BYTES - self.unpacked_bytes)
        count = self._count
        self._linked = {}
        try:
            for entry in read_archives(stream, self._wanted(keep), name=segment.disk.name):
                self._count += 1
                if self._count > MOST_ENTRIES:
                    raise InputError("has too many files", subject=self.name, expected=f"at most {MOST_ENTRIES}")
                self._add(entry, segment)
        finally:
            self.unpacked_bytes += stream.position
            self.segments += (Segment(segment.disk, segment.offset, segment.compression, self._count - count),)
        if member is None:
            return segment.offset + stream.position
        if member.end is None:  # something that is no archive is left in it
            raise InputError(
                f"junk in {member.compression.value} data",
                subject=segment.disk.name,
                offset_bytes=segment.offset,
                found=f"at {stream.position:#x} of what it unpacks to",
            )
        return member.end

    def _wanted(self, keep: Callable[[str, int], bool]) -> Callable[[str, int], bool]:
        def wanted(path: str, size_bytes: int) -> bool:
            if size_bytes > _MOST_KEPT_BYTES - self._kept_bytes or not keep(path, size_bytes):
                return False
            self._kept_bytes += size_bytes
            return True

        return wanted

    def _add(self, entry: CpioEntry, segment: Segment) -> None:
        path = join(entry.name)
        if path == "/":
            return
        if ("/.." in path and ".." in path.split("/")) or path.count("/") > _MOST_DEPTH:
            self._problem("initrd-path", f"a path that leads out, or too deep: {printable(path[:200])}", segment.disk)
            return
        above, _, name = path.rpartition("/")
        folder = self._folder(above or "/")
        if folder is None:
            self._problem(
                "initrd-no-folder",
                f"{printable(path[:200])} has no folder to stand in, so the kernel leaves it out",
                segment.disk,
            )
            return
        names = self._folders[folder]
        path = join(folder, name)
        before = names.get(name)
        if before is not None and before.kind is FileKind.FOLDER:
            if entry.is_folder or self._folders[path]:
                return  # the kernel cannot put anything in the place of a folder with something in it
            del self._folders[path]
        names[name] = self._entry(entry, path, segment)
        if entry.is_folder:
            self._folders[path] = {}
        if entry.link_id is not None:
            self._join_names(entry.link_id, names[name])

    def _entry(self, entry: CpioEntry, path: str, segment: Segment) -> FileEntry:
        mode = entry.mode & 0o7777
        if entry.is_folder:
            return FileEntry(path, FileKind.FOLDER, mode=mode)
        if entry.is_link:
            target = (entry.content or b"").split(b"\0", 1)[0].decode("utf-8", "replace")
            return FileEntry(path, FileKind.LINK, entry.size_bytes, target, mode)
        if not entry.is_file:
            return FileEntry(path, FileKind.OTHER, mode=mode)
        content = _Content(segment, entry.data_offset, entry.content)
        return FileEntry(path, FileKind.FILE, entry.size_bytes, mode=mode, node=content)

    def _join_names(self, link_id: tuple[int, int, int], entry: FileEntry) -> None:
        """A file with several names has its content at one of them only, mostly the last."""
        paths = self._linked.setdefault(link_id, [])
        paths.append(entry.path)
        full = entry
        if not entry.size_bytes:
            known = (self.lookup(path, follow=False) for path in paths)
            full = next((other for other in known if other is not None and other.size_bytes), entry)
        if not full.size_bytes:
            return
        for path in paths:
            folder, _, name = path.rpartition("/")
            here = self._folders.get(folder or "/", {}).get(name)
            if here is not None and here.kind is FileKind.FILE and not here.size_bytes:
                self._folders[folder or "/"][name] = FileEntry(
                    path, FileKind.FILE, full.size_bytes, mode=full.mode, node=full.node
                )

    def _folder(self, path: str) -> str | None:
        """The folder that ``path`` leads to, perhaps through links."""
        if path in self._folders:
            return path
        try:
            found = self.lookup(path)
        except InputError:
            return None
        return found.path if found is not None and found.kind is FileKind.FOLDER else None

    def _problem(self, code: str, message: str, disk: Disk) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            serious = code == "initrd-unreadable"
            self.problems += (Problem(code, message, Evidence(printable(disk.name), message), serious=serious),)


class _PackedFile(BaseDisk):
    """A file inside a compressed segment: unpacked when it is first read."""

    def __init__(self, segment: Segment, offset: int, size_bytes: int, *, name: str) -> None:
        super().__init__(name, "raw", size_bytes)
        self._segment = segment
        self._offset = offset
        self._content: bytes | None = None

    def _read(self, offset: int, length: int) -> bytes:
        if self._content is None:
            if self.size_bytes > _MOST_OPENED_BYTES:
                raise InputError(
                    "is too large to be unpacked", subject=self.name, expected=f"at most {_MOST_OPENED_BYTES} bytes"
                )
            stream, _ = self._segment.stream(most_bytes=MOST_UNPACKED_BYTES)
            stream.skip(self._offset)
            self._content = stream.take(self.size_bytes)
        if len(self._content) < self.size_bytes:
            raise InputError("is cut off", subject=self.name)
        return self._content[offset : offset + length]


def read_initramfs(
    parts: Sequence[Disk], *, keep: Callable[[str, int], bool] = keep_small, name: str = "initial RAM disk"
) -> Initramfs:
    """The tree that ``parts``, one behind another, unpack to. ``keep`` says which files' contents to keep at hand.

    It does not raise: what cannot be read is among the ``problems``, what came before it is in the tree.
    """
    initramfs = Initramfs(name)
    for part in parts:
        initramfs.read_from(part, keep)
    return initramfs


def _said(error: ArmvmError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _raw_pieces(disk: Disk, offset: int) -> Iterator[bytes]:
    while offset < disk.size_bytes:
        piece = disk.read(offset, min(_PIECE_BYTES, disk.size_bytes - offset))
        offset += len(piece)
        yield piece


def _skip_zeros(disk: Disk, offset: int) -> int:
    while offset < disk.size_bytes:
        piece = disk.read(offset, min(64 * KIB, disk.size_bytes - offset))
        rest = piece.lstrip(b"\0")
        if rest:
            return offset + len(piece) - len(rest)
        offset += len(piece)
    return offset
