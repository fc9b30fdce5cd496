"""A Debian root tree as a tar archive, made by mmdebstrap: packages installed, initial RAM disk and GRUB's core made.

What is the same for every image of a release, an architecture and a choice of packages is done here, under emulation,
and kept in the user's cache; names, accounts and identities come later (``armvm.distribution.dress``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from armvm.atomic import sync_folder
from armvm.distribution.emulation import choose_emulation
from armvm.distribution.recipe import Architecture, DistributionRecipe
from armvm.distribution.sources import Archive, machine_archive, mirror_archive, require_keyring
from armvm.errors import ArmvmError, OutputError
from armvm.home import cache
from armvm.printable import printable
from armvm.process import ProgramError, find_program, require_program, run

_TIMEOUT_SECONDS = 2 * 3600.0
_KEPT = 8
"""How many root trees the cache keeps."""
_TAIL_LINES = 12
_REMOVAL_TRIES, _REMOVAL_PAUSE_SECONDS = 20, 0.25
_APT_KEYS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-",
    "Acquire::ForceIPv",
    "Acquire::http::T",
)
_BASE = (
    # A system that boots, finds its network, and can be looked after; no more.
    *("initramfs-tools", "zstd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "libpam-systemd", "udev"),
    *("dbus", "kmod", "iproute2", "iputils-ping", "netbase", "e2fsprogs", "dosfstools", "sudo", "ca-certificates"),
    "less",
)
_KERNELS = {Architecture.ARM64: "linux-image-arm64", Architecture.ARMHF: "linux-image-armmp-lpae"}
_GRUB = {Architecture.ARM64: ("grub-efi-arm64", "arm64-efi"), Architecture.ARMHF: ("grub-efi-arm", "arm-efi")}
GRUB_PREFIX = "/EFI/debian"
"""Where GRUB looks for its configuration on the ESP; Debian's own packages look there too."""
_GRUB_MODULES = (
    "part_gpt part_msdos fat ext2 search search_fs_uuid search_label configfile normal test echo linux gzio boot "
    "reboot halt ls cat regexp serial terminal sleep minicmd true loadenv probe"
)
_DRIVERS = (
    # What the specification names, and what reaches the disk elsewhere: none is loaded where it has no device.
    "virtio_pci virtio_mmio virtio_blk virtio_scsi virtio_net virtio_console virtio_balloon virtio_rng",
    "xen-blkfront xen-netfront xen-scsifront sd_mod sr_mod nvme ahci uas usb-storage xhci-pci",
    "hv_storvsc hv_netvsc vmw_pvscsi vmxnet3 ena",
    "ext4 vfat nls_ascii nls_cp437 crc32c_generic libcrc32c",
)
_HOOK = """#!/bin/sh
# The drivers that an image needs to start on every platform of the VM System Specification for ARM.
if [ "$1" = prereqs ]; then
\texit 0
fi
. /usr/share/initramfs-tools/hook-functions
"""

Progress = Callable[[str, int, int], None]
Notes = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """All that decides what a root tree will hold. ``sources`` is a sources.list, None for mmdebstrap's own."""

    release: str
    architecture: Architecture
    packages: tuple[str, ...]
    sources: str | None
    seeds: tuple[str, ...]
    files: tuple[tuple[str, int, str], ...]
    """Configuration that has to be there before the packages are set up: (path, mode, content)."""
    epoch: int | None
    """SOURCE_DATE_EPOCH; None when the build need not be reproducible."""

    @property
    def key(self) -> str:
        """What names it in the cache: the same key, the same tree (at the same state of the archive)."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]

    @property
    def grub_target(self) -> str:
        """GRUB's name of the platform."""
        return _GRUB[self.architecture][1]


def core_path(architecture: Architecture) -> str:
    """The path of GRUB's core image in the tree, where grub-install would put it."""
    return f"boot/grub/{_GRUB[architecture][1]}/core.efi"


