from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from armvm.errors import MissingError
from armvm.execution import ExecutionState
from armvm.lab import agent, xen, xen_domain
from armvm.lab.recipe import GuestRequest, HostFiles, HostKind
from armvm.lab.xen_firmware import firmware_path
from armvm.units import GIB, MIB
from tools.fake_xen import bring_down, install_fake_xen

AARCH64, AARCH32 = ExecutionState.AARCH64, ExecutionState.AARCH32
REQUEST = GuestRequest(Path("/i.raw"), "raw", AARCH64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the lab."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "armvm" / "lab"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def firmware(cache: Path) -> bytes:
    """What stands for the built firmware."""
    for state in xen.HOST.states:
        firmware_path(state, cache).write_bytes(b"firmware")
    return b"firmware"


def test_without_its_firmware_it_says_what_makes_it(cache: Path) -> None:
    assert cache.is_dir()
    with pytest.raises(MissingError, match="was not built") as raised:
        xen.HOST.recipe()
    assert raised.value.hint == "armvm lab up xen"


def test_the_firmware_is_built_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(state: ExecutionState, folder: Path, *, notes: Callable[[str], None]) -> Path:
        notes("building")
        built.append(state)
        path = firmware_path(state, folder)
        path.write_bytes(b"x")
        return path

    monkeypatch.setattr(xen, "build_xen_firmware", build)
    monkeypatch.setattr(xen, "missing_tools", lambda _state: ())
    said: list[str] = []
    xen.HOST.prepare(said.append)
    xen.HOST.prepare(said.append)
    assert built == list(xen.HOST.states)
    assert (cache / "making").is_file()


def test_the_recipe(firmware: bytes) -> None:
    recipe = xen.HOST.recipe()
    assert recipe.kind is HostKind.XEN
    assert "xen-hypervisor-4.17-arm64" in recipe.packages
    assert recipe.beside == {"xen": "boot/xen-4.17-arm64"}
    assert recipe.files[xen_domain.FIRMWARE[AARCH64]].content == firmware
    assert recipe == xen.HOST.recipe()
    subprocess.run(["/bin/sh", "-n"], input=recipe.setup.encode(), check=True)
    for script in (xen_domain.BLOCK_SCRIPT, xen_domain.VIF_SCRIPT):
        file = recipe.files[f"etc/xen/scripts/{script}"]
        assert file.program
        subprocess.run(["/bin/sh", "-n"], input=file.content, check=True)


def test_xen_is_started_in_the_kernels_place() -> None:
    files = HostFiles(Path("/a,b/kernel"), Path("/a,b/initrd"), {"xen": Path("/a,b/xen")})
    arguments = xen.HOST.arguments(files)
    assert arguments[:2] == ("-kernel", "/a,b/xen")
    loaders = [word for word in arguments if word.startswith("guest-loader")]
    assert loaders[0].startswith("guest-loader,addr=0x50000000,kernel=/a,,b/kernel,bootargs=console=hvc0 rdinit=/init")
    assert loaders[1] == "guest-loader,addr=0x60000000,initrd=/a,,b/initrd"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "qcow2"}, "takes raw images, not qcow2"),
        ({"sector_size": 4096}, "512-byte sectors, not 4096"),
        ({"memory_bytes": 2 * GIB}, "at most 1024"),
    ],
)
def test_what_it_cannot_do_is_said(change: dict[str, object], said: str) -> None:
    assert xen.HOST.problems(REQUEST) == ()
    (problem,) = xen.HOST.problems(replace(REQUEST, **change))  # type: ignore[arg-type]  # fields of the request
    assert said in problem


def test_a_state_whose_firmware_cannot_be_built_is_refused_with_the_command(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen, "missing_tools", lambda state: () if state is AARCH64 else ("arm-linux-gnueabi-gcc",))
    monkeypatch.setattr("armvm.packages.distribution_family", lambda: "debian")
    assert xen.HOST.probe_problems(AARCH64) == ()
    for problems in (xen.HOST.probe_problems(AARCH32), xen.HOST.problems(replace(REQUEST, state=AARCH32))):
        (problem,) = problems
        assert "apt-get install gcc-arm-linux-gnueabi" in problem
    firmware_path(AARCH32, cache).write_bytes(b"built elsewhere")
    assert xen.HOST.probe_problems(AARCH32) == ()


def test_without_the_compiler_for_aarch32_there_is_a_host_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen, "missing_tools", lambda state: () if state is AARCH64 else ("arm-linux-gnueabi-gcc",))

    def build(state: ExecutionState, folder: Path, *, notes: Callable[[str], None]) -> None:
        notes("building")
        firmware_path(state, folder).write_bytes(b"x")

    monkeypatch.setattr(xen, "build_xen_firmware", build)
    xen.HOST.prepare(lambda _line: None)
    files = xen.HOST.recipe().files
    assert xen_domain.FIRMWARE[AARCH64] in files
    assert xen_domain.FIRMWARE[AARCH32] not in files


