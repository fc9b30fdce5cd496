"""A FAT file system judged whole, as fsck does, in bounded time: every chain of clusters, every directory."""

from __future__ import annotations

import re
from array import array
from collections.abc import Generator, Iterable, Iterator

from armvm.disk.fat import FatVolume
from armvm.disk.fat_directory import (
    DOT_NAMES,
    SLOT_BYTES,
    FatEntry,
    Listing,
    fold_name,
    parse_directory,
    parse_slot,
)
from armvm.disk.fat_names import name_fault
from armvm.disk.fat_table import CACHED_PIECES, PIECE_ENTRIES, Chain, ChainError, ChainFault
from armvm.disk.fat_verify_boot import check_boot_area, check_tables, problem, unreadable
from armvm.errors import InputError
from armvm.printable import printable
from armvm.spec.verdict import Problem

MOST_CLUSTERS = CACHED_PIECES * PIECE_ENTRIES
MOST_ENTRIES = 100_000
MOST_DEPTH = 64
"""What is judged at most; a larger file system gets the problem ``too-large-to-verify``, which is not serious."""

_MOST_STEPS = 1_000_000
"""Slots and pieces of files looked at, a second's work."""
_MOST_OF_A_KIND = 16
_UNKNOWN_COUNT = 0xFFFFFFFF
_LEGAL = rb"[^\x00-\x20\"*+,./:;<=>?\[\\\]|\x7fa-z]"
_SHORT_BASE = re.compile(rb"(?:\x05|" + _LEGAL + rb")" + _LEGAL + rb"* *")
_SHORT_EXTENSION = re.compile(_LEGAL + rb"* *")


def verify(volume: FatVolume, *, first_lba: int | None = None) -> tuple[Problem, ...]:
    """Everything wrong with a file system; of each kind of problem the first few, and how many more there are.

    ``first_lba`` is the first sector of its partition, when it is in one. Never raises InputError.
    """
    return tuple(_bounded(_judge(volume, first_lba)))


def _judge(volume: FatVolume, first_lba: int | None) -> Iterator[Problem]:
    try:
        yield from check_boot_area(volume, first_lba)
        if volume.cluster_count > MOST_CLUSTERS:
            yield _too_large(f"{volume.cluster_count} clusters", MOST_CLUSTERS)
            return
        yield from check_tables(volume)
        yield from _TreeJudge(volume).judge()
    except InputError as error:
        yield unreadable(error)


def _bounded(problems: Iterable[Problem]) -> Iterator[Problem]:
    counts: dict[str, int] = {}
    serious: dict[str, bool] = {}
    for found in problems:
        counts[found.code] = counts.get(found.code, 0) + 1
        serious[found.code] = serious.get(found.code, False) or found.serious
        if counts[found.code] <= _MOST_OF_A_KIND:
            yield found
    for code, count in counts.items():
        if count > _MOST_OF_A_KIND:
            more = f"{count - _MOST_OF_A_KIND} more"
            message = "There are more problems of this kind."
            yield problem(code, message, where="file system", found=more, serious=serious[code])


def _too_large(found: str, most: int) -> Problem:
    return problem(
        "too-large-to-verify",
        "The file system is too large to be judged whole.",
        where="file system",
        found=found,
        expected=f"at most {most}",
        serious=False,
    )


class _TooLargeError(Exception):
    """Judging on would take too long."""


