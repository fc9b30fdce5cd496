"""What a host takes out of Debian's arm64 packages: fetched and extracted by mmdebstrap, pruned, kept by content.

Nothing of them is configured or run here, so no emulation is needed, and this machine's own packages, lists and
architectures stay as they are.

$XDG_CACHE_HOME/armvm/lab
└── packages-KEY/        KEY stands for the choice; MANIFEST says what came of it
    ├── root.cpio        the files, an initial RAM disk
    ├── kernel           and whatever else the recipe wants beside it
    └── manifest.json
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from armvm.atomic import replacing, write_file
from armvm.distribution.debian import apt_options, explained, remove_tree
from armvm.distribution.recipe import Architecture
from armvm.distribution.sources import Archive, machine_archive, require_keyring
from armvm.errors import InputError
from armvm.lab.initramfs import CpioWriter
from armvm.lab.recipe import PYTHON_PACKAGES, HostRecipe
from armvm.probe.modules import find_kernel_modules, read_module
from armvm.process import ProgramError, require_program, run
from armvm.units import MIB

KERNEL_PACKAGE = "linux-image-arm64"
MODULES = ("virtio_mmio", "virtio_console", "virtio_scsi", "sd_mod")
"""What every host loads: the agent's port, and the bus that images are plugged into."""
KEPT = (
    *("bin/busybox", "lib/ld-linux-aarch64.so.1", "lib/aarch64-linux-gnu/*", "usr/lib/aarch64-linux-gnu/*"),
    *("usr/bin/python3*", "usr/lib/python3/*", "usr/lib/python3.*"),
)
"""What every host keeps."""
DROPPED = (
    *("*/gconv/*", "*/perl/*", "*/gstreamer-1.0/*", "*/girepository-1.0/*", "*/engines-3/*", "*/pkgconfig/*"),
    *("*/__pycache__/*", "*/test/*", "*/tests/*", "*/idlelib/*", "*/tkinter/*", "*/lib2to3/*", "*/pydoc_data/*"),
    *("*/ensurepip/*", "*/distutils/*", "*/config-3*", "*.a"),
)
"""What no host needs of that; a recipe's own patterns bring it back."""
SIZES = "lab/sizes"
"""Inside: ``BYTES PATH`` lines of files whose zeros at the end were left out; /init gives them their size back."""
LOADED = "lab/modules"
"""Inside: the modules that /init loads, in order, as paths."""

_FORMAT = 1
"""Goes into the key: to be raised when what is made of the same packages changes."""
_TIMEOUT_SECONDS = 3600.0
_MOST_MEMBERS = 400_000
_MOST_FILE_BYTES = 256 * MIB
_TRIMMED_BYTES = 8 * MIB
_KERNEL = re.compile(r"boot/vmlinuz-([^/]+)")

Notes = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PackageChoice:
    """All that decides what is taken out of the packages."""

    release: str
    packages: tuple[str, ...]
    keep: tuple[str, ...]
    modules: tuple[str, ...]
    kept_modules: tuple[str, ...]
    beside: tuple[tuple[str, str], ...]
    sources: str | None
    """A sources.list; None for mmdebstrap's own."""
    format: int = _FORMAT

    @property
    def key(self) -> str:
        """What names it in the cache."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was taken out of the packages, in the cache. ``digests`` are SHA-256, by file name."""

    folder: Path
    kernel_release: str
    digests: Mapping[str, str]

    @property
    def root(self) -> Path:
        """The files, as an initial RAM disk."""
        return self.folder / "root.cpio"

    @property
    def kernel(self) -> Path:
        """The kernel's image."""
        return self.folder / "kernel"


