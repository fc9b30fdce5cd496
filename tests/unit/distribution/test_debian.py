"""What is asked of mmdebstrap, where its packages come from, and what its failures come to. Nothing is set up here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from armvm.distribution import debian, emulation
from armvm.distribution.debian import bootstrapped, plan_bootstrap
from armvm.distribution.recipe import Architecture, DistributionRecipe
from armvm.distribution.sources import Archive, machine_archive, mirror_archive, require_keyring
from armvm.errors import ArmvmError, MissingError, OutputError
from armvm.process import ProgramError

ARM64, ARMHF = Architecture.ARM64, Architecture.ARMHF
ARCHIVE = Archive("http://mirror.example/debian", "http://mirror.example/debian-security")
RECIPE = DistributionRecipe("debian:bookworm", (ARM64,), packages=("vim",), ssh=True, locale="de_DE.UTF-8")


def test_a_plan() -> None:
    plan = plan_bootstrap(RECIPE, ARM64, epoch=1, archive=ARCHIVE)
    assert {"linux-image-arm64", "initramfs-tools", "grub-efi-arm64", "vim", "openssh-server", "locales"} <= set(
        plan.packages
    )
    assert plan.sources is not None
    assert [line.split()[2:] for line in plan.sources.splitlines()] == [
        ["http://mirror.example/debian", "bookworm", "main"],
        ["http://mirror.example/debian", "bookworm-updates", "main"],
        ["http://mirror.example/debian-security", "bookworm-security", "main"],
    ]
    assert "linux-image-armmp-lpae" in plan_bootstrap(RECIPE, ARMHF, epoch=1, archive=ARCHIVE).packages
    hook = next(content for path, _, content in plan.files if path.endswith("hooks/armvm"))
    for driver in (
        "virtio_blk",
        "virtio_mmio",
        "virtio_net",
        "virtio_console",
        "virtio_balloon",
        "xen-blkfront",
        "ext4",
    ):
        assert driver in hook


def test_the_cache_knows_what_makes_a_difference() -> None:
    def key(recipe: DistributionRecipe = RECIPE, architecture: Architecture = ARM64, epoch: int | None = 1) -> str:
        return plan_bootstrap(recipe, architecture, epoch=epoch, archive=ARCHIVE).key

    keys = [
        key(),
        key(architecture=ARMHF),
        key(epoch=2),
        key(epoch=None),
        key(DistributionRecipe("debian:bookworm")),
        key(DistributionRecipe("debian:trixie")),
    ]
    assert len(set(keys)) == len(keys)
    same = DistributionRecipe(
        "debian:12", (ARM64, ARMHF), packages=("vim",), ssh=True, locale="de_DE.UTF-8", hostname="other"
    )
    assert key(same) == key(), "names and accounts are not set up under emulation"


def test_the_machines_own_archive(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example bookworm main\ndeb-src http://src.example sid main\n"
    )
    (tmp_path / "sources.list.d/other.list").write_text("deb http://vendor.example nodistro main\n")
    (tmp_path / "sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\n\n"
        "Types: deb\nURIs: http://s.example/x\nSuites: bookworm-security\nComponents: main\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example\nSuites: trixie\n"
    )
    assert machine_archive(tmp_path) == Archive("http://m.example/debian", "http://s.example/x")
    (tmp_path / "sources.list").write_text("deb [arch=amd64 signed-by=/x] http://first.example trixie main # mine\n")
    assert machine_archive(tmp_path).main == "http://first.example"
    (tmp_path / "sources.list.d/debian.sources").unlink()
    (tmp_path / "sources.list").write_text("deb http://archive.example/ubuntu noble main\n")
    assert machine_archive(tmp_path) == Archive()
    assert machine_archive(tmp_path).lines("bookworm", ()) is None, "mmdebstrap knows a mirror by itself"


def test_pockets_and_mirrors() -> None:
    assert mirror_archive("https://m.example/debian/") == Archive(
        "https://m.example/debian", "https://m.example/debian-security"
    )
    assert mirror_archive("file:///srv/mirror") == Archive("file:///srv/mirror", None)
    for release, pockets, count in (
        ("bookworm", (), 1),
        ("sid", ("updates", "security"), 1),
        ("trixie", ("updates",), 2),
    ):
        assert len((ARCHIVE.lines(release, pockets) or "").splitlines()) == count


def test_the_arguments(tmp_path: Path) -> None:
    recipe = DistributionRecipe("debian:bookworm", mirror="https://user:secret@m.example/debian")
    plan = plan_bootstrap(recipe, ARM64, epoch=1)
    arguments = debian._arguments(plan, tmp_path, setup=None)
    assert not any("secret" in argument for argument in arguments), "what is on a command line is everybody's"
    assert "--architectures=arm64" in arguments
    assert any(argument.startswith("--skip=check/qemu") for argument in arguments)
    hook = tmp_path / "overlay/etc/initramfs-tools/hooks/armvm"
    assert os.access(hook, os.X_OK)
    assert arguments[-1] == "bookworm"


def test_registrations_are_what_the_kernel_takes() -> None:
    text = emulation.registration(ARM64, "/usr/bin/qemu-aarch64-static")
    _, name, kind, offset, magic, mask, interpreter, flags = text.split(":")
    assert (name, kind, offset, interpreter, flags) == ("armvm-arm64", "M", "", "/usr/bin/qemu-aarch64-static", "PF")
    assert magic.count("\\x") == mask.count("\\x") == 20
    assert magic.endswith("\\x02\\x00\\xb7\\x00")
    assert emulation.registration(ARMHF, "/q").split(":")[4].endswith("\\x02\\x00\\x28\\x00")
    assert len(text) < 256, "fs/binfmt_misc.c, MAX_REGISTER_LENGTH"


def test_without_the_keys_of_debian(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        require_keyring(tmp_path / "no.gpg")
    assert caught.value.component == "debian-archive-keyring"


def test_without_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "find_program", lambda _name: None)
    monkeypatch.setattr(emulation, "MOUNT_POINT", "/nowhere")
    monkeypatch.setattr(emulation, "_MACHINES", {ARM64: (), ARMHF: ()})
    with pytest.raises(MissingError, match="armhf cannot be run here") as caught:
        emulation.choose_emulation(ARMHF)
    assert caught.value.component == "qemu-arm-static"


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("E: Unable to locate package nginxx\nE: apt failed\n", "is the package's name right"),
        ("E: The repository 'http://m trixy Release' does not have a Release file.\n", "--from debian:12"),
        ("Err:1 http://m\n  Temporary failure resolving 'm'\n", "network"),
        ("E: File has unexpected size (1 != 2). Mirror sync in progress?\n", "inconsistent"),
        ("E: The following signatures couldn't be verified: NO_PUBKEY 1\n", "debian-archive-keyring"),
    ],
)
def test_failures_are_explained(said: str, hint: str) -> None:
    plan = plan_bootstrap(RECIPE, ARM64, epoch=1, archive=ARCHIVE)
    failed = ProgramError(
        "mmdebstrap failed (exit 25)", program="mmdebstrap", stderr=f"I: x\n{said}\x1b[31m", returncode=25
    )
    error: ArmvmError = debian.explained(failed, plan.release, plan.architecture)
    assert said.splitlines()[0] in error.message
    assert "\x1b" not in error.message
    assert hint in (error.hint or "")


def _fake(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named mmdebstrap, in place of the real one, and a cache of its own."""
    (folder / "bin").mkdir()
    program = folder / "bin/mmdebstrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(debian, "choose_emulation", lambda _architecture: emulation.Emulation("by a stand-in"))
    monkeypatch.setattr(debian, "require_keyring", lambda: None)


