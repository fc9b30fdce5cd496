"""The distribution's part of a recipe: every key known, every value of its kind, nothing secret on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.distribution.recipe import (
    Architecture,
    DistributionRecipe,
    SourceKind,
    User,
    parse_architectures,
    parse_distribution,
    read_ssh_keys,
)
from armvm.errors import InputError, UsageError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl alice@example"
WHOLE = f"""
size = "8G"
format = "qcow2"
[distribution]
from = "debian:12"
architectures = ["both"]
packages = ["nginx", "vim-tiny=2:9.0"]
hostname = "web.example"
ssh = true
cloud-init = true
mirror = "https://mirror.example/debian"
pockets = ["security"]
locale = "de_DE.UTF-8"
timezone = "Europe/Berlin"
kernel-arguments = ["quiet", "panic=10"]
root-size = "3G"
[[distribution.users]]
name = "alice"
ssh-keys = ["{KEY}"]
password-hash-file = "hash"
groups = ["adm"]
sudo = true
"""


def _parse(tmp_path: Path, text: str) -> DistributionRecipe:
    path = tmp_path / "image.toml"
    path.write_text(text)
    recipe, _ = parse_distribution(path)
    assert recipe is not None
    return recipe


def test_a_whole_recipe(tmp_path: Path) -> None:
    (tmp_path / "hash").write_text("$6$salt$0123456789abcdef\n")
    recipe = _parse(tmp_path, WHOLE)
    assert recipe == DistributionRecipe(
        source="debian:12",
        architectures=(Architecture.ARM64, Architecture.ARMHF),
        packages=("nginx", "vim-tiny=2:9.0"),
        hostname="web.example",
        users=(User("alice", (KEY,), "$6$salt$0123456789abcdef", ("adm", "sudo")),),
        ssh=True,
        cloud_init=True,
        mirror="https://mirror.example/debian",
        pockets=("security",),
        locale="de_DE.UTF-8",
        timezone="Europe/Berlin",
        kernel_arguments=("quiet", "panic=10"),
        root_size_bytes=3 << 30,
    )
    assert recipe.origin == (SourceKind.DEBIAN, "bookworm")
    assert parse_distribution(tmp_path / "image.toml")[1]["size_bytes"] == 8 << 30


def test_the_image_part_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "image.toml"
    path.write_text("[efi]\naarch64 = 'x.efi'\n")
    recipe, fields = parse_distribution(path)
    assert recipe is None
    assert list(fields["efi"].values()) == [tmp_path / "x.efi"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("form = 'debian'", r"'distribution\.form'"),
        ("from = 'gentoo'", "gentoo"),
        ("from = 'debian:Book Worm'", "release"),
        ("from = 'oci:'", "which file"),
        ("architectures = ['amd64']", "amd64"),
        ("architectures = []", "arm64, armhf, or both"),
        ("packages = ['-oAPT::x']", "package"),
        ("packages = 'vim'", r"distribution\.packages is wrong"),
        ("hostname = 'a b'", "hostname"),
        ("mirror = 'ftp://x y'", "mirror"),
        ('mirror = "http://x\\ndeb evil"', "mirror"),
        ("pockets = ['backports']", "backports"),
        ("ssh = 1", r"distribution\.ssh is wrong"),
        ("kernel-arguments = ['a\" evil']", "kernel argument"),
        ("timezone = '../../etc/shadow'", "time zone"),
        ("users = [{ name = 'Bad Name' }]", "user name"),
        ("users = [{ name = 'a', password-hash = 'secret' }]", "no hash"),
        ("users = [{ name = 'a', ssh-keys = ['hello'] }]", "ssh public key"),
        ("users = [{ name = 'a', pasword = 'x' }]", r"distribution\.users\.pasword"),
        ("users = [{ name = 'a' }, { name = 'a' }]", "same name"),
        ("from = 'oci:x'\npackages = ['vim']", "packages: only a Debian"),
        ("from = 'tar:x'\narchitectures = ['both']", "one architecture"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        _parse(tmp_path, f"[distribution]\n{text}\n")
    assert "secret" not in str(caught.value)


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    assert _parse(tmp_path, "[distribution]\nfrom = 'tar:a/root.tar'").origin == (
        SourceKind.TAR,
        str(tmp_path / "a/root.tar"),
    )


@pytest.mark.parametrize(
    ("source", "release"),
    [("debian", "trixie"), ("debian:stable", "trixie"), ("debian:13", "trixie"), ("debian:sid", "sid")],
)
def test_releases(source: str, release: str) -> None:
    assert DistributionRecipe(source).origin == (SourceKind.DEBIAN, release)


def test_architectures() -> None:
    assert parse_architectures(["armhf", "both"]) == (Architecture.ARMHF, Architecture.ARM64)
    with pytest.raises(UsageError):
        DistributionRecipe(architectures=(Architecture.ARM64, Architecture.ARM64))


def test_a_private_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "id"
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nxyz\n")
    with pytest.raises(InputError, match="private key") as caught:
        read_ssh_keys(path)
    assert "xyz" not in str(caught.value)
    path.write_text(f"# mine\n{KEY}\n\n")
    assert read_ssh_keys(path) == (KEY,)