def plan_bootstrap(
    recipe: DistributionRecipe, architecture: Architecture, *, epoch: int | None, archive: Archive | None = None
) -> Bootstrap:
    """What is to be made of ``recipe`` for ``architecture``. Looks at the machine's apt sources and nothing else."""
    _, release = recipe.origin
    if archive is None:
        archive = machine_archive() if recipe.mirror is None else mirror_archive(recipe.mirror)
    grub, _ = _GRUB[architecture]
    packages = [_KERNELS[architecture], *_BASE, grub, *recipe.packages]
    # An upgrade of GRUB in the guest renews the removable path and leaves the firmware's boot order alone.
    seeds = [f"{grub} grub2/force_efi_extra_removable boolean true", f"{grub} grub2/update_nvram boolean false"]
    if recipe.ssh:
        packages.append("openssh-server")
    if recipe.cloud_init:
        packages += ["cloud-init", "cloud-guest-utils"]
    if recipe.timezone is not None:
        packages.append("tzdata")
    if not recipe.locale.startswith("C"):
        packages.append("locales")
        seeds.append(f"locales locales/locales_to_be_generated multiselect {recipe.locale} UTF-8")
        seeds.append(f"locales locales/default_environment_locale select {recipe.locale}")
    files = (
        ("etc/initramfs-tools/conf.d/armvm", 0o644, "MODULES=list\nFSTYPE=ext4\nCOMPRESS=zstd\nCOMPRESSLEVEL=9\n"),
        ("etc/initramfs-tools/hooks/armvm", 0o755, _HOOK + "".join(f"manual_add_modules {d}\n" for d in _DRIVERS)),
    )
    return Bootstrap(
        release,
        architecture,
        tuple(dict.fromkeys(packages)),
        archive.lines(release, recipe.pockets),
        tuple(seeds),
        files,
        epoch,
    )


def cache_folder() -> Path:
    """Where root trees are kept between builds."""
    return cache() / "distributions"


@contextmanager
def bootstrapped(
    plan: Bootstrap,
    *,
    timestamp: int,
    renew: bool = False,
    progress: Progress | None = None,
    notes: Notes | None = None,
) -> Iterator[Path]:
    """The tar archive of ``plan``'s root tree, from the cache or made now; it stays there while the block runs.

    Raises MissingError for what the machine lacks, OutputError when mmdebstrap fails (with what it said last).
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / f"{plan.key}.lock").open("w")
    except OSError as error:
        raise OutputError(f"the cache cannot be used: {error.strerror}: {folder}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / f"{plan.key}.tar"
        if path.exists() and not renew:
            if notes is not None:
                age = _age(time.time() - path.stat().st_mtime)
                what = f"root tree of {plan.release} {plan.architecture.value}"
                notes(f"{what} from the cache, {age} old; --no-cache renews it")
        else:
            _make(plan, path, timestamp=timestamp, progress=progress, notes=notes)
            _forget_old(folder, path)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield path


def _make(plan: Bootstrap, path: Path, *, timestamp: int, progress: Progress | None, notes: Notes | None) -> None:
    require_program("mmdebstrap")
    require_keyring()
    emulation = choose_emulation(plan.architecture)
    if notes is not None:
        notes(f"setting up Debian {plan.release} for {plan.architecture.value} {emulation.how}: this takes minutes")
    # An ordinary user's mmdebstrap works under other user ids, which may not enter the user's own folders.
    root = os.geteuid() == 0
    prefix = f".bootstrap-{plan.key}-"
    for left in path.parent.glob(f"{prefix}*"):  # of a run that was killed: we hold the lock
        remove_tree(left)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent if root else None))
    beside = path.with_name(f".{path.name}.part")
    try:
        scratch.chmod(0o755)
        arguments = [*emulation.wrapper, "mmdebstrap", *_arguments(plan, scratch, setup=emulation.setup), str(beside)]
        if plan.sources is not None:
            sources = scratch / "sources.list"
            sources.touch(mode=0o600)  # a mirror's address may hold a password
            sources.write_text(plan.sources, encoding="ascii")
            arguments.append(str(sources))
        env = {"SOURCE_DATE_EPOCH": str(timestamp), "LC_ALL": "C.UTF-8", **({"TMPDIR": str(scratch)} if root else {})}
        run(
            arguments[0],
            arguments[1:],
            timeout_seconds=_TIMEOUT_SECONDS,
            env=env,
            on_stderr=_teller(f"{plan.release} {plan.architecture.value}", progress),
        )
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except ProgramError as error:
        raise explained(error, plan.release, plan.architecture) from error
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
        remove_tree(scratch)


def remove_tree(folder: Path) -> None:
    """Remove a scratch folder, in which programs that were just killed may write for another moment."""
    for _ in range(_REMOVAL_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVAL_PAUSE_SECONDS)


def _arguments(plan: Bootstrap, scratch: Path, *, setup: str | None) -> list[str]:
    """The arguments up to the target; what they name is written below ``scratch``. Nothing secret is in them."""
    overlay = scratch / "overlay"
    for name, mode, content in plan.files:
        file = overlay / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        file.chmod(mode)
    for folder in (overlay, *(path for path in overlay.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    (scratch / "seeds").write_text("".join(f"{seed}\n" for seed in plan.seeds), encoding="utf-8")
    (scratch / "apt.conf").write_text(apt_options(), encoding="utf-8")
    target = plan.grub_target
    modules, installed = f'"$1/usr/lib/grub/{target}"', f'"$1/boot/grub/{target}"'
    core = (
        f"grub-mkimage --format={target} --prefix={GRUB_PREFIX} --output=/boot/grub/{target}/core.efi {_GRUB_MODULES}"
    )
    return [
        "--mode=root" if os.geteuid() == 0 else "--mode=unshare",
        # The check wants arch-test, and a foreign architecture that is known to the host.
        "--skip=check/qemu,output/dev",
        f"--architectures={plan.architecture.value}",
        "--variant=apt",
        "--format=tar",
        f"--include={','.join(plan.packages)}",
        f"--aptopt={scratch / 'apt.conf'}",
        *([f"--setup-hook={setup}"] if setup is not None else []),
        f"--essential-hook=sync-in {shlex.quote(str(overlay))} /",
        f'--essential-hook=chroot "$1" debconf-set-selections < {shlex.quote(str(scratch / "seeds"))}',
        f"--customize-hook=mkdir -p {installed} && cp {modules}/*.mod {modules}/*.lst {installed}/",
        f'--customize-hook=chroot "$1" {core}',
        '--customize-hook=chroot "$1" systemctl enable systemd-networkd.service',
        '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
        plan.release,
    ]


def apt_options() -> str:
    """How this machine's apt reaches its archive (proxies and the like); it is not left in the image."""
    options = 'Acquire::Languages "none";\nAcquire::Retries "3";\n'
    if find_program("apt-config") is None:
        return options
    said = run("apt-config", ["dump", "Acquire"], timeout_seconds=60, check=False).stdout.decode(errors="replace")
    return options + "".join(f"{line}\n" for line in said.splitlines() if line.startswith(_APT_KEYS))


