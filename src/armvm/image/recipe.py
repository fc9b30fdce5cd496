"""What an image is to be made of: one frozen value, from the command line's options or from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.units import SECTOR_SIZES, parse_size

if TYPE_CHECKING:
    from armvm.image.staging import RootTree

FORMATS = ("raw", "qcow2")


@dataclass(frozen=True, slots=True)
class KernelRecipe:
    """A kernel with an EFI stub, its initial RAM disks (concatenated in this order) and its command line."""

    kernel: Path
    initrds: tuple[Path, ...] = ()
    command_line: str | None = None
    stub: Path | None = None
    """A boot stub to use in place of armvm's own."""


@dataclass(frozen=True, slots=True)
class EspFile:
    r"""A file or a folder's whole content, to be put at ``destination`` on the ESP (``/`` or ``\`` between names)."""

    source: Path
    destination: str


@dataclass(frozen=True, slots=True)
class RootSource:
    """The root file system of one execution state: a folder, a tar archive or a tree that stands ready.

    ``uuid`` is the file system's (None: derived from what goes into the image), ``size_bytes`` the least size of its
    partition (None: as large as needed).
    """

    source: Path | RootTree
    label: str = "root"
    uuid: UUID | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that an image is made of. Sizes are in bytes; None means as large as needed.

    For each execution state there is either an EFI program, put at the removable path as it is, or a kernel, which
    becomes a unified kernel image there.
    """

    efi: Mapping[ExecutionState, Path] = field(default_factory=dict)
    kernels: Mapping[ExecutionState, KernelRecipe] = field(default_factory=dict)
    esp_files: tuple[EspFile, ...] = ()
    root: Path | None = None
    """A folder or a tar archive that becomes an ext4 root file system, one for every execution state."""
    roots: Mapping[ExecutionState, RootSource] = field(default_factory=dict)
    """In place of ``root``: a root file system for each execution state."""
    esp_label: str = "ESP"
    root_label: str = "root"
    size_bytes: int | None = None
    esp_size_bytes: int | None = None
    esp_volume_id: int | None = None
    """The ESP's FAT volume id, 32 bits (None: derived from what goes into the image)."""
    sector_size: int = 512
    format: str = "raw"

    def __post_init__(self) -> None:
        both = set(self.efi) & set(self.kernels)
        if both:
            raise UsageError(f"{min(state.label for state in both)} has both an EFI program and a kernel")
        if not self.states:
            raise UsageError(
                "nothing to boot: an image needs an EFI program or a kernel",
                hint="give --efi aarch64=FILE, or --kernel FILE --initrd FILE",
            )
        if self.root is not None and self.roots:
            raise UsageError("one root file system for all execution states, and one for each: only one of the two")
        strange = set(self.roots) - set(self.states)
        if strange:
            raise UsageError(f"a root file system for {min(state.label for state in strange)}, and nothing boots it")
        if self.sector_size not in SECTOR_SIZES:
            raise UsageError(f"a disk has sectors of 512 or 4096 bytes, not of {self.sector_size}")
        if self.format not in FORMATS:
            raise UsageError(f"images are built as {' or '.join(FORMATS)}, not as {self.format!r}")

    @property
    def states(self) -> tuple[ExecutionState, ...]:
        """The execution states that the image will serve."""
        return tuple(state for state in ExecutionState if state in self.efi or state in self.kernels)


_KEYS = {"efi", "kernel", "esp", "root", "size", "sector-size", "format"}
_KERNEL_KEYS = {"kernel", "initrd", "cmdline", "stub"}
_ESP_KEYS = {"label", "size", "files", "trees"}
_ROOT_KEYS = {"source", "label"}


def parse_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file; paths in it are relative to its folder.

    Raises InputError, naming the key, for what is no recipe.
    """
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot be read as a recipe: {error}", subject=str(path)) from error
    return _Reader(path).recipe(data)


class _Reader:
    """A TOML document becoming a recipe: every key is known, every value is of its kind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recipe(self, data: dict[str, Any]) -> Recipe:
        self._known(data, _KEYS, "")
        esp = self._table(data, "esp", _ESP_KEYS)
        root = self._table(data, "root", _ROOT_KEYS)
        efi = {
            self._state(name, "efi"): self._file(value, f"efi.{name}")
            for name, value in self._table(data, "efi").items()
        }
        kernels = {
            self._state(name, "kernel"): self._kernel(value, f"kernel.{name}")
            for name, value in self._table(data, "kernel").items()
        }
        files = self._table(esp, "files", prefix="esp.")
        trees = self._list(esp.get("trees", []), "esp.trees")
        try:
            return Recipe(
                efi=efi,
                kernels=kernels,
                esp_files=(
                    *(EspFile(self._file(tree, "esp.trees"), "/") for tree in trees),
                    *(EspFile(self._file(source, f"esp.files.{to}"), to) for to, source in files.items()),
                ),
                root=self._file(root["source"], "root.source") if "source" in root else None,
                esp_label=self._text(esp.get("label", "ESP"), "esp.label"),
                root_label=self._text(root.get("label", "root"), "root.label"),
                size_bytes=self._size(data.get("size"), "size"),
                esp_size_bytes=self._size(esp.get("size"), "esp.size"),
                sector_size=self._size(data.get("sector-size", 512), "sector-size") or 512,
                format=self._text(data.get("format", "raw"), "format"),
            )
        except UsageError as error:
            raise InputError(error.message, subject=str(self._path), hint=error.hint) from error

    def _kernel(self, value: Any, key: str) -> KernelRecipe:
        if not isinstance(value, dict):
            raise self._wrong(key, value, "a table with kernel, initrd, cmdline")
        self._known(value, _KERNEL_KEYS, f"{key}.")
        if "kernel" not in value:
            raise InputError(f"{key}.kernel is missing", subject=str(self._path))
        initrds = value.get("initrd", [])
        return KernelRecipe(
            kernel=self._file(value["kernel"], f"{key}.kernel"),
            initrds=tuple(
                self._file(initrd, f"{key}.initrd")
                for initrd in ([initrds] if isinstance(initrds, str) else self._list(initrds, f"{key}.initrd"))
            ),
            command_line=self._text(value["cmdline"], f"{key}.cmdline") if "cmdline" in value else None,
            stub=self._file(value["stub"], f"{key}.stub") if "stub" in value else None,
        )

    def _table(self, data: dict[str, Any], key: str, known: set[str] | None = None, prefix: str = "") -> dict[str, Any]:
        value = data.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(prefix + key, value, "a table")
        if known is not None:
            self._known(value, known, f"{prefix}{key}.")
        return value

    def _known(self, data: dict[str, Any], known: set[str], prefix: str) -> None:
        for key in data:
            if key not in known:
                keys = ", ".join(sorted(prefix + name for name in known))
                raise InputError(f"unknown key {prefix + key!r}", subject=str(self._path), hint=f"keys: {keys}")

    def _state(self, name: str, key: str) -> ExecutionState:
        try:
            return ExecutionState(name)
        except ValueError:
            raise InputError(f"{key}.{name}: the states are aarch64 and aarch32", subject=str(self._path)) from None

    def _file(self, value: Any, key: str) -> Path:
        return self._path.parent / self._text(value, key)

    def _size(self, value: Any, key: str) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self._wrong(key, value, 'a size such as "512M"')
        return value if isinstance(value, int) else parse_size(value)

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def _list(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def _wrong(self, key: str, value: Any, expected: str) -> InputError:
        return InputError(f"{key} is wrong", subject=str(self._path), found=repr(value)[:80], expected=expected)
