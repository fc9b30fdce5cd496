"""``armvm vm create``, ``clone``, ``rename``, ``delete``, ``list``, ``show``; what keeps an image from being lost."""

from __future__ import annotations

import io
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from armvm.cli.main import main
from armvm.instance import seed, store
from armvm.machine.definition import Bus, UserNetwork
from armvm.units import MIB
from conftest import Armvm

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHlSgvY+W6FTH5r2ej92C9V+Nl3sql832w6eakH/6VEN ada@example"
ARCH = ("--arch", "aarch64")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(MIB) + b"content" + bytes(MIB - 7))
    return path


def vm(*arguments: str | Path) -> int:
    return main(["vm", *map(str, arguments)])


def created(image: Path, name: str = "web", *options: str | Path) -> store.Instance:
    assert vm("create", name, image, *ARCH, *options) == 0
    return store.find(name)


def test_what_users_expect_of_a_new_instance(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = created(image).machine()
    (nic,) = machine.nics
    assert isinstance(nic, UserNetwork)
    assert [forward.guest_port for forward in nic.forwards] == [22]
    assert str(nic.forwards[0].host_port) in capsys.readouterr().out
    assert str(nic.mac).startswith("52:54:00:")
    assert machine.rng
    assert machine.guest_agent
    assert machine.hotplug_ports == 4
    assert created(image, "mmio", "--bus", "mmio").machine().bus is Bus.MMIO


def test_the_machine_is_as_the_options_say(image: Path) -> None:
    options = ("--vcpus", "3", "--memory", "768M", "--ssh-port", "2222", "--forward", "8080:80", "--disk-size", "1G")
    instance = created(image, "web", *options)
    machine = instance.machine()
    assert (machine.vcpus, machine.memory_bytes) == (3, 768 * MIB)
    (nic,) = machine.nics
    assert isinstance(nic, UserNetwork)
    assert {(one.host_port, one.guest_port) for one in nic.forwards} == {(8080, 80), (2222, 22)}
    told = subprocess.check_output(["qemu-img", "info", "--output=json", str(instance.disk)], timeout=60)
    assert json.loads(told)["virtual-size"] == 1024 * MIB
    (nic,) = created(image, "none", "--ssh-port", "none").machine().nics
    assert isinstance(nic, UserNetwork)
    assert nic.forwards == ()


def test_what_cloud_init_is_told(image: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(KEY + "\n")
    (tmp_path / "password").write_text("correct horse\n")
    (tmp_path / "network").write_text("version: 2\n")
    instance = created(
        image,
        "web",
        *(
            "--user",
            "ada",
            "--ssh-key",
            tmp_path / "key.pub",
            "--ssh-key",
            KEY,
            "--password-file",
            tmp_path / "password",
        ),
        *("--packages", "nginx,vim", "--packages", "jq", "--run", "echo: hi", "--network-config", tmp_path / "network"),
    )
    files = seed.read(instance.folder / "seed.img")
    text = files.user_data.decode()
    assert text.count(KEY) == 2
    for word in ("- nginx", "- vim", "- jq", "'echo: hi'", "$6$"):
        assert word in text
    assert "correct horse" not in text
    assert files.network_config == b"version: 2\n"
    assert not (instance.folder / "id_ed25519").exists()
    judged = ["openssl", "passwd", "-6", "-salt", text.partition("$6$")[2].partition("$")[0], "correct horse"]
    assert subprocess.check_output(judged, text=True, timeout=60).strip() in text


def test_a_whole_user_data_file(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "user-data"
    path.write_text("#cloud-config\nhostname: x\n")
    instance = created(image, "web", "--user-data", path, "--user", "ada")
    assert seed.read(instance.folder / "seed.img").user_data == path.read_bytes()
    assert instance.definition().user == "ada"
    path.write_text("#cloud-config\n  - broken: [\n")
    assert vm("create", "db", image, *ARCH, "--user-data", path) == 65
    assert vm("create", "db", image, *ARCH, "--user-data", path, "--packages", "x") == 2
    assert vm("create", "db", image, *ARCH, "--user-data", tmp_path / "none") == 65
    assert "user-data" in capsys.readouterr().err
    assert [one.name for one in store.every()] == ["web"]


def test_a_password_is_asked_for_twice_and_shown_never(image: Path) -> None:
    command = f"-m armvm vm create web {image} --arch aarch64 --user ada --password".split()
    with pexpect.spawn(sys.executable, command, timeout=60, encoding="utf-8") as terminal:
        for prompt in ("password: ", "once more: "):
            terminal.expect_exact(prompt)
            terminal.sendline("s3cret")
        terminal.expect(pexpect.EOF)
        assert "s3cret" not in terminal.before
    assert b"$6$" in seed.read(store.find("web").folder / "seed.img").user_data


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--disk-size", "1M"], 2, "cannot be cut short"),
        (["--disk-size", "x"], 2, "not a size"),
        (["--ssh-port", "0"], 2, "not a port"),
        (["--ssh-port", "2222", "--net", "none"], 2, "needs a user network"),
        (["--vcpus", "9", "--gic", "2"], 2, "GICv2"),
        (["--user", "a b"], 2, "no user name"),
        (["--ssh-key", KEY], 2, "for whom"),
        (["--user", "ada", "--ssh-key", "ssh-rsa"], 65, "cannot be read"),
        (["--user", "ada", "--password-file", "/dev/null"], 2, "an empty password"),
        (["--user", "ada", "--password"], 2, "nobody is there"),
        (["--packages", "a b"], 2, "no package"),
        (["--hostname", "a_b"], 2, "no hostname"),
    ],
)
def test_what_cannot_be_created(
    image: Path, monkeypatch: pytest.MonkeyPatch, *, options: list[str], code: int, says: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stderr", said := io.StringIO())
    assert vm("create", "web", image, *ARCH, *options) == code
    assert says in said.getvalue()
    assert store.every() == ()


def test_an_image_that_stands_on_another(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "top.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "image.raw", str(top)], check=True, timeout=60
    )
    assert vm("create", "web", top, *ARCH) == 65
    assert "difference to a backing file" in capsys.readouterr().err
    created(top, "web", "--allow-backing-files")


def test_a_compressed_image_is_copied(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "image.raw.xz"
    packed.write_bytes(lzma.compress(image.read_bytes()))
    assert vm("create", "web", packed, *ARCH) == 65
    instance = created(packed, "web", "--copy")
    subprocess.run(["qemu-img", "compare", "-q", str(instance.disk), str(image)], check=True, timeout=60)


def test_clone_rename_list_delete(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    created(image)
    assert vm("clone", "web", "web2") == 0
    assert vm("rename", "web2", "db") == 0
    for arguments in (("clone", "web", "db"), ("rename", "web", "db"), ("clone", "no", "x"), ("delete", "no", "-y")):
        assert vm(*arguments) == 2
    capsys.readouterr()
    assert vm("list") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "status", "arch", "vcpus", "memory", "ssh", "disk", "image"]
    assert [row.split()[:4] for row in rows] == [[name, "stopped", "aarch64", "2"] for name in ("db", "web")]
    assert vm("list", "--json", "--image", image) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "armvm.instances/1"
    assert [one["name"] for one in told["instances"]] == ["db", "web"]
    assert {one["image"] for one in told["instances"]} == {str(image)}
    assert vm("delete", "db", "web", "--yes") == 0
    assert store.every() == ()
    assert vm("list") == 0
    assert "no instances" in capsys.readouterr().out


def test_nothing_is_deleted_unasked(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created(image)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # which is no terminal
    assert vm("delete", "web") == 2
    assert store.find("web").exists


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("", 1), ("no", 1)])
def test_who_deletes_is_asked(image: Path, answer: str, left: int) -> None:
    created(image)
    with pexpect.spawn(
        sys.executable, ["-m", "armvm", "vm", "delete", "web"], timeout=60, encoding="utf-8"
    ) as terminal:
        terminal.expect(r"web: \S+ \S+ of disks and variables")
        terminal.expect_exact("[y/N] ")
        terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
    assert len(store.every()) == left


def test_show(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instance = created(image, "web", "--user", "ada")
    capsys.readouterr()
    assert vm("show", "web") == 0
    text = capsys.readouterr().out
    for word in (str(instance.disk), f"over {image}", "armvm vm ssh web", "ada@127.0.0.1", "created"):
        assert word in text
    assert vm("show", "web", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["schema"] == "armvm.instance/1"
    assert facts["disks"][0]["image"] == {"path": str(image), "format": "raw", "state": "unchanged"}
    image.write_bytes(b"another" * MIB)
    vm("show", "web")
    assert "CHANGED" in capsys.readouterr().out
    image.unlink()
    vm("show", "web")
    assert "GONE" in capsys.readouterr().out
    instance.description.write_text("\x1b[31mnot toml")
    assert vm("show", "web") == 0
    text = capsys.readouterr().out
    assert "broken" in text
    assert "\x1b" not in text
    assert vm("show", "no") == 2


def test_an_image_with_dependants_is_not_changed_unnoticed(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    created(image)
    before = image.read_bytes()
    link = tmp_path / "link.raw"
    link.symlink_to(image)
    for arguments in (
        ["convert", image, link, "--force"],
        ["build", "-o", image, "--force", "--efi", f"aarch64={image}"],
        ["repair", "-o", image, "--force", link],
        ["run", image, "--writable", "--print-command", "--arch", "aarch64"],
        ["vm", "create", "db", link, "--in-place", "--arch", "aarch64"],
    ):
        assert main([str(argument) for argument in arguments]) == 2, arguments
        assert "1 instance stands on it (web)" in capsys.readouterr().err
    assert image.read_bytes() == before
    assert main(["run", str(image), "--writable", "--print-command", "--ignore-instances", *ARCH]) == 0


def test_a_command_for_the_guest_may_look_like_options(armvm: Armvm, image: Path) -> None:
    created(image)
    for action in ("ssh", "exec"):
        done = armvm("vm", action, "web", "--timeout", "3", "--", "ls", "--all", "-x", "--")
        assert "instance web is not running" in done.stderr
    assert armvm("vm", "exec", "web").returncode == 2


@pytest.mark.parametrize(
    "arguments", [("a", "b"), ("web:/x", "web:/y"), ("web:", "x"), ("no:/x", "y"), ("./a:/x", "y")]
)
def test_what_cannot_be_copied(image: Path, arguments: tuple[str, str]) -> None:
    created(image)
    assert vm("copy", *arguments) == 2