def test_its_tasks_are_modules_that_the_agent_runs_itself() -> None:
    boot = xen.HOST.boot_task(replace(REQUEST, until="log in:"))
    module, arguments = agent._inside(boot.command)
    assert module == "armvm.lab.xen_domain"
    options = xen_domain._parser().parse_args(arguments)
    assert (options.until, options.memory, options.state) == ("log in:", REQUEST.memory_bytes, AARCH64)
    probe = xen.HOST.probe_task(AARCH64, profile="vmspec-1.0", timeout_seconds=9.0)
    options = xen_domain._parser().parse_args(agent._inside(probe.command)[1])
    assert probe.collect["report"] == str(options.report)
    assert agent._inside(("armvm", "run")) == ("armvm.cli.main", ["run"])
    assert agent._inside(("xl", "info"))[0] is None


@pytest.fixture
def domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fake Xen for ``xen_domain``, with a disk that needs no device mapper; its folder."""
    monkeypatch.setenv("PATH", install_fake_xen(tmp_path))
    monkeypatch.setattr(xen_domain, "require_control_domain", lambda: None)

    @contextmanager
    def writable(image: Path) -> Iterator[Path]:
        yield image

    monkeypatch.setattr(xen_domain, "writable", writable)
    yield tmp_path


def boot(*words: str) -> int:
    return xen_domain.main(["boot", "--memory", str(512 * MIB), *words])


def test_the_guest_says_what_is_waited_for(domain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (domain / "says").write_text("welcome\nlogin: ")
    assert boot("--timeout", "20", "--until", "^login:") == 0
    assert "welcome" in capfd.readouterr().out
    assert not (domain / "running").exists()
    assert f'kernel = "/{xen_domain.FIRMWARE[AARCH64]}"' in (domain / "config").read_text()


def test_a_guest_that_powers_off_has_done_it(domain: Path) -> None:
    def later() -> None:
        while not (domain / "running").exists():
            time.sleep(0.02)
        bring_down(domain, "0")

    thread = threading.Thread(target=later)
    thread.start()
    assert boot("--timeout", "20") == 0
    thread.join()


@pytest.mark.parametrize(("reason", "said"), [(None, "still running after 0.5 s"), ("3", "crashed")])
def test_one_that_does_not_is_said(
    domain: Path, capfd: pytest.CaptureFixture[str], reason: str | None, said: str
) -> None:
    if reason is not None:
        (domain / "releases").write_text("@releaseDomain\n")
        script = domain / "bin" / "xl"
        script.write_text(script.read_text().replace('rm -f "$D/reason"', f'echo {reason} >"$D/reason"'))
    assert boot("--timeout", "0.5" if reason is None else "20", "--until", "never") == 1
    assert f"armvm: {'the guest' if reason is None else 'the Xen domain'}" in (error := capfd.readouterr().err)
    assert said in error


def test_a_disk_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    from armvm.errors import InputError

    with pytest.raises(InputError, match="cannot be read"), xen_domain.writable(tmp_path / "none"):
        pass


def test_the_block_script_gives_a_file_by_a_loop_device_and_takes_it_back(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    store = tmp_path / "store"
    (store / "b").mkdir(parents=True)
    (store / "b" / "params").write_text(str(tmp_path / "d.img"))
    (store / "b" / "mode").write_text("r")
    (tmp_path / "d.img").write_bytes(b"x")
    tools = {
        "xenstore-read": f'cat "{store}/$1"',
        "xenstore-write": f'while [ $# -gt 0 ]; do printf %s "$2" >"{store}/$1"; shift 2; done',
        "xenstore-rm": f'rm -f "{store}/$1"',
        "losetup": f'echo "$@" >>{tmp_path}/losetups; [ "$1" != -f ] || echo /dev/null',
    }
    for name, text in tools.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    script = xen._BLOCK.replace("export PATH=", f"export PATH={programs}:")

    def run(action: str) -> None:
        env = {**os.environ, "XENBUS_PATH": "b"}
        subprocess.run(["/bin/sh", "-c", script, "block", action], env=env, check=True)

    run("add")
    assert (store / "b" / "physical-device").read_text() == "1:3"
    assert (store / "b" / "hotplug-status").read_text() == "connected"
    run("remove")
    assert not (store / "b" / "hotplug-status").exists()
    assert (tmp_path / "losetups").read_text().splitlines() == ["-f", f"-r /dev/null {tmp_path}/d.img", "-d /dev/null"]
