"""Recipes: every key known, every value of its kind, and contradictions refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.image.recipe import Recipe, parse_recipe

WHOLE = """
size = "1G"
sector-size = 4096
format = "qcow2"
[efi]
aarch32 = "grubarm.efi"
[kernel.aarch64]
kernel = "vmlinuz"
initrd = ["a.cpio", "b.cpio"]
cmdline = "quiet"
[esp]
label = "BOOT"
size = "300M"
trees = ["esp"]
[esp.files]
"/EFI/debian/grub.cfg" = "grub.cfg"
[root]
source = "root.tar"
label = "system"
"""


def _parse(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return parse_recipe(path)


def test_a_whole_recipe(tmp_path: Path) -> None:
    recipe = _parse(tmp_path, WHOLE)
    assert recipe.states == (ExecutionState.AARCH64, ExecutionState.AARCH32)
    assert recipe.efi == {ExecutionState.AARCH32: tmp_path / "grubarm.efi"}
    kernel = recipe.kernels[ExecutionState.AARCH64]
    assert kernel.initrds == (tmp_path / "a.cpio", tmp_path / "b.cpio")
    assert kernel.command_line == "quiet"
    assert (recipe.size_bytes, recipe.esp_size_bytes, recipe.sector_size) == (1 << 30, 300 << 20, 4096)
    assert [(file.destination, file.source.name) for file in recipe.esp_files] == [
        ("/", "esp"),
        ("/EFI/debian/grub.cfg", "grub.cfg"),
    ]
    assert (recipe.root, recipe.root_label, recipe.esp_label) == (tmp_path / "root.tar", "system", "BOOT")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("= nonsense", "cannot be read as a recipe"),
        ("kernal = 1", "'kernal'"),
        ("[kernel.aarch64]\nkernel = 'k'\nroot = 'x'", "'kernel.aarch64.root'"),
        ("[kernel.aarch64]\ninitrd = 'i'", "kernel.aarch64.kernel is missing"),
        ("[kernel.x86]\nkernel = 'k'", "kernel.x86"),
        ("[efi]\naarch64 = 3", "efi.aarch64 is wrong"),
        ("size = true\n[efi]\naarch64='e'", "size is wrong"),
        ("efi = 'x'", "efi is wrong"),
        ("[esp]\ntrees = 'x'", "esp.trees is wrong"),
        ("", "nothing to boot"),
        ("[efi]\naarch64='e'\n[kernel.aarch64]\nkernel='k'", "both an EFI program and a kernel"),
        ("sector-size = 520\n[efi]\naarch64='e'", "512 or 4096"),
        ("format = 'vmdk'\n[efi]\naarch64='e'", "raw or qcow2"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace(".", r"\.")) as caught:
        _parse(tmp_path, text)
    assert "recipe.toml" in str(caught.value)


def test_a_recipe_needs_something_to_boot() -> None:
    with pytest.raises(UsageError, match="nothing to boot"):
        Recipe()
