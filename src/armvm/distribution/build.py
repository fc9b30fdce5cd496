"""An image of a distribution: root trees, boot programs and configuration brought together for ``image.build``."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

from armvm.distribution.archive import oci_tree
from armvm.distribution.debian import Notes, Progress, bootstrapped, core_path, plan_bootstrap
from armvm.distribution.dress import Identity, dress
from armvm.distribution.grub import CONSOLES, ESP_CONFIG, esp_config
from armvm.distribution.kernels import find_installed
from armvm.distribution.recipe import Architecture, DistributionRecipe, SourceKind
from armvm.errors import InputError, UsageError
from armvm.guid import derived_guid
from armvm.image.build import build_image
from armvm.image.recipe import EspFile, KernelRecipe, Recipe, RecipeFields, RootSource
from armvm.image.rootfs import minimum_size, staged
from armvm.image.staging import RootTree, StagedTree
from armvm.units import MIB, align_up

FREE_BYTES = 512 * MIB
"""What a Debian root file system has to spare where nothing asks for more."""


def build_distribution(
    recipe: DistributionRecipe,
    fields: RecipeFields,
    output: Path,
    *,
    timestamp: int,
    epoch: int | None = None,
    renew: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    notes: Notes | None = None,
) -> None:
    """Write the image of ``recipe`` to ``output``, whole or not at all; ``fields`` are the image's own (size …).

    ``epoch`` is SOURCE_DATE_EPOCH where it is given. The same recipe, the same state of the archive and the same epoch
    give the same bytes. ``renew`` sets a Debian up anew although the cache has it.
    Raises UsageError, InputError, MissingError and OutputError with what is wrong.
    """
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix=".armvm-build-", dir=output.parent))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        kind, _ = recipe.origin
        if kind is SourceKind.DEBIAN:

            def tar_of(architecture: Architecture) -> Path:
                plan = plan_bootstrap(recipe, architecture, epoch=epoch)
                made = bootstrapped(plan, timestamp=timestamp, renew=renew, progress=progress, notes=notes)
                return stack.enter_context(made)

            image = stack.enter_context(_debian(recipe, fields, tar_of, scratch=scratch, timestamp=timestamp))
        else:
            image = stack.enter_context(_other(recipe, fields, scratch=scratch))
        build_image(image, output, timestamp=timestamp, overwrite=overwrite, progress=progress)


@contextmanager
def _debian(
    recipe: DistributionRecipe,
    fields: RecipeFields,
    tar_of: Callable[[Architecture], Path],
    *,
    scratch: Path,
    timestamp: int,
) -> Iterator[Recipe]:
    if fields.get("efi") or fields.get("kernels") or fields.get("root"):
        raise UsageError(
            "a Debian image brings its boot program, kernel and root: no --efi, --kernel or --root with it"
        )
    with ExitStack() as stack:
        tars = {architecture: tar_of(architecture) for architecture in recipe.architectures}
        seed = _seed(recipe, fields, tars, timestamp)
        volume_id = derived_guid(seed, "esp volume").int & 0xFFFFFFFF
        roots: dict[Architecture, UUID] = {}
        sources: dict[Architecture, RootSource] = {}
        for architecture, tar in tars.items():
            roots[architecture] = derived_guid(seed, "root file system", architecture.value)
            folder = scratch / architecture.value
            folder.mkdir()
            tree = stack.enter_context(staged(tar, scratch=folder))
            dress(tree, recipe, Identity(roots[architecture], volume_id), timestamp=timestamp)
            label = "root" if len(tars) == 1 else f"root-{architecture.value}"
            sources[architecture] = _source(tree.finish(), recipe, label, roots[architecture])
        config = scratch / "grub.cfg"
        config.write_text(esp_config(roots), encoding="ascii")
        image: RecipeFields = {
            **fields,
            "efi": {a.state: scratch / a.value / "root" / core_path(a) for a in tars},
            "roots": {a.state: source for a, source in sources.items()},
            "esp_files": (EspFile(config, ESP_CONFIG), *fields.get("esp_files", ())),
            "esp_volume_id": volume_id,
        }
        yield Recipe(**image)


def _seed(recipe: DistributionRecipe, fields: RecipeFields, tars: dict[Architecture, Path], timestamp: int) -> str:
    """What the file systems' UUIDs are derived from: everything that goes into them."""
    digest = hashlib.sha256(repr((recipe, sorted(fields.items(), key=lambda item: item[0]), timestamp)).encode())
    for architecture, tar in tars.items():
        with tar.open("rb") as file:
            digest.update(f"\0{architecture.value}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def _source(tree: RootTree, recipe: DistributionRecipe, label: str, uuid: UUID | None) -> RootSource:
    size = recipe.root_size_bytes
    return RootSource(tree, label, uuid, align_up(minimum_size(tree) + FREE_BYTES, MIB) if size is None else size)


@contextmanager
def _other(recipe: DistributionRecipe, fields: RecipeFields, *, scratch: Path) -> Iterator[Recipe]:
    """Any other distribution: its tree as it is, and its kernel as a unified kernel image at the removable path."""
    kind, place = recipe.origin
    (architecture,) = recipe.architectures
    if fields.get("efi") or fields.get("root"):
        raise UsageError("a distribution's tree is the root: no --root and no --efi with it")
    folder = scratch / "tree"
    folder.mkdir()
    with _tree_of(kind, Path(place), architecture, folder) as tree:
        kernels = dict(fields.get("kernels", {}))
        if set(kernels) - {architecture.state}:
            raise UsageError(f"the kernel is not for {architecture.state.label}", hint="--arch says for which it is")
        given = kernels.get(architecture.state)
        found = KernelRecipe(*_installed(tree, place)) if given is None else given
        if found.command_line is None:
            words = " ".join((*CONSOLES, *recipe.kernel_arguments))
            found = KernelRecipe(found.kernel, found.initrds, words, found.stub)
        image: RecipeFields = {
            **fields,
            "kernels": {architecture.state: found},
            "roots": {architecture.state: _source(tree.finish(), recipe, fields.get("root_label", "root"), None)},
        }
        yield Recipe(**image)


@contextmanager
def _tree_of(kind: SourceKind, place: Path, architecture: Architecture, folder: Path) -> Iterator[StagedTree]:
    if kind in (SourceKind.OCI, SourceKind.DOCKER_ARCHIVE):
        with oci_tree(place, architecture, scratch=folder) as tree:
            yield tree
        return
    if kind is SourceKind.TREE and not place.is_dir():
        raise InputError("this is no folder", subject=str(place))
    if kind is SourceKind.TAR and not place.is_file():
        raise InputError("there is no such file", subject=str(place))
    with staged(place, scratch=folder) as tree:
        yield tree


def _installed(tree: StagedTree, place: str) -> tuple[Path, tuple[Path, ...]]:
    installed = find_installed(tree)
    if installed is None:
        raise UsageError(
            f"{place}: there is no kernel in it, as in most container images",
            hint="give one: --kernel FILE --initrd FILE (the initrd has to hold the disk's driver and ext4)",
        )
    if installed[1] is None:
        raise UsageError(
            f"{place}: the kernel /{installed[0]} has no initial RAM disk beside it",
            hint="make one in the tree first, or give both: --kernel FILE --initrd FILE",
        )
    kernel, initrd = tree.content(installed[0]), tree.content(installed[1])
    if kernel is None or initrd is None:
        raise InputError("the kernel or its initial RAM disk is no regular file", subject=place)
    return kernel, (initrd,)