class _TreeJudge:
    """Walks the directories and keeps which file or folder owns which cluster.

    Files and folders go by numbers, the root by 0. Their paths are put together only where there is something to say:
    a hostile tree can have paths far longer than all that is on the disk.
    """

    def __init__(self, volume: FatVolume) -> None:
        self._volume = volume
        self._table = volume.table
        self._owners = array("I", bytes(4 * self._table.entry_count))  # one more than the number, 0 for nobody
        self._nodes: list[tuple[int, str]] = [(0, "")]
        self._claimed = 0
        self._steps = 0

    def judge(self) -> Iterator[Problem]:
        """Everything wrong with directories and chains, then with what no file owns."""
        root = self._volume.root
        pending: list[tuple[int, FatEntry, int, int]] = [(0, root, 0, 0)]
        try:
            while pending:
                node, folder, parent_cluster, depth = pending.pop()
                content = yield from self._folder_content(folder, node)
                if content is None:
                    continue
                self._spend(len(content) // SLOT_BYTES)
                listing = parse_directory(content, wide_clusters=self._volume.wide_clusters)
                if folder is not root:
                    yield from self._check_dots(content, node, folder.first_cluster, parent_cluster)
                yield from self._check_names(listing, node)
                for entry in listing.entries:
                    child = self._add(node, entry.name, depth)
                    if not entry.is_directory:
                        yield from self._check_file(entry, child)
                        continue
                    pending.append((child, entry, 0 if folder is root else folder.first_cluster, depth + 1))
                    yield from self._check_folder_size(entry, child)
        except _TooLargeError:
            yield _too_large("more files and folders, more pieces of them, or deeper folders", MOST_ENTRIES)
            return
        yield from self._check_free()

    def _add(self, parent: int, name: str, depth: int) -> int:
        if len(self._nodes) > MOST_ENTRIES or depth > MOST_DEPTH:
            raise _TooLargeError
        self._nodes.append((parent, name))
        return len(self._nodes) - 1

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise _TooLargeError

    def _where(self, node: int) -> str:
        parts: list[str] = []
        while node:
            node, name = self._nodes[node]
            parts.append(printable(name))
        return "/" + "/".join(reversed(parts)) if parts else "root directory"

    def _folder_content(self, folder: FatEntry, node: int) -> Generator[Problem, None, bytes | None]:
        """The slots of a folder whose clusters are its own."""
        if node or self._volume.wide_clusters:
            chain = yield from self._claim(folder.first_cluster, node)
            if chain is None:
                return None
        try:
            return self._volume.directory_content(folder)
        except InputError as error:
            yield unreadable(error)
            return None

    def _check_file(self, entry: FatEntry, node: int) -> Iterator[Problem]:
        if entry.size_bytes == entry.first_cluster == 0:
            return
        chain = yield from self._claim(entry.first_cluster, node)
        needed = -(-entry.size_bytes // self._volume.cluster_bytes)
        if chain is not None and chain.length != needed:
            yield problem(
                "chain-short" if chain.length < needed else "chain-long",
                "The cluster chain of a file does not fit its size.",
                where=self._where(node),
                found=f"{chain.length} clusters",
                expected=f"{needed} for {entry.size_bytes} bytes",
            )

    def _claim(self, first: int, node: int) -> Generator[Problem, None, Chain | None]:
        """Give a whole chain to ``node``; None when it is broken or leads into what another one owns.

        Goes run by run and stops at the first that is taken, so that no cluster is looked at twice.
        """
        chain = Chain(self._table, first, self._nodes[node][1])
        while not chain.ended:
            self._spend(1)
            known = chain.length
            try:
                chain.follow(known + 1)
            except ChainError as error:
                if error.fault is ChainFault.RUNS:
                    raise _TooLargeError from error
                message, where = "A cluster chain is broken.", self._where(node)
                yield problem(error.fault.value, message, where=where, found=error.what)
                return None
            end = sum(chain.runs[-1])
            start = end - (chain.length - known)
            taken = self._owners[start:end]
            if taken.tobytes().strip(b"\0"):
                yield self._taken(node, next((start + i, owner - 1) for i, owner in enumerate(taken) if owner))
                return None
            self._owners[start:end] = array("I", [node + 1]) * (end - start)
            self._claimed += end - start
        return chain

    def _taken(self, node: int, place: tuple[int, int]) -> Problem:
        cluster, owner = place
        where = self._where(node)
        if owner == node:
            message, found = "A cluster chain runs in a loop.", f"cluster {cluster} for the second time"
            return problem(ChainFault.LOOP.value, message, where=where, found=found)
        found = f"cluster {cluster}, owned by {self._where(owner)}"
        return problem("cross-link", "Two chains share a cluster.", where=where, found=found)

    def _check_dots(self, content: bytes, node: int, own_cluster: int, parent_cluster: int) -> Iterator[Problem]:
        """``.`` and ``..`` come first and lead to the folder and its parent; a parent that is the root is cluster 0."""
        for index, (name, expected) in enumerate(zip(DOT_NAMES, (own_cluster, parent_cluster), strict=True)):
            slot = content[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]
            entry = parse_slot(slot, None, wide_clusters=self._volume.wide_clusters)
            dots = name.decode("ascii").rstrip()
            if slot[:11] != name or not entry.is_directory:
                yield problem(
                    "dot-entries",
                    f"A folder does not start with its entries . and .. but lacks {dots}",
                    where=self._where(node),
                    found=printable(slot[:11].decode("latin-1")),
                    expected=dots,
                )
            elif entry.first_cluster != expected:
                # Some tools write the number of the root's cluster, and drivers understand it.
                harmless = expected == 0 and entry.first_cluster == self._volume.root.first_cluster
                yield problem(
                    "dot-entries",
                    f"The entry {dots} of a folder leads somewhere else.",
                    where=self._where(node),
                    found=f"cluster {entry.first_cluster}",
                    expected=f"cluster {expected}",
                    serious=not harmless,
                )

    def _check_folder_size(self, entry: FatEntry, node: int) -> Iterator[Problem]:
        if entry.size_bytes:
            yield problem(
                "folder-size",
                "The entry of a folder has a size.",
                where=self._where(node),
                found=f"{entry.size_bytes} bytes",
                expected="0 bytes",
                serious=False,
            )

    def _check_names(self, listing: Listing, node: int) -> Iterator[Problem]:
        for count, code, message in (
            (listing.orphans, "orphan-long-name", "Slots of long names belong to no entry."),
            (listing.beyond, "beyond-end-mark", "Slots are in use after the end mark, where only some drivers look."),
        ):
            if count:
                yield problem(code, message, where=self._where(node), found=f"{count} slots", serious=False)
        taken: set[str] = set()
        for entry in listing.entries:
            names = {fold_name(entry.name), fold_name(entry.short_name)}
            if not taken.isdisjoint(names):
                message, found = "A name is there twice in one folder.", printable(entry.name)
                yield problem("duplicate-name", message, where=self._where(node), found=found)
            taken |= names
            fault = _name_fault(entry)
            if fault is not None:
                yield problem("illegal-name", "A name is not allowed on FAT.", where=self._where(node), found=fault)

    def _check_free(self) -> Iterator[Problem]:
        """Clusters in use that no file owns, and the count of free ones that FSInfo keeps."""
        free = bad = 0
        bad_bytes = array("I", [self._table.bad_mark]).tobytes()
        for index in range(-(-self._table.entry_count // PIECE_ENTRIES)):
            piece = self._table.piece(index)
            if piece.empty:
                free += len(piece.entries)
            else:
                free += piece.entries.count(0)
                bad += piece.entries.count(self._table.bad_mark) if bad_bytes in piece.entries.tobytes() else 0
        free -= self._table.piece(0).entries[:2].count(0)
        lost = self._table.entry_count - 2 - free - bad - self._claimed
        if lost > 0:
            yield problem(
                "lost-clusters",
                "Clusters are in use that belong to no file.",
                where="allocation table",
                found=f"{lost} clusters",
                expected="0",
                serious=False,
            )
        fsinfo = self._volume.fsinfo()
        if fsinfo is not None and fsinfo.signatures_right and fsinfo.free_clusters not in (free, _UNKNOWN_COUNT):
            yield problem(
                "fsinfo-free-count",
                "The FSInfo sector has a wrong count of free clusters.",
                where="FSInfo sector, offset 0x1e8",
                found=fsinfo.free_clusters,
                expected=free,
                serious=False,
            )


def _name_fault(entry: FatEntry) -> str | None:
    raw = entry.slot[:11]
    if not (_SHORT_BASE.fullmatch(raw[:8]) and _SHORT_EXTENSION.fullmatch(raw[8:])):
        return f"the 8.3 name {raw.hex(' ')} ({printable(entry.short_name)})"
    fault = name_fault(entry.name)
    return None if fault is None else f"{printable(entry.name)}, which {fault}"