def choose_packages(recipe: HostRecipe, *, archive: Archive | None = None) -> PackageChoice:
    """What ``recipe`` asks of the packages. Looks at the machine's apt sources and nothing else."""
    archive = machine_archive() if archive is None else archive
    return PackageChoice(
        recipe.release,
        tuple(dict.fromkeys((KERNEL_PACKAGE, "busybox-static", *PYTHON_PACKAGES, *recipe.packages))),
        recipe.keep,
        (*MODULES, *recipe.modules),
        recipe.kept_modules,
        tuple(sorted(recipe.beside.items())),
        archive.lines(recipe.release, ("updates", "security")),
    )


def find_extracted(choice: PackageChoice, cache: Path) -> Extracted | None:
    """What was made of ``choice`` before, whole; None when there is none (any more)."""
    folder = cache / f"packages-{choice.key}"
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes()[: 1 << 16])
        release = str(manifest["kernel"])
        digests = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    whole = {"kernel", "root.cpio"} <= set(digests) and all((folder / name).is_file() for name in digests)
    return Extracted(folder, release, digests) if whole else None


def extract(choice: PackageChoice, cache: Path, *, notes: Notes) -> Extracted:
    """Fetch and extract ``choice``'s packages into ``cache``; the caller holds the lock of that.

    Raises MissingError for what the machine lacks, OutputError when mmdebstrap fails (with what it said last),
    InputError when a package does not hold what it should.
    """
    require_program("mmdebstrap")
    require_keyring()
    notes(f"fetching and extracting Debian {choice.release} arm64 packages: a minute or two, and about 200 MB")
    everything = cache / ".packages.tar"
    for left in cache.glob(".extract-*"):  # of a run that was killed: we hold the lock
        remove_tree(left)
    root = os.geteuid() == 0
    # An ordinary user's mmdebstrap works under other user ids, which may not enter the user's own folders.
    scratch = Path(tempfile.mkdtemp(prefix=".extract-", dir=cache if root else None))
    try:
        scratch.chmod(0o755)
        _mmdebstrap(choice, scratch, everything, root=root)
        folder = cache / f"packages-{choice.key}"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)  # it is whole again when that is there again
        return _take(choice, everything, scratch, folder)
    finally:
        everything.unlink(missing_ok=True)
        remove_tree(scratch)


def _mmdebstrap(choice: PackageChoice, scratch: Path, everything: Path, *, root: bool) -> None:
    (scratch / "apt.conf").write_text(apt_options(), encoding="utf-8")
    arguments = [
        "--mode=root" if root else "--mode=unshare",
        "--skip=check/qemu,output/dev",
        "--architectures=arm64",
        "--variant=extract",
        "--format=tar",
        f"--include={','.join(choice.packages)}",
        f"--aptopt={scratch / 'apt.conf'}",
        choice.release,
        str(everything),
    ]
    if choice.sources is not None:
        sources = scratch / "sources.list"
        sources.touch(mode=0o600)  # a mirror's address may hold a password
        sources.write_text(choice.sources, encoding="ascii")
        arguments.append(str(sources))
    env = {"LC_ALL": "C.UTF-8", **({"TMPDIR": str(scratch)} if root else {})}
    try:
        run("mmdebstrap", arguments, timeout_seconds=_TIMEOUT_SECONDS, env=env)
    except ProgramError as error:
        raise explained(error, choice.release, Architecture.ARM64) from error


def _take(choice: PackageChoice, everything: Path, scratch: Path, folder: Path) -> Extracted:
    """Make the cache's files out of the archive of everything."""
    beside = {"kernel": "boot/vmlinuz-*", **dict(choice.beside)}
    with tarfile.open(everything) as tar:
        members = dict(_members(tar))
        release = _release(members)
        modules = _unpack_modules(tar, members, scratch, release)
        for name, pattern in beside.items():
            path = _only(members, pattern)
            with replacing(folder / name, mode=0o600) as file:
                file.write(_content(tar, members[path], path))
        with replacing(folder / "root.cpio", mode=0o600) as file:
            writer = CpioWriter(file)
            _write_files(writer, tar, members, choice)
            _write_modules(writer, modules, choice, release)
            writer.finish()
    digests = {name: _digest(folder / name) for name in (*beside, "root.cpio")}
    manifest = {"packages": choice.packages, "release": choice.release, "kernel": release, "sha256": digests}
    write_file(folder / "manifest.json", json.dumps(manifest, indent=2).encode() + b"\n", mode=0o600)
    return Extracted(folder, release, digests)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for count, member in enumerate(tar):
        if count > _MOST_MEMBERS:
            raise InputError("more files than any choice of packages has", subject="Debian's packages")
        name = member.name.removeprefix("./").strip("/")
        if name and not {"", ".", ".."} & set(name.split("/")):
            yield name, member


