"""A Debian with cloud-init, built here: created, logged in to, asked by its agent, cloned, deleted.

Setting Debian up takes minutes under emulation; the root tree stays in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from armvm.instance import store
from conftest import Armvm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

FROM = ("--from", "debian:bookworm", "--arch", "arm64", "--cloud-init", "--ssh", "--package", "qemu-guest-agent")
UP_SECONDS = "900"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cloud")
    path = folder / "debian.qcow2"
    built = subprocess.run(
        [sys.executable, "-m", "armvm", "build", *FROM, "--size", "4G", "-o", str(path)],
        capture_output=True,
        text=True,
        timeout=6000,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    yield path
    shutil.rmtree(folder)


@pytest.fixture
def run(armvm: Armvm) -> Iterator[Armvm]:
    """Runs a command that has to succeed; whatever runs then is ended."""

    def succeed(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        done = armvm(*arguments, timeout_seconds=1200, **options)
        assert done.returncode == 0, (arguments, done.stderr)
        return done

    yield succeed
    for instance in store.every():
        armvm("vm", "kill", instance.name, timeout_seconds=60)


def test_a_debian_for_ada(image: Path, run: Armvm, armvm: Armvm, tmp_path: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    commands = ("--run", "echo ran > /var/tmp/ran", "--disk-size", "6G")
    run("vm", "create", "web", image, "--user", "ada", "--start", *commands)

    def ssh(name: str, *command: str) -> str:
        return run("vm", "ssh", name, "--timeout", UP_SECONDS, "-q", "--", *command).stdout.strip()

    assert ssh("web", "whoami; hostname; sudo -n whoami").split() == ["ada", "web", "root"]
    assert json.loads(ssh("web", "cloud-init status --wait --format json"))["status"] == "done"
    assert ssh("web", "cat /var/tmp/ran") == "ran"
    size = int(ssh("web", "df --output=size -B1 / | tail -1"))
    assert size > 5 << 30, "the root file system has grown with the disk"
    keys = ssh("web", "cat /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    assert keys in (store.find("web").folder / "known_hosts").read_text()

    done = armvm("vm", "exec", "web", "--timeout", "60", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    said = run("vm", "exec", "web", "--", "head", "-c", "3000000", "/dev/zero").stdout
    assert len(said) == 3_000_000
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(1 << 20))
    for way in ("agent", "ssh"):
        run("vm", "copy", "--by", way, there, f"web:/var/tmp/{way}")
        run("vm", "copy", "--by", way, f"web:/var/tmp/{way}", back)
        assert back.read_bytes() == there.read_bytes()
        back.unlink()
    assert armvm("vm", "copy", "web:/none", back).returncode == 1
    assert not back.exists()

    run("vm", "stop", "web", "--timeout", "300")
    run("vm", "clone", "web", "web2")
    run("vm", "start", "web", "web2")
    assert ssh("web2", "hostname; cat /var/tmp/ran").split() == ["web2", "ran"]
    assert ssh("web", "hostname") == "web"
    assert ssh("web2", "cat /etc/ssh/ssh_host_ed25519_key.pub").split()[1] != keys
    run("vm", "delete", "web", "web2", "--yes", "--kill")
    assert store.every() == ()
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before
