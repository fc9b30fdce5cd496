"""Wishes of any kind either are refused, or reach cloud-init as they were; a seed is read as it was written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.errors import ArmvmError, UsageError
from armvm.instance import seed
from armvm.instance.cloud_init import CloudInit, SeedFiles, check_user_data, hostname_of, render, renewed

TEXT = st.text(max_size=60)


@settings(max_examples=40)
@given(user=st.one_of(st.none(), TEXT), commands=st.lists(TEXT, max_size=4), packages=st.lists(TEXT, max_size=4))
def test_wishes(user: str | None, commands: list[str], packages: list[str]) -> None:
    try:
        wanted = CloudInit("web", user=user, commands=tuple(commands), packages=tuple(packages))
        files = render(wanted, "iid-1")
    except UsageError:
        return
    read = yaml.safe_load(files.user_data) or {}
    assert read.get("runcmd", []) == commands
    assert read.get("packages", []) == packages
    assert [one["name"] for one in read.get("users", [])] == ([user] if user is not None else [])
    check_user_data(files.user_data, "user-data")


@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda tail: b"#cloud-config\n" + tail)))
def test_any_bytes_for_user_data(content: bytes) -> None:
    for check in (
        lambda: check_user_data(content, "user-data"),
        lambda: render(CloudInit("web", meta_data=content, network_config=content), "iid-1"),
        lambda: renewed(SeedFiles(b"", content), "iid-2", "two"),
    ):
        try:
            check()
        except ArmvmError as error:
            assert error.message.isprintable()


@given(name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_every_instance_can_be_a_host(name: str) -> None:
    CloudInit(hostname_of(name))


@settings(max_examples=40)
@given(user_data=st.binary(max_size=5000), network=st.one_of(st.none(), st.binary(max_size=100)))
def test_seeds_there_and_back(user_data: bytes, network: bytes | None) -> None:
    files = SeedFiles(user_data, b"instance-id: x\n", network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.img"
        seed.write(path, files)
        assert seed.read(path) == files
