"""``armvm build``: a portable image from EFI programs, kernels, a root tree, or a recipe."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from armvm.cli.clock import timestamp
from armvm.cli.instances_option import add_instances_option, require_no_instances
from armvm.errors import OutputError, UsageError
from armvm.execution import ExecutionState
from armvm.units import format_size, parse_size

if TYPE_CHECKING:
    from armvm.distribution.recipe import DistributionRecipe, User
    from armvm.image.recipe import EspFile, KernelRecipe, Recipe, RecipeFields

DESCRIPTION = """Make a portable disk image: a GPT, an EFI System Partition, and what it boots at the removable path.

For each execution state give either an EFI program (--efi) or a kernel with an EFI stub (--kernel), which becomes a
unified kernel image together with its initial RAM disks and its command line. No root and no loop devices are needed.

With --from the image is a distribution's. Debian is set up from its packages (by mmdebstrap, which takes minutes; the
root tree is kept in the user's cache), with GRUB and with every driver that the specification names; any other comes
as a root tree, a tar archive or a container image, and starts from a unified kernel image.

The same inputs and SOURCE_DATE_EPOCH give the same bytes."""
EXAMPLES = """  armvm build -o disk.img --kernel vmlinuz --initrd initrd.gz --cmdline "console=ttyAMA0"
  armvm build -o disk.qcow2 --kernel vmlinuz --initrd initrd.gz --root ./rootfs.tar --size 4G
  armvm build -o both.img --efi aarch64=grubaa64.efi --efi aarch32=grubarm.efi --esp-file grub.cfg:/EFI/debian/grub.cfg
  armvm build -o disk.img --recipe image.toml
  armvm build -o debian.qcow2 --from debian:12 --user alice:sudo --ssh-key ~/.ssh/id_ed25519.pub --size 8G
  armvm build -o both.img --from debian:bookworm --arch both --package nginx --hostname web
  armvm build -o fedora.img --from oci:./fedora-image --kernel vmlinuz --initrd initramfs.img"""

_STATES = ", ".join(state.value for state in ExecutionState)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="IMAGE", help="the image to write")
    parser.add_argument("--force", action="store_true", help="replace IMAGE if it exists")
    add_instances_option(parser)
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="a TOML file with all of this; options win over it")
    boot = parser.add_argument_group("what boots")
    boot.add_argument(
        "--efi", action="append", default=[], metavar="STATE=FILE", help=f"an EFI program for {_STATES}; repeatable"
    )
    boot.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="[STATE=]FILE",
        help="a kernel with an EFI stub; its execution state is found in the file; once for each state",
    )
    boot.add_argument(
        "--initrd",
        action="append",
        default=[],
        metavar="[STATE=]FILE",
        help="an initial RAM disk for the kernel (of STATE); repeatable, concatenated in order",
    )
    boot.add_argument(
        "--cmdline",
        action="append",
        default=[],
        metavar="[STATE=]TEXT",
        help="the kernel's command line; with --root and no root=, the root partition is added to it",
    )
    boot.add_argument(
        "--stub", action="append", default=[], metavar="STATE=FILE", help="a boot stub in place of armvm's own"
    )
    content = parser.add_argument_group("what else is in it")
    content.add_argument(
        "--esp-file", action="append", default=[], metavar="FILE:DEST", help="a file to put at DEST on the ESP"
    )
    content.add_argument(
        "--esp-tree", action="append", default=[], metavar="FOLDER", help="a folder whose content goes on the ESP"
    )
    content.add_argument("--root", type=Path, metavar="FOLDER|TAR", help="what becomes an ext4 root file system")
    _add_distribution(parser.add_argument_group("a distribution's image"))
    shape = parser.add_argument_group("its shape")
    shape.add_argument("--size", metavar="SIZE", help="the disk's size, for example 4G (default: as small as fits)")
    shape.add_argument("--esp-size", metavar="SIZE", help="the ESP's size (default: 64M or what its files need)")
    shape.add_argument("--esp-label", metavar="LABEL", help="default: ESP")
    shape.add_argument("--root-label", metavar="LABEL", help="default: root")
    shape.add_argument("--sector-size", type=int, choices=(512, 4096), help="the disk's logical sectors (default: 512)")
    shape.add_argument("--format", choices=("raw", "qcow2"), help="default: by IMAGE's name, else raw")


def _add_distribution(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="debian[:RELEASE] (a code name, a number, stable), oci:PATH, docker-archive:FILE, tree:FOLDER or tar:FILE",
    )
    group.add_argument(
        "--arch", action="append", default=[], choices=("arm64", "armhf", "both"), help="default: arm64; repeatable"
    )
    group.add_argument("--package", action="append", default=[], metavar="NAME", help="a Debian package; repeatable")
    group.add_argument("--hostname", metavar="NAME", help="default: debian")
    group.add_argument(
        "--user", metavar="NAME[:GROUP…]", help="an account, locked but for its ssh keys; NAME:sudo may become root"
    )
    group.add_argument(
        "--ssh-key",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a public key for --user, or else for root; repeatable. Installs the ssh server",
    )
    group.add_argument(
        "--password-hash-file",
        type=Path,
        metavar="FILE",
        help="a file with the password's hash (`openssl passwd -6`) for --user, or else for root",
    )
    group.add_argument("--ssh", action="store_true", help="install the ssh server")
    group.add_argument("--cloud-init", action="store_true", help="install cloud-init")
    group.add_argument("--mirror", metavar="URL", help="a Debian mirror (default: the one of this machine's apt)")
    group.add_argument(
        "--pockets",
        metavar="LIST",
        help="beside the release: updates,security (the default), either of them, or none",
    )
    group.add_argument("--timezone", metavar="ZONE", help="for example Europe/Berlin (default: UTC)")
    group.add_argument("--kernel-argument", action="append", default=[], metavar="WORD", help="repeatable")
    group.add_argument("--root-size", metavar="SIZE", help="the least size of a root partition")
    group.add_argument("--no-cache", action="store_true", help="set Debian up anew although the cache has it")


def execute(options: argparse.Namespace) -> int:
    """Carry it out."""
    from armvm.cli.terminal import notes, steps
    from armvm.image.build import build_image
    from armvm.machine.terminal import ending_on_signals

    output: Path = options.output
    if output.exists() and not options.force:
        raise OutputError(f"{output} is already there", hint="--force replaces it")
    require_no_instances(output, options, what="replaced")
    distribution, fields = _wanted(options)
    with ending_on_signals(), steps(quiet=options.quiet) as progress:
        if distribution is not None:
            from armvm.distribution.build import build_distribution

            states = tuple(architecture.state for architecture in distribution.architectures)
            build_distribution(
                distribution,
                fields,
                output,
                timestamp=timestamp(),
                epoch=timestamp() if "SOURCE_DATE_EPOCH" in os.environ else None,
                renew=options.no_cache,
                overwrite=options.force,
                progress=progress,
                notes=notes(quiet=options.quiet),
            )
        else:
            recipe = _recipe(fields, options)
            states = recipe.states
            build_image(recipe, output, timestamp=timestamp(), overwrite=options.force, progress=progress)
    if not options.quiet:
        label = " and ".join(state.label for state in states)
        size = format_size(output.stat().st_blocks * 512)
        print(f"{output}: {fields.get('format', 'raw')} image for {label}, {size} on disk")
    return 0


def _recipe(fields: RecipeFields, options: argparse.Namespace) -> Recipe:
    from armvm.errors import InputError
    from armvm.image.recipe import Recipe

    try:
        return Recipe(**fields)
    except UsageError as error:
        if options.recipe is None:
            raise
        raise InputError(error.message, subject=str(options.recipe), hint=error.hint) from error


def _wanted(options: argparse.Namespace) -> tuple[DistributionRecipe | None, RecipeFields]:
    """What is to be built: the recipe file's, with the options before it."""
    from armvm.distribution.recipe import parse_distribution
    from armvm.image.recipe import EspFile

    efi = {state: Path(value) for state, value in map(_with_state, options.efi)}
    given: dict[str, object] = {
        "efi": efi,
        "kernels": _kernels(options),
        "esp_files": (
            *(EspFile(Path(tree), "/") for tree in map(_folder, options.esp_tree)),
            *map(_esp_file, options.esp_file),
        ),
        "root": options.root,
        "esp_label": options.esp_label,
        "root_label": options.root_label,
        "size_bytes": parse_size(options.size) if options.size else None,
        "esp_size_bytes": parse_size(options.esp_size) if options.esp_size else None,
        "sector_size": options.sector_size,
        "format": options.format,
    }
    chosen = {key: value for key, value in given.items() if value}
    distribution, fields = (None, {}) if options.recipe is None else parse_distribution(options.recipe)
    if options.recipe is None:
        fields["format"] = "qcow2" if options.output.suffix.lower() == ".qcow2" else "raw"
    fields.update(chosen)  # type: ignore[typeddict-item]  # the keys are those of RecipeFields
    return _distribution(options, distribution), fields


