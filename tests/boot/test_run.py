"""``armvm run`` with real virtual machines: every value of every option boots, and nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from armvm.execution import ExecutionState
from tools.boot_images import READY, guest_image, read_esp_file
from tools.virtio_guest import virtio_console_image

Armvm = Callable[..., "subprocess.CompletedProcess[str]"]

U_BOOT = {"aarch64": "/usr/lib/u-boot/qemu_arm64/u-boot.bin", "aarch32": "/usr/lib/u-boot/qemu_arm/u-boot.bin"}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Images that boot in both states, by what their guest does; never written to."""
    folder = tmp_path_factory.mktemp("images")
    made: dict[tuple[str, int], Path] = {}

    def image(mode: str = "w", sector_size: int = 512) -> Path:
        key = (mode, sector_size)
        if key not in made:
            path = folder / f"{mode}{sector_size}.img"
            made[key] = guest_image(path, "aarch64", "aarch32", mode=mode, sector_size=sector_size)
            path.chmod(0o444)
        return made[key]

    return image


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def processes_naming(path: Path) -> list[int]:
    """The processes that name ``path`` on their command line, or have it open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = str(path).encode() in (folder / "cmdline").read_bytes()
            holding = any(link.readlink() == path for link in (folder / "fd").iterdir())
        except OSError:
            continue
        if (named or holding) and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ("", "bits=64 gic=3 fdt=1 acpi=0 sector=512"),
        ("--gic 2 --bus mmio", "bits=64 gic=2 fdt=1 acpi=0 sector=512"),
        ("--gic 3 --bus mmio --vcpus 9 --net none", "bits=64 gic=3 fdt=1 acpi=0 sector=512"),
        ("--gic 2 --vcpus 8 --hardware-description acpi", "bits=64 gic=2 fdt=0 acpi=1 sector=512"),
        ("--arch aarch32", "bits=32 gic=3 fdt=1 acpi=0 sector=512"),
        ("--arch aarch32 --gic 2 --vcpus 1 --memory 3071M", "bits=32 gic=2 fdt=1 acpi=0 sector=512"),
        ("--arch aarch32 --gic 3 --bus mmio --vcpus 9 --memory 128M", "bits=32 gic=3 fdt=1 acpi=0 sector=512"),
        ("--cpu cortex-a53 --memory 8G", "bits=64 gic=3 fdt=1 acpi=0 sector=512"),
    ],
)
def test_every_kind_of_machine_boots(options: str, seen: str, images: Callable[..., Path], armvm: Armvm) -> None:
    done = armvm("run", images(), *options.split(), "--until", READY, "--timeout", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{seen} boots=1 disk=1" in done.stdout


@pytest.mark.parametrize("state", ["aarch64", "aarch32"])
@pytest.mark.parametrize("bus", ["pci", "mmio"])
def test_4096_byte_sectors_are_what_the_image_is_made_for(
    state: str, bus: str, images: Callable[..., Path], armvm: Armvm
) -> None:
    image = images("q", sector_size=4096)
    done = armvm("run", image, "--arch", state, "--bus", bus, "--until", "sector=4096", "--timeout", "60")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("state", ["aarch64", "aarch32"])
def test_u_boot_is_another_firmware(state: str, images: Callable[..., Path], armvm: Armvm) -> None:
    options = ("--arch", state, "--firmware", U_BOOT[state], "--until", READY, "--timeout", "60")
    done = armvm("run", images(), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "U-Boot" in done.stdout


@pytest.mark.parametrize("state", ExecutionState)
def test_a_virtio_console_on_either_bus(state: ExecutionState, tmp_path: Path, armvm: Armvm) -> None:
    image = virtio_console_image(tmp_path / "virtio.img", state)
    for bus in ("pci", "mmio"):
        options = ("--bus", bus, "--console", "virtio", "--until", f"{READY} hvc0", "--timeout", "120")
        done = armvm("run", image, *options, timeout_seconds=150)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "UEFI" not in done.stdout  # firmware speaks on the pl011, which leads nowhere


def test_the_virtio_console_of_a_guest_without_a_driver_is_silent_and_said_to_be(
    images: Callable[..., Path], armvm: Armvm
) -> None:
    done = armvm("run", images("q"), "--console", "virtio", "--until", READY, "--timeout", "60")
    assert done.returncode == 1
    assert "console=hvc0" in done.stderr


def test_a_guest_that_powers_off_ends_the_run_and_the_image_is_as_before(
    images: Callable[..., Path], armvm: Armvm
) -> None:
    image = images("q")
    before = digest(image), image.stat().st_mtime_ns
    done = armvm("run", image)
    assert done.returncode == 0, done.stderr
    assert "boots=1 disk=1" in done.stdout
    again = armvm("run", image)
    assert "boots=1 disk=1" in again.stdout, "neither variables nor writes outlive an ephemeral run"
    assert (digest(image), image.stat().st_mtime_ns) == before


@pytest.mark.parametrize("form", ["qcow2", "vmdk", "vhdx", "vdi", "vpc"])
def test_other_containers(form: str, images: Callable[..., Path], tmp_path: Path, armvm: Armvm) -> None:
    converted = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "convert", "-O", form, str(images("q")), str(converted)], check=True, timeout=60)
    before = digest(converted)
    done = armvm("run", converted, "--until", READY, "--timeout", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert digest(converted) == before


def test_writable_writes_to_the_image_and_to_nothing_else(tmp_path: Path, armvm: Armvm) -> None:
    image = guest_image(tmp_path / "own.img", "aarch64", mode="q")
    for count in (1, 2):
        done = armvm("run", image, "--writable")
        assert f"boots=1 disk={count}" in done.stdout, done.stderr
    assert read_esp_file(image, "COUNT") == b"\x02"


def test_what_was_not_said_in_time(images: Callable[..., Path], armvm: Armvm, tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    started = time.monotonic()
    done = armvm("run", images(), "--until", "login:", "--timeout", "4", "--log", log)
    assert time.monotonic() - started < 20
    assert done.returncode == 1
    assert "still running after 4 s" in done.stderr
    assert f"| {READY}" in done.stderr
    assert "\x1b" not in done.stderr
    assert READY.encode() in log.read_bytes()
    assert armvm("run", images(), "--timeout", "1").returncode == 1


def test_what_was_never_said(images: Callable[..., Path], armvm: Armvm) -> None:
    done = armvm("run", images("q"), "--until", "login:", "--timeout", "60")
    assert done.returncode == 1
    assert "the guest powered off and had not said what matches 'login:'" in done.stderr


def test_a_guest_that_resets_for_ever(images: Callable[..., Path], armvm: Armvm) -> None:
    done = armvm("run", images("r"), "--until", "login:", "--timeout", "100", "-q", timeout_seconds=120)
    assert done.returncode == 1
    assert "the guest reset itself 8 times" in done.stderr
    assert done.stdout == ""


def test_a_guest_that_never_stops_talking(images: Callable[..., Path], armvm: Armvm) -> None:
    done = armvm("run", images("f"), "--until", "never", "--timeout", "3")
    assert done.returncode == 1
    assert "flood flood" in done.stdout


def test_a_reader_that_goes_away_does_not_end_the_wait(images: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "armvm", "run", str(images("q")), "--timeout", "60"]
    for until, status in ((["--until", READY], 0), (["--until", "never"], 1), ([], 0)):
        with subprocess.Popen([*command, *until], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(60) == status


def test_a_log_on_a_full_disk_is_said(images: Callable[..., Path], armvm: Armvm) -> None:
    done = armvm("run", images(), "--until", READY, "--log", "/dev/full")
    assert done.returncode == 69
    assert "cannot write /dev/full: No space left on device" in done.stderr


def test_a_writable_image_of_another_format(images: Callable[..., Path], tmp_path: Path, armvm: Armvm) -> None:
    converted = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", str(images("q")), str(converted)], check=True, timeout=60)
    for count in (1, 2):
        done = armvm("run", converted, "--writable")
        assert f"disk={count}" in done.stdout, done.stderr


def test_standard_input_is_not_eaten(images: Callable[..., Path]) -> None:
    """In ``while read image; do armvm run ...; done < list`` the list is not for the guest."""
    command = [sys.executable, "-m", "armvm", "run", str(images()), "--until", READY, "--timeout", "60"]
    reading, writing = os.pipe()
    os.write(writing, b"qqq")
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as rest:
        done = subprocess.run(command, stdin=rest, capture_output=True, timeout=90, check=False)
        assert done.returncode == 0
        assert rest.read() == b"qqq"


@pytest.fixture
def running(images: Callable[..., Path], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """An armvm whose guest is up, in a folder for temporary files of its own; and the image."""
    image = tmp_path / "image.img"
    image.symlink_to(images())
    command = [sys.executable, "-m", "armvm", "run", str(image)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            said = b""
            while READY.encode() not in said:
                chunk = os.read(process.stdout.fileno(), 4096)
                assert chunk, process.stderr.read() if process.stderr else ""
                said += chunk
            yield process, image
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("how", "status"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
)
def test_no_death_leaves_a_qemu_or_a_file(
    how: signal.Signals, status: int, running: tuple[subprocess.Popen[bytes], Path], tmp_path: Path
) -> None:
    process, image = running
    assert len(processes_naming(image)) == 2
    assert list((tmp_path / "tmp").iterdir()) == [], "what is temporary has no name even while it is in use"
    process.send_signal(how)
    assert process.wait(30) == status
    assert wait_for(lambda: not processes_naming(image)), "QEMU is still there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.img", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGKILL, "QEMU was killed by signal 9 under the guest"),
        (signal.SIGTERM, "somebody else ended the machine while the guest was running"),
    ],
)
def test_qemu_that_is_ended_by_others_is_an_error_with_a_name(
    how: signal.Signals, said: str, running: tuple[subprocess.Popen[bytes], Path]
) -> None:
    process, image = running
    (qemu,) = [pid for pid in processes_naming(image) if pid != process.pid]
    os.kill(qemu, how)
    assert process.wait(30) == 69
    assert process.stderr is not None
    assert said in process.stderr.read().decode()


def test_qemu_listens_nowhere(running: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, image = running
    (qemu,) = [pid for pid in processes_naming(image) if pid != process.pid]
    links = [str(link.readlink()) for link in Path(f"/proc/{qemu}/fd").iterdir()]
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    listening = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        listening |= {line.split()[9] for line in Path(f"/proc/{qemu}/net/{table}").read_text().splitlines()[1:]}
    for line in Path(f"/proc/{qemu}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000 or len(fields) > 7:  # accepts connections, or has a name
            listening.add(fields[6])
    assert sockets
    assert not sockets & listening


def test_a_forwarded_port_is_open_on_this_host_only(images: Callable[..., Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "armvm", "run", str(images()), "--forward", f"{port}:22"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(1)
            listening = [
                line.split()[1]
                for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
            ]
            assert listening == [f"0100007F:{port:04X}"]
        finally:
            process.terminate()


def test_a_port_that_is_taken(images: Callable[..., Path], armvm: Armvm) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = armvm("run", images(), "--forward", f"{port}:22", "--until", READY)
    assert done.returncode == 69
    assert "QEMU did not start" in done.stderr
    assert str(port) in done.stderr


@pytest.mark.parametrize("options", [(), ("--arch", "aarch32", "--bus", "mmio"), ("--net", "none", "--gic", "2")])
def test_the_printed_command_works_when_pasted(
    options: tuple[str, ...], images: Callable[..., Path], tmp_path: Path, armvm: Armvm
) -> None:
    odd = tmp_path / 'it\'s, a "disk" $HOME.img'
    odd.symlink_to(images("q"))
    done = armvm("run", odd, "--print-command", *options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    pasted = subprocess.run(
        ["sh", "-c", done.stdout], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True
    )
    assert READY.encode() in pasted.stdout


def test_a_command_of_a_machine_that_waits_has_its_monitor_behind_ctrl_a(
    images: Callable[..., Path], armvm: Armvm
) -> None:
    import pexpect

    command = shlex.split(armvm("run", images(), "--print-command").stdout)
    child = pexpect.spawn(command[0], command[1:], timeout=60, encoding="utf-8")
    child.expect(READY)
    child.send("z")
    child.expect("KEY 122")
    child.send("\x01x")
    child.expect(pexpect.EOF)


def test_v_shows_the_command_and_q_nothing(images: Callable[..., Path], armvm: Armvm) -> None:
    loud = armvm("run", images(), "--until", READY, "-v")
    assert re.search(r"qemu-system-aarch64 .*-machine virt", loud.stderr)
    quiet = armvm("run", images(), "--until", READY, "-q")
    assert (quiet.stdout, quiet.stderr) == ("", "")
