"""A kernel as a boot entry starts it: the image, its configuration, its initial RAM disk, its modules, its root."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from armvm.disk.decompress import recognise, unpack_bytes
from armvm.disk.files import FileKind, FileSystem
from armvm.errors import ArmvmError, InputError, MissingError
from armvm.execution import ExecutionState
from armvm.guest.driver_catalogue import all_marks, all_modules
from armvm.guest.facts import BootEntry
from armvm.guest.generators import Generator, generator_of_initramfs
from armvm.guest.initramfs import Initramfs, keep_small, read_initramfs
from armvm.guest.kernel import KernelFacts, read_kernel
from armvm.guest.kernel_config import MOST_CONFIG_BYTES, KernelConfig
from armvm.guest.module_index import ModuleIndex, find_modules, module_releases
from armvm.printable import printable
from armvm.probe.modules import module_name
from armvm.spec.verdict import Evidence, Problem
from armvm.units import MIB

_T = TypeVar("_T")
_Started = tuple[KernelFacts, Initramfs | None, FileSystem | None]
_CONFIG_PLACES = (
    *("/boot/config-{}", "/config-{}", "/lib/modules/{}/config", "/usr/lib/modules/{}/config"),
    *("/boot/config-{}.gz", "/usr/lib/kernel/config-{}"),
)
_MOST_MODULE_BYTES = 2 * MIB
_KERNEL_NAME = re.compile(r"[A-Za-z]+[-.](\d[^/\\ ,]*?)(?:\.(?:efi|gz))?", re.IGNORECASE)
_RELEASE = re.compile(r"\d+\.\d+[^/\\ ,]*")
_SYSTEMS = ("/init", "/sbin/init", "/linuxrc")


@dataclass(frozen=True, slots=True, eq=False)
class BootableKernel:
    """What a boot entry starts, as far as it could be read.

    ``release`` is what ``uname -r`` would say, None when that could not be told. ``config`` is the configuration file
    (what the kernel itself carries is ``kernel.config``). ``initramfs`` is None when the entry has none. Without a
    ``root`` no root file system could be read; ``whole_system`` says that there is none, the initial RAM disk being the
    system. ``kernel`` is None when it is no kernel that we know, and ``problems`` then say why.
    """

    title: str
    state: ExecutionState
    kernel_where: str
    kernel: KernelFacts | None
    release: str | None = None
    config: KernelConfig | None = None
    initramfs: Initramfs | None = None
    root: FileSystem | None = None
    default: bool = False
    whole_system: bool = False
    initrd_modules: ModuleIndex | None = None
    root_modules: ModuleIndex | None = None
    problems: tuple[Problem, ...] = ()
    known: dict[str, object] = field(default_factory=dict, repr=False)
    """What was already found out about it, by those who ask (a note pad, no fact)."""

    @property
    def generator(self) -> Generator | None:
        """The program that made its initial RAM disk, where that can be told."""
        return generator_of_initramfs(self.initramfs) if self.initramfs is not None else None


@dataclass(slots=True)
class KernelCache:
    """Kernels, initial RAM disks and whole answers that several boot entries share. Belongs to one image."""

    kernels: dict[tuple[str, int], KernelFacts | InputError | MissingError] = field(default_factory=dict)
    initrds: dict[tuple[tuple[str, str, int], ...], Initramfs] = field(default_factory=dict)
    answers: list[tuple[_Started, dict[str, object]]] = field(default_factory=list)

    def answers_for(
        self, kernel: KernelFacts | None, initramfs: Initramfs | None, root: FileSystem | None
    ) -> dict[str, object]:
        """The note pad of all boot entries that start the same."""
        if kernel is None:
            return {}
        for (one, two, three), known in self.answers:
            if one is kernel and two is initramfs and three is root:
                return known
        self.answers.append(((kernel, initramfs, root), {}))
        return self.answers[-1][1]


def load_kernel(
    entry: BootEntry, *, root: FileSystem | None, boot: Sequence[FileSystem], cache: KernelCache | None = None
) -> BootableKernel:
    """Read what ``entry`` starts. ``root`` is the guest's root file system, ``boot`` those that kernels come from.

    With the same ``cache``, several entries with one kernel read it once. It does not raise for what it reads: what is
    damaged is among the ``problems``.
    """
    cache = cache or KernelCache()
    kernel, problems = _kernel(entry, cache)
    initramfs = _initramfs(entry, cache)
    if initramfs is not None:
        problems += initramfs.problems
    whole = _is_whole_system(entry, initramfs, root)
    root = None if whole else root
    release = _tried(lambda: _release(entry, kernel, initramfs, root), problems, entry.kernel_where)
    places = [*boot, root] if root is not None and all(files is not root for files in boot) else boot
    config = _config(release, places, kernel, problems)
    return BootableKernel(
        title=entry.title,
        state=kernel.state if kernel is not None else entry.state,
        kernel_where=entry.kernel_where,
        kernel=kernel,
        release=release,
        config=config,
        initramfs=initramfs,
        root=root,
        default=entry.default,
        whole_system=whole,
        initrd_modules=_tried(lambda: _modules(initramfs, release), problems, "initial RAM disk"),
        root_modules=_tried(lambda: _modules(root, release), problems, root.name if root else ""),
        problems=tuple(problems),
        known=cache.answers_for(kernel, initramfs, root),
    )


def _kernel(entry: BootEntry, cache: KernelCache) -> tuple[KernelFacts | None, list[Problem]]:
    key = (entry.kernel_where, entry.kernel.size_bytes)
    if key not in cache.kernels:
        try:
            cache.kernels[key] = read_kernel(entry.kernel, marks=all_marks())
        except (InputError, MissingError) as error:
            cache.kernels[key] = error
    found = cache.kernels[key]
    if not isinstance(found, KernelFacts):
        return None, [_problem("kernel-unreadable", entry.kernel_where, found)]
    if found.state is not entry.state:
        message = f"a kernel for {found.state.label} is started in {entry.state.label}"
        where = Evidence(entry.kernel_where, found.state.label, entry.state.label)
        return found, [Problem("kernel-state", message, where)]
    return found, []


def _initramfs(entry: BootEntry, cache: KernelCache) -> Initramfs | None:
    if not entry.initrds:
        return None
    key = tuple((where, disk.name, disk.size_bytes) for where, disk in entry.initrds)
    if key not in cache.initrds:
        name = entry.initrds[-1][0]
        cache.initrds[key] = read_initramfs([disk for _, disk in entry.initrds], keep=_keep, name=name)
    return cache.initrds[key]


def _keep(path: str, size_bytes: int) -> bool:
    """Small files, the lists of modules, and the modules that are asked for."""
    name = path.rpartition("/")[2]
    if name.startswith("modules."):
        return name.startswith(("modules.dep", "modules.builtin"))
    return keep_small(path, size_bytes) or (size_bytes <= _MOST_MODULE_BYTES and module_name(name) in all_modules())


def _is_whole_system(entry: BootEntry, initramfs: Initramfs | None, root: FileSystem | None) -> bool:
    """Whether the initial RAM disk is the system: no root is named, and it was not made to look for one."""
    if initramfs is None or (entry.command_line is None and root is not None):
        return False
    if any(word.startswith("root=") for word in (entry.command_line or "").split()):
        return False
    if generator_of_initramfs(initramfs) is not None:
        return False
    try:
        return any(initramfs.lookup(path) is not None for path in _SYSTEMS)
    except InputError:
        return False


def _release(
    entry: BootEntry, kernel: KernelFacts | None, initramfs: Initramfs | None, root: FileSystem | None
) -> str | None:
    """What the kernel's name says where every place with modules has them for that release, else what the kernel says.

    So the kernel itself, which may have to be fetched and unpacked, is read only where names leave a doubt.
    """
    places = [set(module_releases(files)) for files in (initramfs, root) if files is not None]
    places = [releases for releases in places if releases]
    for named in _named_releases(entry.kernel_where):
        if places and all(named in releases for releases in places):
            return named
    if kernel is not None and kernel.version is not None:
        return kernel.version
    return None


def _named_releases(where: str) -> Iterator[str]:
    """``/boot/vmlinuz-6.1.0-50-arm64`` → ``6.1.0-50-arm64``; ``/MACHINE-ID/6.1.0-50-arm64/linux`` → the same."""
    path = re.split(r"[/\\]", where.partition(", .")[0])
    named = _KERNEL_NAME.fullmatch(path[-1])
    if named is not None:
        yield named[1]
    if len(path) > 1 and _RELEASE.fullmatch(path[-2]):
        yield path[-2]


def _modules(files: FileSystem | None, release: str | None) -> ModuleIndex | None:
    return find_modules(files, release) if files is not None else None


def _config(
    release: str | None, places: Sequence[FileSystem], kernel: KernelFacts | None, problems: list[Problem]
) -> KernelConfig | None:
    if release is None or "/" in release:
        return None
    for files in places:
        for pattern in _CONFIG_PLACES:
            path = pattern.format(release)
            where = f"{files.name}, {printable(path)}"
            config = _tried(partial(_read_config, files, path, where), problems, where)
            if config is None:
                continue
            if kernel is None or config.is_for(kernel.state):
                return config
            message = f"the configuration is not for a kernel of {kernel.state.label}"
            problems.append(Problem("config-state", message, Evidence(where, "another architecture"), serious=False))
    return None


def _read_config(files: FileSystem, path: str, where: str) -> KernelConfig | None:
    entry = files.lookup(path)
    if entry is None or entry.kind is not FileKind.FILE:
        return None
    content = files.read(entry, max_bytes=MOST_CONFIG_BYTES)
    if recognise(content) is not None:
        content = unpack_bytes(content, most_bytes=MOST_CONFIG_BYTES, name=where)
    return KernelConfig.parse(content.decode("utf-8", "replace"), where)


def _tried(read: Callable[[], _T | None], problems: list[Problem], where: str) -> _T | None:
    try:
        return read()
    except (InputError, MissingError) as error:
        problems.append(_problem("unreadable", where, error))
        return None


def _problem(code: str, where: str, error: ArmvmError) -> Problem:
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return Problem(code, message, Evidence(where, message))