def _teller(what: str, progress: Progress | None) -> Callable[[str], None]:
    def tell(line: str) -> None:
        if progress is not None and line.startswith("I: ") and line.endswith("..."):
            progress(f"{what}: {printable(line[3:-3])}", 0, 1)

    return tell


def explained(error: ProgramError, release: str, architecture: Architecture) -> ArmvmError:
    """The failure in mmdebstrap's own last words, with what they mean where that is known."""
    lines = [printable(line) for line in error.stderr.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E: ", "Err:", "W: ", "dpkg: error"))] or lines
    said = "\n  ".join(telling[-_TAIL_LINES:]) or "it said nothing"
    text = "\n".join(lines)
    hint = None
    if "Unable to locate package" in text or "has no installation candidate" in text:
        hint = f"is the package's name right, and is it in {release} for {architecture.value}?"
    elif "does not have a Release file" in text or "404  Not Found" in text:
        hint = f"is there a release {release!r} at this mirror? `--from debian:12` and `--mirror` choose others"
    elif any(word in text for word in ("Temporary failure resolving", "Could not connect", "Connection timed out")):
        hint = "the mirror cannot be reached: is the network up? `--mirror` names another"
    elif "unexpected size" in text or "Hash Sum mismatch" in text:
        hint = "the mirror is inconsistent: try again later, or another `--mirror`, or fewer `--pockets`"
    elif "NO_PUBKEY" in text or "is not signed" in text:
        hint = "the mirror's signature is not one of Debian's: update debian-archive-keyring"
    return OutputError(f"Debian could not be set up: {error.message}\n  {said}", hint=hint)


def _forget_old(folder: Path, newest: Path) -> None:
    """Keep the cache small: only the newest root trees stay."""
    trees = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in trees[_KEPT:]:
        if path != newest:
            path.unlink(missing_ok=True)


def _age(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "less than a minute"
