"""EDK2 and a guest judge ``armvm vars``: they see what it writes, boot what it says, and obey the keys it enrols."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from armvm.instance import store as instances
from tools.boot_images import BOOT_FILES, READY, efi_guest, esp_image, guest_image
from tools.kept import raw_flash, virt_fw_vars
from tools.keys import make_key, sign

pytestmark = pytest.mark.boot

Armvm = Callable[..., "subprocess.CompletedProcess[str]"]
BOOTS = "6d5cd3a1-29b5-4ae0-9b0e-518c5d2f3370:ArmvmBoots"
STATES = ("aarch64", "aarch32")


def said_until(text: str, name: str) -> str:
    """What the instance says until it says one of ``text``; then it is killed."""
    command = [sys.executable, "-m", "armvm", "run", "--name", name]
    said = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            while text.encode() not in said and READY.encode() not in said:
                chunk = os.read(process.stdout.fileno(), 4096)
                assert chunk, said
                said += chunk
        finally:
            process.send_signal(signal.SIGKILL)
    return said.decode(errors="replace")


def done(armvm: Armvm, *arguments: str | Path) -> str:
    ran = armvm(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("state", STATES)
def test_the_guest_sees_what_is_set_and_we_see_what_it_sets(state: str, tmp_path: Path, armvm: Armvm) -> None:
    image = guest_image(tmp_path / "guest.img", state, mode="q")
    assert "boots=1 " in done(armvm, "run", image, "--name", "web", "--arch", state)
    done(armvm, "vars", "set", "web", f"{BOOTS}=u8:41", "BootNext=1234")
    assert "ArmvmBoots" in virt_fw_vars("-i", raw_flash(instances.find("web"), tmp_path), "-p")
    assert "boots=42 " in done(armvm, "run", "--name", "web")
    assert done(armvm, "vars", "get", "web", BOOTS) == "2a (1 byte)\n"
    assert armvm("vars", "get", "web", "BootNext").returncode == 2  # the boot manager has taken it
    done(armvm, "vars", "export", "web", "--efivarfs", tmp_path / "efivars")
    done(armvm, "vars", "reset", "web", "--yes")
    done(armvm, "vars", "import", "web", tmp_path / "efivars")
    assert "boots=43 " in done(armvm, "run", "--name", "web")


def test_the_firmware_boots_the_entry_that_we_write(tmp_path: Path, armvm: Armvm) -> None:
    """The program stands where only our boot entry leads to."""
    program = efi_guest(tmp_path, "aarch64")
    image = esp_image(tmp_path / "other.img", {"EFI/OTHER/PROGRAM.EFI": program, "MODE": b"q"})
    first = armvm("run", image, "--name", "web", "--arch", "aarch64", "--until", "Shell|bootable", "--timeout", "60")
    assert READY not in first.stdout
    done(armvm, "vars", "set", "web", "Boot0077=Our own|\\EFI\\OTHER\\PROGRAM.EFI", "BootNext=0077")
    said = said_until("Shell", "web")
    assert 'starting Boot0077 "Our own"' in said
    assert READY in said


@pytest.mark.parametrize("state", ["aarch64", pytest.param("aarch32", marks=pytest.mark.slow)])
def test_secure_boot_with_our_keys(state: str, tmp_path: Path, armvm: Armvm) -> None:
    """Without db nothing boots, with the signer's certificate it does, with the program's hash in dbx it does not."""
    platform, signer = make_key(tmp_path, "platform"), make_key(tmp_path, "signer")
    program = efi_guest(tmp_path, state)
    signed = sign(program, signer)
    image = esp_image(tmp_path / "signed.img", {f"EFI/BOOT/{BOOT_FILES[state]}": signed, "MODE": b"q"})
    done(armvm, "run", image, "--name", "web", "--arch", state)
    done(armvm, "vars", "enroll", "web", "--pk", platform.pem, "--kek", platform.pem)
    assert "Access Denied" in said_until("Access Denied", "web")
    done(armvm, "vars", "enroll", "web", "--db", signer.pem)
    assert "boots=2 " in done(armvm, "run", "--name", "web")
    done(armvm, "vars", "enroll", "web", "--dbx", program)
    assert "Access Denied" in said_until("Access Denied", "web")
    told = json.loads(done(armvm, "vars", "list", "web", "--json"))["variables"]
    kept = {one["name"]: one for one in told}
    # What EDK2 adds when it finds a platform key: it is in user mode, and took the key for its own.
    assert kept["VendorKeysNv"]["attributes"] == 35
    assert kept["SecureBootEnable"]["value"] == "on"
    assert kept["PK"]["signatures"][0]["subject"] == "CN=platform"


@pytest.mark.slow
def test_a_hash_in_db_lets_an_unsigned_program_boot_beside_microsofts_keys(tmp_path: Path, armvm: Armvm) -> None:
    image = guest_image(tmp_path / "guest.img", "aarch64", mode="q")
    done(armvm, "run", image, "--name", "web")
    done(armvm, "vars", "enroll", "web", "--microsoft")
    assert "Access Denied" in said_until("Access Denied", "web")
    done(armvm, "vars", "enroll", "web", "--db", tmp_path / BOOT_FILES["aarch64"])
    assert "boots=2 " in done(armvm, "run", "--name", "web")
    done(armvm, "vars", "enroll", "web", "--dbx", tmp_path / BOOT_FILES["aarch64"])
    assert "Access Denied" in said_until("Access Denied", "web")
    # Switched off, the same keys forbid nothing.
    done(armvm, "vars", "set", "web", "SecureBootEnable=off")
    assert "boots=3 " in done(armvm, "run", "--name", "web")