def _distribution(options: argparse.Namespace, base: DistributionRecipe | None) -> DistributionRecipe | None:
    """The distribution of the recipe file with what the options say, or the options' alone; None without any."""
    from armvm.distribution.recipe import DistributionRecipe, parse_architectures

    given: dict[str, object] = {
        "source": options.source,
        "architectures": parse_architectures(options.arch),
        "packages": tuple(options.package),
        "hostname": options.hostname,
        "users": _users(options),
        "ssh": options.ssh or bool(options.ssh_key),
        "cloud_init": options.cloud_init,
        "mirror": options.mirror,
        "pockets": None if options.pockets is None else tuple(options.pockets.split(",")),
        "timezone": options.timezone,
        "kernel_arguments": tuple(options.kernel_argument),
        "root_size_bytes": parse_size(options.root_size) if options.root_size else None,
    }
    chosen = {key: value for key, value in given.items() if value}
    if chosen.get("pockets") == ("none",):
        chosen["pockets"] = ()
    if base is None and options.source is None:
        if chosen:
            option = next(iter(chosen)).replace("_", "-")
            raise UsageError(f"{option} is for the image of a distribution", hint="say which: --from debian")
        return None
    return replace(base or DistributionRecipe(), **chosen)  # type: ignore[arg-type]


