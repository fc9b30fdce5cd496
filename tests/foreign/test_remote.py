"""Images behind nginx, the foreign judge of what is asked for: its own log says what it sent."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from armvm.disk.detect import open_disk
from armvm.disk.http import HttpLimits
from armvm.disk.remote import HttpDisk
from armvm.errors import InputError
from armvm.guest.check import check_image
from armvm.spec.verdict import Verdict
from conftest import Armvm
from tools import disk_images, fat_images
from tools.containers import MIB, converted, qemu_img, scattered_raw
from tools.web_servers import Nginx, nginx

_DISK_BYTES = 2048 * MIB
_ROOT_BYTES = 256 * MIB
"""How much of the root partition is in use."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Nginx]:
    """An nginx that serves ``tmp_path/root``, and redirects from /old/ to it, and from /loop to itself."""
    (tmp_path / "root").mkdir()
    server = """
      location /old/ { rewrite ^/old/(.*)$ /$1 redirect; }
      location /loop { return 302 /loop; }
      location /whole/ { alias {root}/; max_ranges 0; }
      location /packed/ { alias {root}/; gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; }
    """.replace("{root}", str(tmp_path / "root"))
    with nginx(tmp_path / "root", tmp_path / "nginx", server=server) as running:
        yield running


def _sent_bytes(server: Nginx) -> int:
    return sum(size for status, size, _ in server.sent() if status == 206)


def test_reads_as_the_file_and_counts_as_nginx_does(served: Nginx, tmp_path: Path) -> None:
    content = scattered_raw(tmp_path / "root" / "disk.img", 9 * MIB + 512)
    with HttpDisk(f"{served.url}/old/disk.img") as disk:
        chance = random.Random(3)
        for _ in range(60):
            start = chance.randrange(disk.size_bytes)
            length = chance.randrange(min(disk.size_bytes - start, 200_000) + 1)
            assert disk.read(start, length) == content[start : start + length]
        assert b"".join(disk.stream()) == content
        requests, transferred = disk.requests, disk.transferred_bytes
    sent = served.sent()
    assert len(sent) == requests
    assert [status for status, _, _ in sent[:2]] == [302, 206]
    assert sum(status == 302 for status, _, _ in sent) == 1
    assert _sent_bytes(served) == transferred
    assert len({connection for _, _, connection in sent}) <= 2  # kept alive


def test_checked_as_if_it_were_here(served: Nginx, tmp_path: Path, armvm: Armvm) -> None:
    image = tmp_path / "root" / "disk.img"
    with disk_images.disk_image() as disk:
        image.write_bytes(disk.read(0, disk.size_bytes))
    converted(image, tmp_path / "root" / "disk.qcow2", "qcow2")
    here = armvm("check", "-v", image)
    for name, container in (("disk.img", "raw"), ("disk.qcow2", "qcow2")):
        there = armvm("check", "-v", f"{served.url}/{name}?token=secret")
        assert there.returncode == here.returncode
        lines = there.stdout.splitlines()
        assert lines[1:][-5:] == here.stdout.splitlines()[1:][-5:]
        assert container in there.stdout
        assert re.fullmatch(r"… read [\d.]+ [KM]iB of [\d.]+ [KM]iB in \d+ requests\n", there.stderr), there.stderr
        assert "secret" not in there.stdout + there.stderr
    assert armvm("check", "-q", f"{served.url}/disk.img").stderr == ""
    facts = armvm("inspect", f"{served.url}/disk.img")
    assert facts.returncode == 0
    assert "EFI System Partition" in facts.stdout
    assert "requests" in facts.stderr


def _debian_like(path: Path) -> int:
    """A qcow2 of 2 GiB: an ESP, and a root partition in which a few hundred MB are in use. The bytes allocated."""
    raw = path.with_suffix(".raw")
    volume = fat_images.fat32_disk({disk_images.AA64: disk_images.unified_kernel()})
    block = random.Random(5).randbytes(8 * MIB)
    with raw.open("wb") as file:
        file.truncate(_DISK_BYTES)
        file.seek(MIB)
        file.write(volume.read(0, volume.size_bytes))
        for number in range(_ROOT_BYTES // len(block)):
            file.seek(64 * MIB + number * 24 * MIB)
            file.write(block)
    table = f"label: gpt\nstart=1MiB, size={disk_images.ESP_BYTES // 1024}KiB, type=U\nstart=64MiB, type=L\n"
    command = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(raw)]
    subprocess.run(command, input=table.encode(), check=True, capture_output=True, timeout=60)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    return path.stat().st_blocks * 512


def test_check_of_a_large_image_reads_little_of_it(served: Nginx, tmp_path: Path) -> None:
    allocated = _debian_like(tmp_path / "root" / "large.qcow2")
    assert allocated > _ROOT_BYTES
    with open_disk(f"{served.url}/large.qcow2") as disk:
        report = check_image(disk)
        assert disk.traffic is not None
        assert _sent_bytes(served) == disk.traffic.transferred_bytes
    verdicts = {finding.requirement: finding.verdict for finding in report.findings}
    assert verdicts["image.esp-fat32"] is Verdict.PASS
    assert verdicts["image.gpt"] is Verdict.PASS
    assert disk.traffic.transferred_bytes < allocated * 0.05
    assert disk.traffic.requests < 60


def test_servers_set_up_otherwise(served: Nginx, tmp_path: Path) -> None:
    (tmp_path / "root" / "disk.img").write_bytes(bytes(MIB))
    (tmp_path / "root" / "empty.img").touch()
    for place, message in (
        ("loop", "redirects more than 10 times"),
        ("none.img", "404 Not Found"),
        ("empty.img", "is empty"),
        ("whole/disk.img", "does not give out parts of a file"),
    ):
        with pytest.raises(InputError, match=message):
            open_disk(f"{served.url}/{place}")
    with open_disk(f"{served.url}/packed/disk.img") as disk:  # nobody asked for gzip, so there is none
        assert disk.size_bytes == MIB


def test_file_that_is_replaced_while_it_is_read(served: Nginx, tmp_path: Path) -> None:
    path = tmp_path / "root" / "disk.img"
    path.write_bytes(bytes(4 * MIB))
    with open_disk(f"{served.url}/disk.img") as disk:
        disk.read(0, 100)
        path.write_bytes(b"x" * (4 * MIB))
        os.utime(path, (1, 1))
        with pytest.raises(InputError, match="changed on the server while it was read") as caught:
            disk.read(2 * MIB, 100)
    assert "try again" in (caught.value.hint or "")


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are judged, and nothing leads from https to plain http."""
    root = tmp_path / "root"
    root.mkdir()
    content = scattered_raw(root / "disk.img", MIB)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    arguments = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *arguments], check=True, capture_output=True, timeout=60)
    away = "location /down { return 302 http://127.0.0.1:1/; }"
    with nginx(root, tmp_path / "nginx", server=away, tls=(certificate, key)) as server:
        with pytest.raises(InputError, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            HttpDisk(f"{server.url}/disk.img")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with open_disk(f"{server.url}/disk.img") as disk:
            assert disk.read(0, MIB) == content
        with pytest.raises(InputError, match="redirects from https to plain http"):
            HttpDisk(f"{server.url}/down", limits=HttpLimits(total_seconds=10))