_WRITE = 'for last; do before=$target; target=$last; done; echo run >> "$0.runs"'


def test_a_root_tree_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path, f'{_WRITE}; echo "I: installing packages..." >&2; echo tree > "$before"', monkeypatch)
    plan = plan_bootstrap(RECIPE, ARM64, epoch=1, archive=ARCHIVE)
    told: list[str] = []
    steps: list[str] = []
    for renew in (False, False, True):
        with bootstrapped(
            plan, timestamp=1, renew=renew, notes=told.append, progress=lambda step, *_: steps.append(step)
        ) as path:
            assert path.read_text() == "tree\n"
    assert (tmp_path / "bin/mmdebstrap.runs").read_text().count("run") == 2
    assert "from the cache, less than a minute old" in told[1]
    assert "bookworm arm64: installing packages" in steps
    assert sorted(path.suffix for path in debian.cache_folder().iterdir()) == [".lock", ".tar"], "nothing else is left"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path, f'{_WRITE}; echo half > "$before"; echo "E: no such luck" >&2; exit 25', monkeypatch)
    plan = plan_bootstrap(RECIPE, ARM64, epoch=1, archive=ARCHIVE)
    with pytest.raises(OutputError, match="no such luck"), bootstrapped(plan, timestamp=1):
        pass
    assert [path.suffix for path in debian.cache_folder().iterdir()] == [".lock"]