def _users(options: argparse.Namespace) -> tuple[User, ...]:
    from armvm.distribution.recipe import User, read_password_hash, read_ssh_keys

    if options.user is None and not options.ssh_key and options.password_hash_file is None:
        return ()
    name, *groups = (options.user or "root").split(":")
    keys = tuple(key for file in options.ssh_key for key in read_ssh_keys(file))
    password = None if options.password_hash_file is None else read_password_hash(options.password_hash_file)
    return (User(name, keys, password, tuple(groups)),)


def _kernels(options: argparse.Namespace) -> dict[ExecutionState, KernelRecipe]:
    from armvm.image.build import kernel_state
    from armvm.image.recipe import KernelRecipe

    kernels: dict[ExecutionState, Path] = {}
    for text in options.kernel:
        state, value = _maybe_state(text)
        path = Path(value)
        state = state or kernel_state(path)
        if state in kernels:
            raise UsageError(f"two kernels for {state.label}: {kernels[state]} and {path}")
        kernels[state] = path
    stubs = {state: Path(value) for state, value in map(_with_state, options.stub)}
    initrds: dict[ExecutionState, list[Path]] = {state: [] for state in kernels}
    for text in options.initrd:
        state, value = _maybe_state(text)
        initrds[_only(state, kernels, "--initrd")].append(Path(value))
    command_lines: dict[ExecutionState, str] = {}
    for text in options.cmdline:
        state, value = _maybe_state(text)
        for each in [state] if state else list(kernels):  # one for all is meant for all
            if each not in kernels:
                raise UsageError(f"--cmdline for {each.label}, but no kernel for it")
            command_lines[each] = value
    for state in stubs:
        _only(state, kernels, "--stub")
    if options.cmdline and not kernels:
        raise UsageError("--cmdline goes with --kernel")
    return {
        state: KernelRecipe(path, tuple(initrds[state]), command_lines.get(state), stubs.get(state))
        for state, path in kernels.items()
    }


def _only(state: ExecutionState | None, kernels: dict[ExecutionState, Path], option: str) -> ExecutionState:
    """The kernel that an option speaks of. Raises UsageError when that is not clear."""
    if state is None and len(kernels) == 1:
        return next(iter(kernels))
    if state in kernels:
        return state
    if not kernels:
        raise UsageError(f"{option} goes with --kernel")
    raise UsageError(f"{option}: for which of the kernels?", hint=f"write {option} aarch64=FILE (states: {_STATES})")


def _maybe_state(text: str) -> tuple[ExecutionState | None, str]:
    word, equals, rest = text.partition("=")
    for state in ExecutionState:
        if equals and word == state.value:
            return state, rest
    return None, text


def _with_state(text: str) -> tuple[ExecutionState, str]:
    state, value = _maybe_state(text)
    if state is None:
        raise UsageError(f"not STATE=FILE: {text!r}", hint=f"states: {_STATES}; for example aarch64={text}")
    return state, value


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise UsageError(f"--esp-tree takes a folder: {text}")
    return text


def _esp_file(text: str) -> EspFile:
    from armvm.image.recipe import EspFile

    source, colon, destination = text.rpartition(":")
    if not colon or not source or not destination:
        raise UsageError(f"not FILE:DEST: {text!r}", hint="for example --esp-file grub.cfg:/EFI/debian/grub.cfg")
    if not Path(source).exists():
        raise UsageError(f"--esp-file: there is no {source}")
    return EspFile(Path(source), destination)
