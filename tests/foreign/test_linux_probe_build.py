"""The Linux probe's program: built from the sources that stand here, the same bytes everywhere."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from armvm.execution import ExecutionState
from armvm.probe.initramfs import linux_probe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_folders_give_the_bytes_that_are_installed(hook: ModuleType, tmp_path: Path) -> None:
    built = []
    for name in ("one", "a rather longer name/two"):
        folder = tmp_path / name
        shutil.copytree(ROOT / "guest", folder / "guest")
        hook.build_linux(folder / "guest", folder / "out")
        built.append({path.name: path.read_bytes() for path in (folder / "out").glob("linux-probe-*")})
    assert built[0] == built[1]
    installed = {f"linux-probe-{state.value}": linux_probe(state) for state in ExecutionState}
    assert built[0] == installed, "the sources have changed since the last build: pip install -e ."
    assert not any(str(tmp_path).encode() in content or b"wire.c" in content for content in built[0].values())


def test_a_compile_error_stops_the_build_and_is_shown(hook: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "guest", tmp_path / "guest")
    (tmp_path / "guest/probe/init.c").write_text("int main(void) { return oops; }")
    with pytest.raises(RuntimeError, match="oops"):
        hook.build_linux(tmp_path / "guest", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_builds_only_what_has_changed(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(ROOT / "src/armvm/probe/programs", out)
    sources = ROOT / "guest"
    names = [f"linux-probe-{state.value}" for state in ExecutionState]
    (out / ".built").write_text(hook.fingerprint(hook.inputs_digest(sources), out, names))
    compiled: list[object] = []
    monkeypatch.setattr(hook, "_run_zig", lambda *arguments, **_: compiled.append(arguments))
    hook.build_linux(sources, out)
    assert not compiled
    (out / names[0]).write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError):  # nothing was really compiled
        hook.build_linux(sources, out)
    assert compiled
