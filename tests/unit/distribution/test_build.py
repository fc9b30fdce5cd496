"""Distributions' images from small trees: all at its place, nothing assumed, and the same every time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import yaml

from armvm.cli.main import main
from armvm.disk.detect import open_disk
from armvm.distribution import build, dress
from armvm.distribution.build import build_distribution
from armvm.distribution.debian import Bootstrap
from armvm.distribution.dress import Identity
from armvm.distribution.grub import find_kernels, menu
from armvm.distribution.recipe import Architecture, DistributionRecipe, User
from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.guest.check import check_image
from armvm.guid import LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE
from armvm.image.contents import ImageContents
from armvm.image.recipe import RecipeFields
from armvm.image.rootfs import staged
from armvm.image.staging import StagedTree
from armvm.process import run
from armvm.spec.verdict import Level
from tools.debian_trees import debian_tar
from tools.oci_images import OciLayout
from tools.pe_images import linux_kernel

ARM64, ARMHF = Architecture.ARM64, Architecture.ARMHF
TIME = 1_750_000_000
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl alice@example"
HASH = "$6$salt$0123456789abcdef"
IDENTITY = Identity(UUID(int=7), 0xABCD1234)


@contextmanager
def _dressed(tmp_path: Path, recipe: DistributionRecipe) -> Iterator[StagedTree]:
    tar = debian_tar(tmp_path / "root.tar")
    with staged(tar, scratch=tmp_path) as tree:
        dress.dress(tree, recipe, IDENTITY, timestamp=TIME)
        yield tree


def _text(tree: StagedTree, path: str) -> str:
    content = tree.read(path, max_bytes=1 << 20)
    assert content is not None, path
    return content.decode()


def test_a_tree_becomes_one_images_own(tmp_path: Path) -> None:
    users = (User("alice", (KEY,), groups=("sudo",)), User("bob", (), HASH))
    recipe = DistributionRecipe("debian:12", hostname="web.example", users=users, timezone="Europe/Berlin")
    with _dressed(tmp_path, recipe) as tree:
        assert _text(tree, "etc/hostname") == "web.example\n"
        assert "127.0.1.1 web.example web\n" in _text(tree, "etc/hosts")
        assert f"UUID={IDENTITY.root} / ext4" in _text(tree, "etc/fstab")
        assert "UUID=ABCD-1234 /boot/efi vfat" in _text(tree, "etc/fstab")
        assert _text(tree, "etc/machine-id") == ""
        assert tree.lookup("etc/ssh/ssh_host_ed25519_key") is None
        assert "ssh-keygen -q -t" in _text(tree, "etc/systemd/system/ssh.service.wants/armvm-ssh-host-keys.service")
        usr = tree.lookup("usr")
        for mark in ("etc/.updated", "var/.updated"):
            entry = tree.lookup(mark)
            assert entry is not None
            assert usr is not None
            assert entry.mtime >= usr.mtime
            assert f"TIMESTAMP_NSEC={entry.mtime}000000000\n" in _text(tree, mark)
        assert tree.lookup("etc/passwd-") is None
        assert _text(tree, "var/log/apt/term.log") == ""
        assert _text(tree, "etc/passwd").splitlines()[2:] == [
            "alice:x:1000:1000::/home/alice:/bin/bash",
            "bob:x:1001:1001::/home/bob:/bin/bash",
        ]
        assert "alice:!:20254:0:99999:7:::" in _text(tree, "etc/shadow")
        assert f"bob:{HASH}:20254:" in _text(tree, "etc/shadow")
        assert "sudo:x:27:alice\n" in _text(tree, "etc/group")
        shadow, keys = tree.lookup("etc/shadow"), tree.lookup("home/alice/.ssh/authorized_keys")
        assert shadow is not None
        assert keys is not None
        assert (shadow.mode & 0o777, shadow.gid) == (0o640, 42), "owners and modes stay"
        assert (keys.mode & 0o777, keys.uid) == (0o600, 1000)
        assert _text(tree, "home/alice/.profile") == "# profile\n"
        assert "NOPASSWD" in _text(tree, "etc/sudoers.d/armvm-alice")
        assert tree.lookup("etc/sudoers.d/armvm-bob") is None
        assert tree.lookup("dev") is not None
        links = {entry.path: entry.link_target for entry in tree.finish().entries if entry.link_target}
        assert links["etc/localtime"] == "/usr/share/zoneinfo/Europe/Berlin"
        assert links["etc/resolv.conf"] == "../run/systemd/resolve/stub-resolv.conf"


def test_root_gets_keys_and_a_password_only(tmp_path: Path) -> None:
    recipe = DistributionRecipe("debian:12", users=(User("root", (KEY,), HASH),))
    with _dressed(tmp_path, recipe) as tree:
        assert f"root:{HASH}:20000:" in _text(tree, "etc/shadow")
        assert _text(tree, "root/.ssh/authorized_keys") == f"{KEY}\n"
        assert len(_text(tree, "etc/passwd").splitlines()) == 2


@pytest.mark.parametrize(
    ("user", "words"), [(User("daemon"), "already"), (User("a", groups=("docker",)), "no group docker")]
)
def test_users_that_cannot_be_had(tmp_path: Path, user: User, words: str) -> None:
    recipe = DistributionRecipe("debian:12", users=(user,))
    with pytest.raises(UsageError, match=words), _dressed(tmp_path, recipe):
        pass


def test_the_menu_boots_the_newest_kernel_on_every_console() -> None:
    kernels = find_kernels(["vmlinuz-6.9.1", "vmlinuz-6.10.0", "initrd.img-6.10.0", "System.map-6.10.0", "grub"])
    assert [kernel.version for kernel in kernels] == ["6.10.0", "6.9.1"]
    text = menu(kernels, UUID(int=7), ("quiet",), name="Debian")
    line = re.search(r"linux /boot/vmlinuz-6\.10\.0 (.*)", text)
    assert line is not None
    assert line[1] == f"root=UUID={UUID(int=7)} ro console=hvc0 console=ttyAMA0 quiet"
    assert text.count("initrd ") == 1


@pytest.fixture
def small_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Debian is set up in no time, and has little in it."""

    @contextmanager
    def bootstrapped(plan: Bootstrap, **_options: object) -> Iterator[Path]:
        yield debian_tar(tmp_path / f"{plan.architecture.value}.tar", plan.architecture)

    monkeypatch.setattr(build, "bootstrapped", bootstrapped)


