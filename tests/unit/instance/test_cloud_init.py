from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from armvm.disk.composed import ComposedDisk
from armvm.disk.fat_write import FatFile, plan_fat32
from armvm.disk.storage import MemoryDisk
from armvm.disk.write import write_raw
from armvm.errors import ArmvmError, InputError, UsageError
from armvm.instance import seed
from armvm.instance.cloud_init import CloudInit, SeedFiles, hostname_of, render, renewed
from armvm.units import MIB

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHlSgvY+W6FTH5r2ej92C9V+Nl3sql832w6eakH/6VEN a: 'b' #c"
HASH = "$6$salt$" + "x" * 86


def config(wanted: CloudInit) -> dict[str, object]:
    files = render(wanted, "iid-1")
    assert files.user_data.startswith(b"#cloud-config\n")
    read: dict[str, object] = yaml.safe_load(files.user_data) or {}
    return read


def test_what_is_wished_is_what_is_written() -> None:
    commands = ("echo: hi", "- x", "on", "a\nb: {c}", "'\"\\", "\u2028 \x85 \ufeff")
    read = config(
        CloudInit("web", user="null", ssh_keys=(KEY,), password_hash=HASH, packages=("yes", "3.10"), commands=commands)
    )
    assert read["users"] == [
        {
            "name": "null",
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "ssh_authorized_keys": [KEY],
            "hashed_passwd": HASH,
            "lock_passwd": False,
        }
    ]
    assert read["runcmd"] == list(commands)
    assert read["packages"] == ["yes", "3.10"]
    assert read["ssh_pwauth"] is True


def test_root_is_let_in_and_not_locked_out() -> None:
    read = config(CloudInit("web", user="root", ssh_keys=(KEY,)))
    assert read["disable_root"] is False
    assert read["users"] == [{"name": "root", "ssh_authorized_keys": [KEY], "lock_passwd": False}]


def test_the_machine_is_called_as_wished() -> None:
    meta = yaml.safe_load(render(CloudInit("web"), "iid-1").meta_data)
    assert meta == {"instance-id": "iid-1", "local-hostname": "web"}
    given = CloudInit("web", meta_data=b"local-hostname: own\npublic-keys: [x]\n")
    files = render(given, "iid-1")
    assert yaml.safe_load(files.meta_data) == {
        "local-hostname": "own",
        "public-keys": ["x"],
        "instance-id": "iid-1",
    }
    again = yaml.safe_load(renewed(files, "iid-2", "two").meta_data)
    assert again == {"local-hostname": "two", "public-keys": ["x"], "instance-id": "iid-2"}


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("web", "web"),
        ("Web_1.example", "Web-1.example"),
        ("a-.b", "a.b"),
        ("0", "0"),
        ("x" * 64, "x" * 63),
        ("a__", "a"),
    ],
)
def test_names_as_hosts_are_called(name: str, hostname: str) -> None:
    assert hostname_of(name) == hostname
    CloudInit(hostname_of(name))


@pytest.mark.parametrize(
    "wishes",
    [
        {"user": "a b"},
        {"user": "-x"},
        {"user": "a\nb"},
        {"user": "ada", "ssh_keys": ("no key",)},
        {"user": "ada", "ssh_keys": (KEY + "\nssh-rsa x",)},
        {"user": "ada", "password_hash": "secret"},
        {"packages": ("a b",)},
        {"packages": ("-o",)},
        {"commands": ("",)},
        {"commands": ("a\0b",)},
        {"commands": ("x" * 100_000,)},
        {"commands": ("x",) * 1001},
        {"ssh_keys": (KEY,)},
        {"password_hash": HASH},
        {"hostname": "a_b"},
        {"hostname": "a..b"},
        {"hostname": ""},
        {"user_data": b"#!/bin/sh", "packages": ("x",)},
    ],
)
def test_what_cannot_be_wished(wishes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CloudInit(**{"hostname": "web", **wishes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        b"#cloud-config\nusers: [a]\n",
        b"#cloud-config\r\n{}\n",
        b"#cloud-config",
        b"#!/bin/sh\necho\n",
        b"#include\nhttps://example.org\n",
        b"#cloud-config-archive\n- x",
        b"## template: jinja\n#cloud-config\n{{ x",
        b"Content-Type: multipart/mixed\n\n",
        b"\x1f\x8b\x08\x00",
    ],
)
def test_user_data_is_passed_on_as_it_is(content: bytes) -> None:
    assert render(CloudInit("web", user_data=content), "iid").user_data == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "of no kind"),
        (b"users: []", "of no kind"),
        (b"\n#cloud-config\n", "of no kind"),
        (b"#cloud-config\n- a\n", "YAML mapping"),
        (b"#cloud-config\na: [\n", "line"),
        (b"#cloud-config\na: b: c\n", "user-data, line 2"),
        (b"#cloud-config\n" + b"- " * 5000, "no YAML"),
        (b"#cloud-config\n!!python/object/apply:os.system [x]\n", "no YAML"),
        (b"#cloud-config\n\x00", "no YAML"),
        (b"#cloud-config\n\xff\xfe", "no YAML"),
        (b"#cloud-config\n#" + b"x" * (2 * MIB), "far too long"),
        (b"#!" + b"x" * (5 * MIB), "too large"),
    ],
)
def test_user_data_that_cloud_init_would_not_take(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        render(CloudInit("web", user_data=content), "iid")
    assert "user-data" in str(caught.value)


@pytest.mark.parametrize("key", ["meta_data", "network_config"])
def test_other_files_are_mappings(key: str) -> None:
    for content in (b"- a", b"x: [", b"\xff"):
        with pytest.raises(InputError, match=key.replace("_", "-")):
            render(CloudInit("web", **{key: content}), "iid")  # type: ignore[arg-type]


@pytest.mark.parametrize("network", [None, b"version: 2\n"])
def test_a_seed_is_read_as_it_was_written(tmp_path: Path, network: bytes | None) -> None:
    files = SeedFiles(b"#cloud-config\n" + b"# \xff\n" * 100_000, b"instance-id: x\n", network)
    path = tmp_path / "seed.img"
    seed.write(path, files)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 < 2 * MIB
    assert seed.read(path) == files


def test_what_is_no_seed(tmp_path: Path) -> None:
    path = tmp_path / "seed.img"
    volume: ComposedDisk = plan_fat32(
        40 * MIB,
        512,
        [FatFile("user-data", MemoryDisk(b"x"))],
        label="CIDATA",
        volume_id=1,
        timestamp=0,
        hidden_sectors=0,
    )
    with path.open("w+b") as file:
        write_raw(file, volume)
    with pytest.raises(InputError, match="is no seed"):
        seed.read(path)
    path.write_bytes(bytes(MIB))
    with pytest.raises(ArmvmError):
        seed.read(path)
