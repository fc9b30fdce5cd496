from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from armvm.execution import ExecutionState
from armvm.firmware.descriptor import Descriptor, Mapping, Skipped, descriptor_folders, read_descriptors


def described(**changes: Any) -> dict[str, Any]:
    return {
        "description": "UEFI",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": "/code.fd", "format": "raw"},
            "nvram-template": {"filename": "/vars.qcow2", "format": "qcow2"},
        },
        "targets": [{"architecture": "aarch64", "machines": ["virt-*"]}],
        "features": ["verbose-static"],
        "tags": [],
        **changes,
    }


def write(folder: Path, name: str, content: Any) -> None:
    folder.mkdir(exist_ok=True)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(raw)


def read_one(folder: Path, content: Any) -> Descriptor | Skipped:
    write(folder, "50-x.json", content)
    (one,) = read_descriptors([folder])
    return one


def test_flash(tmp_path: Path) -> None:
    one = read_one(tmp_path, described())
    assert isinstance(one, Descriptor)
    assert (one.mapping, one.code, one.code_format) == (Mapping.FLASH, Path("/code.fd"), "raw")
    assert (one.vars_template, one.vars_format) == (Path("/vars.qcow2"), "qcow2")
    assert (one.description, one.features, one.source) == (
        "UEFI",
        frozenset(["verbose-static"]),
        tmp_path / "50-x.json",
    )
    assert not one.enforces_secure_boot


def test_memory(tmp_path: Path) -> None:
    one = read_one(tmp_path, described(mapping={"device": "memory", "filename": "/u-boot.bin"}))
    assert isinstance(one, Descriptor)
    assert (one.mapping, one.code, one.vars_template) == (Mapping.MEMORY, Path("/u-boot.bin"), None)


@pytest.mark.parametrize(
    ("architecture", "machines", "interfaces", "served"),
    [
        ("aarch64", ["virt-*"], ["uefi"], {"aarch64"}),
        ("arm", ["virt-*"], ["uefi"], {"aarch32"}),
        ("aarch64", ["virt-7.2"], ["uefi"], {"aarch64"}),
        ("aarch64", ["virt"], ["bios", "uefi"], {"aarch64"}),
        ("aarch64", ["*"], ["uefi"], {"aarch64"}),
        ("aarch64", ["vir?-*"], ["uefi"], {"aarch64"}),
        ("aarch64", ["sbsa-ref"], ["uefi"], set()),
        ("aarch64", ["[", "virtual*"], ["uefi"], set()),
        ("aarch64", [], ["uefi"], set()),
        ("aarch64", ["virt-*"], ["uboot"], set()),
        ("x86_64", ["pc-q35-*"], ["uefi"], set()),
    ],
)
def test_whom_it_serves(
    tmp_path: Path, architecture: str, machines: list[str], interfaces: list[str], served: set[str]
) -> None:
    targets = [
        {"architecture": "x86_64", "machines": ["virt-*"]},
        {"architecture": architecture, "machines": machines},
    ]
    one = read_one(tmp_path, described(targets=targets, **{"interface-types": interfaces}))
    assert isinstance(one, Descriptor)
    assert {state.value for state in ExecutionState if one.serves(state)} == served


def test_the_more_specific_folder_counts_and_an_empty_file_hides(tmp_path: Path) -> None:
    general, specific = tmp_path / "general", tmp_path / "specific"
    write(general, "50-both.json", described(description="general"))
    write(general, "60-hidden.json", described(description="hidden"))
    write(general, "40-only.json", described(description="only"))
    write(specific, "50-both.json", described(description="specific"))
    write(specific, "60-hidden.json", b"")
    write(specific, "45-own.json", described(description="own"))
    write(specific, "README", b"no descriptor")
    found = read_descriptors([general, tmp_path / "absent", specific])
    assert [one.description for one in found if isinstance(one, Descriptor)] == ["only", "own", "specific"]
    assert len(found) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b'{"mapping":' * 5_000,
        b" " * 70_000,
        b"null",
        b"NaN",
        b"1e999",
        [],
        {},
        described(mapping=None),
        described(mapping={"device": "kernel", "filename": "/x"}),
        described(mapping={"device": "memory", "filename": "relative.bin"}),
        described(mapping={"device": "memory", "filename": "/nul\0"}),
        described(mapping={"device": "memory", "filename": 5}),
        described(mapping={"device": "memory", "filename": "/x", "uefi-vars": {"template": "/y"}}),
        described(mapping={"device": "flash"}),
        described(mapping={"device": ["flash"] * 10_000}),
        described(mapping={"device": "flash", "mode": "stateless", "executable": {"filename": "/x", "format": "raw"}}),
        described(mapping={"device": "flash", "executable": {"filename": "/x", "format": "vmdk"}}),
        described(targets={}),
        described(targets=[1]),
        described(targets=[{"architecture": 1, "machines": []}]),
        described(targets=[{"architecture": "arm", "machines": [1]}]),
        described(features=[1]),
        described(description=1),
        {key: value for key, value in described().items() if key != "interface-types"},
    ],
)
def test_broken_ones_are_skipped_with_a_reason(tmp_path: Path, content: Any) -> None:
    one = read_one(tmp_path, content)
    assert isinstance(one, Skipped)
    assert 0 < len(one.reason) < 200


def test_a_folder_named_like_a_descriptor_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "50-x.json").mkdir()
    (one,) = read_descriptors([tmp_path])
    assert isinstance(one, Skipped)


def test_folders_from_general_to_specific(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert list(map(str, descriptor_folders([Path("/opt/brew/share/qemu"), Path("/usr/share/qemu")]))) == [
        "/opt/brew/share/qemu/firmware",
        "/usr/share/qemu/firmware",
        "/etc/qemu/firmware",
        "/somewhere/qemu/firmware",
    ]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert str(descriptor_folders()[-1]) == "/home/x/.config/qemu/firmware"
    monkeypatch.delenv("HOME")
    assert str(descriptor_folders()[-1]) == "/etc/qemu/firmware"