def _read_esp(image: Path, path: str) -> str:
    with open_disk(image) as disk:
        volume = ImageContents(disk).esps[0].volume
        assert volume is not None
        entry = volume.lookup(path)
        assert entry is not None
        return volume.read(entry).decode()


def _ext4(image: Path, number: int, path: Path) -> Path:
    """A partition of a raw image as a file of its own."""
    with open_disk(image) as disk:
        partition = ImageContents(disk).table.partitions[number - 1]
        path.write_bytes(disk.read(partition.offset_bytes(512), partition.size_bytes(512)))
    return path


@pytest.mark.usefixtures("small_debian")
def test_one_image_serves_both_states(tmp_path: Path) -> None:
    image = tmp_path / "both.img"
    recipe = DistributionRecipe("debian:12", (ARM64, ARMHF), root_size_bytes=64 << 20)
    fields: RecipeFields = {"size_bytes": 300 << 20}
    build_distribution(recipe, fields, image, timestamp=TIME)
    with open_disk(image) as disk:
        contents = ImageContents(disk)
        assert set(contents.boot_programs) == set(ExecutionState)
        esp, *roots = contents.table.partitions
        assert [root.type_guid for root in roots] == [LINUX_ROOT_ARM64_TYPE, LINUX_ROOT_ARM_TYPE]
        assert abs(roots[0].size_bytes(512) - roots[1].size_bytes(512)) <= 2 << 20, "they share what the disk has"
        assert sum(partition.size_bytes(512) for partition in (esp, *roots)) >= 296 << 20
        assert not check_image(disk).failed(Level)
    config = _read_esp(image, "EFI/debian/grub.cfg")
    for number, cpu in ((2, "arm64"), (3, "arm")):
        root = _ext4(image, number, tmp_path / f"{number}.ext4")
        assert run("e2fsck", ["-fn", str(root)], timeout_seconds=60).returncode == 0
        shown = run("dumpe2fs", ["-h", str(root)], timeout_seconds=60).stdout.decode()
        uuid = re.search(r"Filesystem UUID: +(\S+)", shown)
        assert uuid is not None
        assert f'if [ "$grub_cpu" = "{cpu}" ]; then\n  search --no-floppy --fs-uuid --set=root {uuid[1]}' in config
        fstab = run("debugfs", ["-R", "cat /etc/fstab", str(root)], timeout_seconds=60).stdout.decode()
        assert f"UUID={uuid[1]} / ext4" in fstab
        menu_text = run("debugfs", ["-R", "cat /boot/grub/grub.cfg", str(root)], timeout_seconds=60).stdout.decode()
        assert f"root=UUID={uuid[1]}" in menu_text
    first = hashlib.sha256(image.read_bytes()).hexdigest()
    build_distribution(recipe, fields, image, timestamp=TIME, overwrite=True)
    assert hashlib.sha256(image.read_bytes()).hexdigest() == first, "reproducible"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left"