def _release(members: Mapping[str, tarfile.TarInfo]) -> str:
    return _KERNEL.fullmatch(_only(members, "boot/vmlinuz-*"))[1]  # type: ignore[index]  # the pattern is the same


def _only(members: Mapping[str, tarfile.TarInfo], pattern: str) -> str:
    """The path of the one file that ``pattern`` means, the last by name where there are several."""
    found = [name for name, member in members.items() if member.isreg() and fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise InputError(f"no file {pattern}", subject="Debian's packages")
    return max(found)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> bytes:
    source = tar.extractfile(member)  # follows a hard link to what it stands for
    content = b"" if source is None else source.read(_MOST_FILE_BYTES + 1)
    if len(content) > _MOST_FILE_BYTES:
        raise InputError("larger than any file of a host", subject=path)
    return content


def _write_files(
    writer: CpioWriter, tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], choice: PackageChoice
) -> None:
    """Everything that is kept; what files end with in zeros is left out of large ones (flash images)."""
    sizes: list[str] = []
    wanted = _matcher(choice.keep)
    usual, dropped = _matcher(KEPT), _matcher(DROPPED)
    for path in sorted(members):
        member = members[path]
        if not (wanted(path) or (usual(path) and not dropped(path))) or member.isdir():
            continue
        if member.issym():
            writer.add_link(path, member.linkname)
        elif member.isreg() or member.islnk():
            content = _content(tar, member, path)
            if len(content) >= _TRIMMED_BYTES and not content[-1]:
                sizes.append(f"{len(content)} {path}\n")
                content = content.rstrip(b"\0")
            writer.add_file(path, content, program=bool(member.mode & 0o111))
    writer.add_file(SIZES, "".join(sizes).encode())


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    if not patterns:
        return lambda _path: False
    expression = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    return lambda path: expression.match(path) is not None


def _unpack_modules(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], scratch: Path, release: str) -> Path:
    """The kernel's modules as files, where what they need can be read; the folder is a lib/modules/RELEASE."""
    prefix = f"lib/modules/{release}/"
    folder = scratch / prefix
    for path, member in members.items():
        if path.startswith(prefix) and member.isreg():
            file = scratch / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_content(tar, member, path))
    return folder


def _write_modules(writer: CpioWriter, folder: Path, choice: PackageChoice, release: str) -> None:
    loaded = find_kernel_modules(folder, choice.modules)
    missing = [module.name for module in loaded if module.path is None]
    if missing:
        raise InputError(f"the kernel {release} has no module {', '.join(missing)}", subject="Debian's packages")
    kept = [module for module in find_kernel_modules(folder, choice.kept_modules) if module.path is not None]
    place = f"lib/modules/{release}"
    for path in sorted({module.path for module in (*loaded, *kept) if module.path is not None}):
        name = f"{path.relative_to(folder)}".partition(".ko")[0] + ".ko"
        writer.add_file(f"{place}/{name}", read_module(path))
    for name in ("modules.builtin", "modules.order"):
        if (folder / name).is_file():
            writer.add_file(f"{place}/{name}", (folder / name).read_bytes())
    paths = [f"{place}/{m.path.relative_to(folder)}".partition(".ko")[0] + ".ko" for m in loaded if m.path is not None]
    writer.add_file(LOADED, "".join(f"/{path}\n" for path in paths).encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
