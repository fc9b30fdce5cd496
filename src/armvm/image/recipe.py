"""What an image is to be made of: one frozen value, from the command line's options or from a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from uuid import UUID

from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.image.toml_reader import TomlReader
from armvm.units import SECTOR_SIZES

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


class RecipeFields(TypedDict, total=False):
    """What a recipe file says of an image, under the names of ``Recipe``."""

    efi: Mapping[ExecutionState, Path]
    kernels: Mapping[ExecutionState, KernelRecipe]
    esp_files: tuple[EspFile, ...]
    root: Path | None
    roots: Mapping[ExecutionState, RootSource]
    esp_label: str
    root_label: str
    size_bytes: int | None
    esp_size_bytes: int | None
    esp_volume_id: int | None
    sector_size: int
    format: str


def parse_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file; paths in it are relative to its folder.

    Raises InputError, naming the key, for what is no recipe.
    """
    reader = TomlReader(path)
    fields = parse_fields(path, reader.document())
    try:
        return Recipe(**fields)
    except UsageError as error:
        raise InputError(error.message, subject=str(path), hint=error.hint) from error


def parse_fields(path: Path, data: dict[str, Any]) -> RecipeFields:
    """What the document ``data`` of the recipe file ``path`` says; only what it says. Raises InputError."""
    reader = TomlReader(path)
    reader.known(data, _KEYS, "")
    esp = reader.table(data, "esp", _ESP_KEYS)
    root = reader.table(data, "root", _ROOT_KEYS)
    fields: RecipeFields = {
        "efi": {
            _state(name, "efi", path): reader.file(value, f"efi.{name}")
            for name, value in reader.table(data, "efi").items()
        },
        "kernels": {
            _state(name, "kernel", path): _kernel(reader, path, value, f"kernel.{name}")
            for name, value in reader.table(data, "kernel").items()
        },
        "esp_files": (
            *(EspFile(reader.file(tree, "esp.trees"), "/") for tree in reader.list(esp.get("trees", []), "esp.trees")),
            *(
                EspFile(reader.file(source, f"esp.files.{to}"), to)
                for to, source in reader.table(esp, "files", prefix="esp.").items()
            ),
        ),
        "esp_label": reader.text(esp.get("label", "ESP"), "esp.label"),
        "root_label": reader.text(root.get("label", "root"), "root.label"),
        "size_bytes": reader.size(data.get("size"), "size"),
        "esp_size_bytes": reader.size(esp.get("size"), "esp.size"),
        "sector_size": reader.size(data.get("sector-size", 512), "sector-size") or 512,
        "format": reader.text(data.get("format", "raw"), "format"),
    }
    if "source" in root:
        fields["root"] = reader.file(root["source"], "root.source")
    return fields


def _kernel(reader: TomlReader, path: Path, value: Any, key: str) -> KernelRecipe:
    if not isinstance(value, dict):
        raise reader.wrong(key, value, "a table with kernel, initrd, cmdline")
    reader.known(value, _KERNEL_KEYS, f"{key}.")
    if "kernel" not in value:
        raise InputError(f"{key}.kernel is missing", subject=str(path))
    initrds = value.get("initrd", [])
    return KernelRecipe(
        kernel=reader.file(value["kernel"], f"{key}.kernel"),
        initrds=tuple(
            reader.file(initrd, f"{key}.initrd")
            for initrd in ([initrds] if isinstance(initrds, str) else reader.list(initrds, f"{key}.initrd"))
        ),
        command_line=reader.text(value["cmdline"], f"{key}.cmdline") if "cmdline" in value else None,
        stub=reader.file(value["stub"], f"{key}.stub") if "stub" in value else None,
    )


def _state(name: str, key: str, path: Path) -> ExecutionState:
    try:
        return ExecutionState(name)
    except ValueError:
        raise InputError(f"{key}.{name}: the states are aarch64 and aarch32", subject=str(path)) from None