@pytest.mark.usefixtures("small_debian")
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key.pub"
    key.write_text(KEY)
    image = tmp_path / "debian.img"
    arguments = ["--from", "debian:12", "--user", "alice:sudo", "--ssh-key", str(key), "--root-size", "64M"]
    assert main(["build", "-o", str(image), *arguments]) == 0
    assert "raw image for AArch64" in capsys.readouterr().out
    root = _ext4(image, 2, tmp_path / "root.ext4")
    keys = run("debugfs", ["-R", "cat /home/alice/.ssh/authorized_keys", str(root)], timeout_seconds=60)
    assert keys.stdout.decode() == f"{KEY}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hostname", "x"], "--from debian"),
        (["--from", "slackware"], "slackware"),
        (["--from", "debian", "--arch", "arm64", "--kernel", "{kernel}"], "no --efi, --kernel"),
        (["--from", "tree:{tree}"], "no kernel in it"),
        (["--from", "tree:{tree}", "--package", "vim"], "packages: only a Debian"),
        (["--from", "oci:{tree}"], "no container image"),
        (["--from", "tar:/nowhere.tar"], "no such file"),
        (["--from", "tree:{tree}", "--arch", "armhf", "--kernel", "{kernel}"], "AArch32"),
    ],
)
@pytest.mark.usefixtures("small_debian")
def test_contradictions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "vmlinuz").write_bytes(linux_kernel())
    places = {"tree": str(tmp_path / "tree"), "kernel": str(tmp_path / "vmlinuz")}
    given = [argument.format(**places) for argument in arguments]
    assert main(["build", "-o", str(tmp_path / "x.img"), *given]) in (2, 65)
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree", "vmlinuz"]


FEDORA = [
    ("boot/vmlinuz-0-rescue-1", b"rescue"),
    ("boot/vmlinuz-6.9.0", b"old"),
    ("boot/vmlinuz-6.10.2", linux_kernel()),
    ("boot/initramfs-6.10.2.img", b"initrd"),
    ("etc/os-release", b'PRETTY_NAME="Other Linux"\n'),
]


def test_another_distribution_boots_from_a_unified_kernel_image(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "image")
    layout.image(FEDORA, [("etc/hostname", b"x\n")])
    image = tmp_path / "other.img"
    recipe = DistributionRecipe(f"oci:{layout.folder}", kernel_arguments=("quiet",), root_size_bytes=64 << 20)
    build_distribution(recipe, {}, image, timestamp=TIME)
    with open_disk(image) as disk:
        contents = ImageContents(disk)
        program = contents.boot_programs[ExecutionState.AARCH64].program
        assert program is not None
        assert program.os_name == "Other Linux"
        guid = contents.table.partitions[1].unique_guid
        assert program.command_line == f"root=PARTUUID={guid} rw console=hvc0 console=ttyAMA0 quiet"
        assert not check_image(disk).failed(Level)


def test_a_tree_on_the_host_stays_as_it_is(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name, content in FEDORA:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    recipe = DistributionRecipe(f"tree:{tree}", root_size_bytes=64 << 20)
    build_distribution(recipe, {}, tmp_path / "other.img", timestamp=TIME)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    assert all(path.stat().st_nlink == 1 for path in tree.rglob("*") if path.is_file())


def test_an_image_with_cloud_init_is_quick_and_keeps_what_it_is(tmp_path: Path) -> None:
    with _dressed(tmp_path, DistributionRecipe("debian:12", cloud_init=True)) as tree:
        config = yaml.safe_load(_text(tree, "etc/cloud/cloud.cfg.d/90_armvm.cfg"))
        assert config["apt"] == {"preserve_sources_list": True}
        assert config["ssh_genkeytypes"] == ["ed25519", "ecdsa"]
        assert "datasource_list" not in config
        unit = _text(tree, "etc/systemd/system/ssh.service.wants/armvm-ssh-host-keys.service")
        assert "After=cloud-init.service" in unit
        assert "ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key" in unit
        assert "--any" in _text(tree, "etc/systemd/system/systemd-networkd-wait-online.service.d/armvm.conf")
