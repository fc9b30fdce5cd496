"""What we build, judged by others: sgdisk, fsck.vfat, mtools, e2fsck, debugfs, qemu-img, objdump."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.disk.gpt import read_partition_table
from armvm.execution import ExecutionState
from conftest import Armvm
from tools.installer import find_installer
from tools.pe_images import linux_kernel, make_pe

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}


def _run(*command: str | Path) -> str:
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def _partition(image: Path, number: int, to: Path) -> Path:
    with open_disk(image) as disk:
        entry = read_partition_table(disk).partitions[number - 1]
        slice_ = entry.slice(disk)
        with to.open("wb") as file:
            for offset in range(0, slice_.size_bytes, 1 << 20):
                file.write(slice_.read(offset, min(1 << 20, slice_.size_bytes - offset)))
    return to


def test_the_installer_image_is_sound_in_everybodys_eyes(armvm: Armvm, tmp_path: Path) -> None:
    installer = find_installer(ExecutionState.AARCH64)
    image = tmp_path / "disk.img"
    result = armvm("build", "-o", image, "--kernel", installer.kernel, "--initrd", installer.initrd, env=EPOCH)
    assert result.returncode == 0, result.stderr
    assert "No problems found" in _run("sgdisk", "-v", image)
    esp = _partition(image, 1, tmp_path / "esp")
    _run("fsck.vfat", "-n", esp)
    listing = _run("mdir", "-/", "-b", "-i", f"{image}@@1M", "::")
    assert "::/EFI/BOOT/BOOTAA64.EFI" in listing
    _run("mcopy", "-i", f"{image}@@1M", "::/EFI/BOOT/BOOTAA64.EFI", tmp_path / "uki.efi")
    headers = _run("objdump", "-h", tmp_path / "uki.efi") if _knows_aarch64() else ""
    assert not headers or ".linux" in headers
    again = tmp_path / "again.img"
    armvm("build", "-o", again, "--kernel", installer.kernel, "--initrd", installer.initrd, env=EPOCH)
    assert again.read_bytes() == image.read_bytes()


def _knows_aarch64() -> bool:
    return "pei-aarch64" in _run("objdump", "-i")


def test_a_qcow2_image_is_sound_and_holds_the_same(armvm: Armvm, tmp_path: Path) -> None:
    program = tmp_path / "hello.efi"
    program.write_bytes(make_pe())
    for name in ("disk.img", "disk.qcow2"):
        result = armvm("build", "-o", tmp_path / name, "--efi", f"aarch64={program}", "--size", "1G", env=EPOCH)
        assert result.returncode == 0, result.stderr
    assert "No errors were found" in _run("qemu-img", "check", tmp_path / "disk.qcow2")
    _run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", tmp_path / "disk.img", tmp_path / "disk.qcow2")


@pytest.fixture(scope="module")
def root_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with everything that an ordinary user cannot lay out."""
    path = tmp_path_factory.mktemp("root") / "root.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.mtime = 1_600_000_000
            content = fields.pop("content", b"")
            assert isinstance(content, bytes)
            for key, value in fields.items():
                setattr(info, key, value)
            info.size = len(content)
            import io

            tar.addfile(info, io.BytesIO(content))

        add(".", type=tarfile.DIRTYPE, mode=0o755)
        add("./usr/bin", type=tarfile.DIRTYPE, mode=0o755)
        add("./bin", type=tarfile.SYMTYPE, linkname="usr/bin", mode=0o777)
        add("./bin/su", content=b"#!/bin/sh\n" * 2000, mode=0o4755)
        add("./usr/bin/su2", type=tarfile.LNKTYPE, linkname="bin/su")
        add("./home/me", type=tarfile.DIRTYPE, mode=0o700, uid=1000, gid=1000)
        add('./home/me/a "quoted" name', content=b"q", uid=70000, gid=1000, mode=0o600)
        add("./dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("./dev/initctl", type=tarfile.FIFOTYPE, mode=0o600)
        add("./usr/bin/ping", content=b"p" * 10, mode=0o755, pax_headers={"SCHILY.xattr.user.note": "hello"})
        add("./late", content=b"now", mtime=1_800_000_000)
        add("./etc/os-release", content=b'PRETTY_NAME="Archived"\n')
    return path


def test_a_root_file_system_from_an_archive(armvm: Armvm, tmp_path: Path, root_archive: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(linux_kernel())
    image = tmp_path / "disk.img"
    result = armvm("build", "-o", image, "--kernel", kernel, "--root", root_archive, env=EPOCH)
    assert result.returncode == 0, result.stderr
    assert "No problems found" in _run("sgdisk", "-v", image)
    root = _partition(image, 2, tmp_path / "root.ext4")
    _run("e2fsck", "-fn", root)

    def stat(name: str) -> str:
        return " ".join(_run("debugfs", "-R", f"stat {name}", root).split())

    assert "Mode: 04755" in stat("/usr/bin/su")
    assert "Links: 2" in stat("/usr/bin/su")
    assert "Inode: " + stat("/usr/bin/su").split()[1] in stat("/usr/bin/su2")
    assert "Type: symlink" in stat("/bin")
    assert "User: 1000 Group: 1000" in stat("/home/me")
    assert "Mode: 0700" in stat("/home/me")
    assert "User: 70000 Group: 1000" in stat('"/home/me/a ""quoted"" name"')
    assert "character special" in stat("/dev/null")
    assert "1:3" in stat("/dev/null").replace("01:03", "1:3")
    assert "FIFO" in stat("/dev/initctl")
    assert "0x5f5e1000" in stat("/usr/bin/su"), "mtime as in the archive"
    assert "0x6553f100" in stat("/late"), "a time after SOURCE_DATE_EPOCH becomes it"
    assert "hello" in _run("debugfs", "-R", "ea_get /usr/bin/ping user.note", root)
    _run("debugfs", "-R", f"dump /usr/bin/su {tmp_path / 'su'}", root)
    assert (tmp_path / "su").read_bytes() == b"#!/bin/sh\n" * 2000


def test_a_root_file_system_is_the_same_every_time(armvm: Armvm, tmp_path: Path, root_archive: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(linux_kernel())
    images = [tmp_path / "1.img", tmp_path / "2.img"]
    for image in images:
        assert armvm("build", "-o", image, "--kernel", kernel, "--root", root_archive, env=EPOCH).returncode == 0
    assert images[0].read_bytes() == images[1].read_bytes()
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        names = [f"file{index}" for index in range(40)]
        for name in reversed(names) if number else names:
            (folder / name).write_text(name)
            os.utime(folder / name, (1_600_000_000 + number, 1_600_000_000))
        os.utime(folder, (0, 1_600_000_000))
        assert (
            armvm("build", "-o", images[number], "--force", "--kernel", kernel, "--root", folder, env=EPOCH).returncode
            == 0
        )
    assert images[0].read_bytes() == images[1].read_bytes()


def test_an_ordinary_user_can_build_it_and_root_owns_it(tmp_path: Path, root_archive: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    import sys

    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(linux_kernel())
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "file").write_text("mine")
    for path in (tmp_path, kernel, folder, folder / "file", root_archive.parent, root_archive):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.chown(path, 65534, 65534)
    for parent in [*tmp_path.parents, *root_archive.parents]:
        if parent.stat().st_uid == 0 and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    code = (
        "import sys, os; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "from armvm.cli.main import main; sys.exit(main())"
    )
    if subprocess.run(
        [sys.executable, "-c", code.replace("main())", "main(['--version']))")],
        check=False,
        timeout=60,
        capture_output=True,
    ).returncode:
        pytest.skip("the interpreter or the repository is in a folder that only root may enter")
    for source in (folder, root_archive):
        image = tmp_path / f"{source.name}.img"
        result = subprocess.run(
            [sys.executable, "-c", code, "build", "-o", image, "--kernel", kernel, "--root", source],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        root = _partition(image, 2, tmp_path / "root.ext4")
        _run("e2fsck", "-fn", root)
        name = "/file" if source is folder else "/usr/bin/su"
        assert "User:     0   Group:     0" in _run("debugfs", "-R", f"stat {name}", root)
