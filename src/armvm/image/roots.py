"""The root file systems of an image that is being built: one for all execution states, or one for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from armvm.disk.raw import RawDisk
from armvm.disk.storage import Disk
from armvm.execution import ExecutionState
from armvm.guid import LINUX_DATA_TYPE, LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE, derived_guid
from armvm.image.recipe import Recipe, RootSource
from armvm.image.rootfs import clamped, make_ext4, minimum_size, root_tree
from armvm.image.staging import RootTree

_OS_RELEASE = ("etc/os-release", "usr/lib/os-release")


@dataclass(frozen=True, slots=True)
class OpenRoot:
    """A root tree at hand, and the execution states that it serves. ``suffix`` tells it from its neighbour."""

    tree: RootTree
    states: tuple[ExecutionState, ...]
    source: RootSource
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class PlannedRoot:
    """A root file system with its identity. ``least_bytes`` is the least size of its partition."""

    tree: RootTree
    states: tuple[ExecutionState, ...]
    label: str
    uuid: UUID
    type_guid: UUID
    partition_guid: UUID
    least_bytes: int
    suffix: str


@contextmanager
def open_roots(recipe: Recipe, *, scratch: Path, timestamp: int) -> Iterator[list[OpenRoot]]:
    """The root trees of ``recipe``, AArch64's first, for as long as the block runs; archives go below ``scratch``."""
    with ExitStack() as stack:
        wanted: list[tuple[tuple[ExecutionState, ...], RootSource, str]] = [
            ((state,), source, f" {state.value}") for state, source in _by_state(recipe)
        ]
        if recipe.root is not None:
            wanted = [(recipe.states, RootSource(recipe.root, recipe.root_label), "")]
        opened = []
        for states, source, suffix in wanted:
            tree = source.source
            if isinstance(tree, Path):
                folder = scratch / f"tree{suffix.strip()}"
                folder.mkdir()
                tree = stack.enter_context(root_tree(tree, scratch=folder, clamp_time=timestamp))
            opened.append(OpenRoot(clamped(tree, timestamp), states, source, suffix))
        yield opened


def plan_roots(opened: list[OpenRoot], seed: str) -> list[PlannedRoot]:
    """Give every root its identity, derived from ``seed`` where its source has none."""
    return [
        PlannedRoot(
            root.tree,
            root.states,
            root.source.label,
            root.source.uuid or derived_guid(seed, f"root file system{root.suffix}"),
            _partition_type(root.states),
            derived_guid(seed, f"root partition{root.suffix}"),
            max(minimum_size(root.tree), root.source.size_bytes or 0),
            root.suffix,
        )
        for root in opened
    ]


@contextmanager
def root_volume(root: PlannedRoot, *, scratch: Path, size_bytes: int, timestamp: int) -> Iterator[Disk]:
    """The ext4 file system of ``root``, made below ``scratch``, as a disk for as long as the block runs."""
    path = scratch / f"root{root.suffix.replace(' ', '-')}.ext4"
    make_ext4(root.tree, path, size_bytes=size_bytes, label=root.label, uuid=root.uuid, timestamp=timestamp)
    with RawDisk(path) as disk:
        yield disk


def os_release(tree: RootTree) -> str | None:
    """The text of the tree's os-release (os-release(5)); None when it has none."""
    regular = {entry.path for entry in tree.entries if entry.size_bytes}
    for path in _OS_RELEASE:
        if path in regular:
            return (tree.staging / path).read_text(encoding="utf-8", errors="replace")
    return None


def _by_state(recipe: Recipe) -> Iterator[tuple[ExecutionState, RootSource]]:
    for state in ExecutionState:
        if state in recipe.roots:
            yield state, recipe.roots[state]


def _partition_type(states: tuple[ExecutionState, ...]) -> UUID:
    if states == (ExecutionState.AARCH64,):
        return LINUX_ROOT_ARM64_TYPE
    return LINUX_ROOT_ARM_TYPE if states == (ExecutionState.AARCH32,) else LINUX_DATA_TYPE
