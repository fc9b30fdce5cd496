"""What ``armvm convert`` makes of a bootable image boots: on other sectors, compressed, and in another container."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from armvm.cli.main import main
from armvm.execution import ExecutionState
from conftest import Armvm
from tools.installer import find_installer
from tools.plain_qemu import PLATFORMS, boot
from tools.tiny_guest import DONE, READY, tiny_initramfs


@pytest.fixture(scope="module")
def both_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image for both states: real kernels, a root RAM disk that says so and powers off."""
    folder = tmp_path_factory.mktemp("both")
    arguments = ["build", "-q", "-o", str(folder / "both.img"), "--cmdline", "console=ttyAMA0 panic=-1"]
    for state in ExecutionState:
        arguments += ["--kernel", str(find_installer(state).kernel)]
        arguments += ["--initrd", f"{state.value}={tiny_initramfs(state, folder)}"]
    assert main(arguments) == 0
    return folder / "both.img"


@pytest.fixture(scope="module")
def wide(both_states: Path) -> Path:
    """The same on 4096-byte sectors."""
    path = both_states.with_name("wide.img")
    assert main(["convert", "-q", str(both_states), str(path), "--sector-size", "4096"]) == 0
    return path


@pytest.mark.parametrize("name", ["edk2-64", "edk2-32"])
def test_an_image_of_512_boots_on_4096(wide: Path, name: str) -> None:
    before = hashlib.sha256(wide.read_bytes()).digest()
    said = boot(PLATFORMS[name], wide, DONE, sector_size=4096)
    assert f"{READY} {PLATFORMS[name].state.value}" in said
    assert hashlib.sha256(wide.read_bytes()).digest() == before


def test_and_back_on_512(wide: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.img"
    assert main(["convert", "-q", str(wide), str(back), "--sector-size", "512"]) == 0
    assert f"{READY} aarch64" in boot(PLATFORMS["edk2-64"], back, DONE)


@pytest.mark.parametrize("arguments", [("out.qcow2", "--compress", "zstd"), ("out.vhd",)], ids=str)
def test_armvm_runs_what_it_converted(
    armvm: Armvm, wide: Path, both_states: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """The compressed one is on 4096-byte sectors: run finds that out by itself."""
    out = tmp_path / arguments[0]
    source = wide if out.suffix == ".qcow2" else both_states
    assert main(["convert", "-q", str(source), str(out), *arguments[1:]]) == 0
    result = armvm("run", out, "--until", READY, "--timeout", "100", timeout_seconds=120)
    assert result.returncode == 0, result.stderr
