"""LVM2 and md metadata made by our own scripts are what LVM's and mdadm's programs take for their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.disk.filesystems import detect_content
from armvm.disk.storage import MemoryDisk
from armvm.units import MIB
from tools.file_trees import run
from tools.volume_images import Run, group_text, md_member, physical_volume


@pytest.mark.parametrize("at", [512, MIB - 4096 - 700])
def test_lvm_takes_our_physical_volume_for_one(tmp_path: Path, at: int) -> None:
    text = group_text("vg", {"root": [Run(2, [("pv0", 0)])]}, ["pv0"])
    image = tmp_path / "pv"
    image.write_bytes(physical_volume("pv0", text, {}, at=at))
    headers = run("pvck", "--dump", "headers", str(image))
    assert "bad" not in headers.lower()
    assert "does not match" not in headers
    assert "vgname vg" in run("pvck", "--dump", "metadata", str(image))
    assert run("blkid", "-p", "-s", "TYPE", "-o", "value", str(image)).strip() == "LVM2_member"
    content = detect_content(MemoryDisk(image.read_bytes()))
    assert content is not None
    assert content.uuid == run("blkid", "-p", "-s", "UUID", "-o", "value", str(image)).strip()


@pytest.mark.parametrize("version", ["0.90", "1.0", "1.1", "1.2"])
@pytest.mark.parametrize("level", [0, 1])
def test_mdadm_takes_our_members_for_its_own(tmp_path: Path, version: str, level: int) -> None:
    image = tmp_path / "member"
    image.write_bytes(md_member(bytes(4 * MIB), level=level, role=1, members=2, version=version))
    said = run("mdadm", "--examine", str(image))
    assert f"Raid Level : raid{level}" in said
    assert "- correct" in said
    assert "Raid Devices : 2" in said
    assert "expected" not in said
    content = detect_content(MemoryDisk(image.read_bytes()))
    assert content is not None
    assert content.kind == run("blkid", "-p", "-s", "TYPE", "-o", "value", str(image)).strip()
    assert content.uuid == run("blkid", "-p", "-s", "UUID", "-o", "value", str(image)).strip()
    label = run("blkid", "-p", "-s", "LABEL", "-o", "value", str(image), allowed=(0, 2)).strip()
    assert content.label == (label or None)
