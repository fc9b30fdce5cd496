"""Seeds for cloud-init, judged by the tools of others: dosfstools, mtools, blkid, and cloud-init's own schema."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from armvm.instance import seed
from armvm.instance.cloud_init import CloudInit, render
from tools.foreign_packages import foreign_package

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHlSgvY+W6FTH5r2ej92C9V+Nl3sql832w6eakH/6VEN ada: 'x'"
WISHES = {
    "nothing": CloudInit("web"),
    "everything": CloudInit(
        "web.example.org",
        user="null",
        ssh_keys=(KEY,),
        password_hash="$6$salt$" + "x" * 86,
        packages=("nginx", "3.10"),
        commands=("echo: hi", "a\nb", "- x"),
        network_config=b"version: 2\nethernets: {all: {match: {name: 'e*'}, dhcp4: true}}\n",
    ),
    "root": CloudInit("web", user="root", ssh_keys=(KEY,)),
}


@pytest.fixture(params=WISHES)
def wishes(request: pytest.FixtureRequest) -> CloudInit:
    return WISHES[request.param]


def said(*command: str | Path) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_the_volume_is_what_cloud_init_looks_for(wishes: CloudInit, tmp_path: Path) -> None:
    path = tmp_path / "seed.img"
    files = render(wishes, "iid-1")
    seed.write(path, files)
    said("/sbin/fsck.vfat", "-n", path)
    facts = dict(line.split("=", 1) for line in said("/sbin/blkid", "-o", "export", "-p", path).splitlines())
    assert (facts["LABEL"], facts["TYPE"]) == ("CIDATA", "vfat")
    for name, content in (("user-data", files.user_data), ("meta-data", files.meta_data)):
        assert said("mtype", "-i", path, f"::{name}").encode() == content
    listed = said("mdir", "-b", "-i", path, "::").split()
    assert ("::/network-config" in listed) is (wishes.network_config is not None)


def test_cloud_init_takes_the_user_data(wishes: CloudInit) -> None:
    """By the schema in Debian's own package, which is unpacked and not installed: it would want to set up this host."""
    package = foreign_package("arm64", "cloud-init")
    (path,) = package.glob("usr/lib/python3*/**/schema-cloud-config-v1.json")
    schema = json.loads(path.read_bytes())
    judge = jsonschema.Draft4Validator(schema)
    judge.validate(yaml.safe_load(render(wishes, "iid-1").user_data))
    assert not judge.is_valid({"users": [{"name": 3}]})
