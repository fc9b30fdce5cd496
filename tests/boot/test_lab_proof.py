"""One image on every hypervisor, and one report of all of it: `armvm lab prove`.

The ordinary suite boots a stand-in guest on QEMU and by way of libvirt. The whole proof takes a real Debian for both
execution states to nested KVM and nested Xen too; their hosts are kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armvm.execution import ExecutionState
from armvm.home import cache
from conftest import Armvm
from tools.boot_images import READY, guest_image
from tools.debian_images import both_states_image
from tools.kernels import debian_kernel
from tools.libvirt_daemon import domains, libvirt_daemon

XEN_LACKS = {"firmware.rtc", "firmware.variables-persist"}
"""EDK2's ArmVirtXen knows no time and keeps no variables: facts of that platform, and all that it lacks."""


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with libvirt_daemon() as found:
        yield found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest_image(tmp_path_factory.mktemp("proof") / "both.img", "aarch64", "aarch32")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def booted(proof: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(one["platform"], one["arch"], one["booted"]) for one in proof["boots"]]


def test_one_image_on_qemu_and_libvirt(armvm: Armvm, uri: str, image: Path, tmp_path: Path) -> None:
    before = digest(image)
    report = tmp_path / "proof.json"
    words = ("--on", "tcg,libvirt", "--connect", uri, "--no-probe", "--until", READY, "--timeout", "60")
    text = tmp_path / "proof.txt"
    done = armvm("lab", "prove", image, *words, "-o", f"json:{report}", "-o", f"text:{text}", timeout_seconds=300)
    proof = json.loads(report.read_bytes())
    # The stand-in is no operating system: what only a guest can show stays unknown, and nothing fails.
    assert done.returncode == 0, done.stdout + done.stderr
    assert proof["schema"] == "armvm.lab-proof/1"
    assert booted(proof) == [
        ("tcg", "aarch64", True),
        ("tcg", "aarch32", True),
        ("libvirt", "aarch64", True),
        ("libvirt", "aarch32", True),
    ]
    assert proof["booted_everywhere"]
    assert proof["unchanged"]
    assert proof["sha256"] == before == digest(image)
    assert [one["subject"]["kind"] for one in proof["report"]["reports"]] == ["image"]
    assert "booted  libvirt (emulation), AArch32" in text.read_text()
    assert "the image is unchanged" in text.read_text()
    assert "libvirt (emulation), AArch64: booting the image" in done.stderr
    assert domains(uri) == []


def test_what_does_not_boot_or_is_not_there_is_said_and_the_others_go_on(
    armvm: Armvm, image: Path, tmp_path: Path
) -> None:
    nowhere = f"qemu+unix:///session?socket={tmp_path}/absent"
    words = ("--on", "libvirt,tcg", "--connect", nowhere, "--no-probe", "--arch", "aarch64")
    done = armvm("lab", "prove", image, *words, "--until", "never said", "--timeout", "6", timeout_seconds=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "n/a     libvirt (emulation), AArch64: " in done.stdout
    assert "absent" in done.stdout
    assert "FAILED  QEMU (emulation), AArch64: " in done.stdout
    assert "'never said'" in done.stdout
    assert READY in done.stdout, "the last that the guest said"


def test_what_makes_no_sense_is_said_before_anything_starts(armvm: Armvm, image: Path) -> None:
    for words in (("--on", "tcg,hyper-v"), ("--on", ","), ("--jobs", "0"), ("--until", "(")):
        given = ("--until", READY) if "--until" not in words else ()
        done = armvm("lab", "prove", image, *given, *words)
        assert done.returncode == 2, done.stderr
        assert "…" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_real_debian_on_every_hypervisor(
    armvm: Armvm, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The both-states Debian, byte for byte the same file, and the probe, on all four; one report, text and JSON."""
    debian = both_states_image()
    before = digest(debian)
    kernel = debian_kernel(ExecutionState.AARCH64).image
    monkeypatch.setenv("ARMVM_HOME", str(cache() / "test-lab"))
    json_file, text_file = tmp_path / "proof.json", tmp_path / "proof.txt"
    words = ("--until", "portable login: ", "--connect", uri, "--kernel", kernel, "--timeout", "1800")
    began = time.monotonic()
    done = armvm(
        *("lab", "prove", debian, *words, "-o", f"json:{json_file}", "-o", f"text:{text_file}"), timeout_seconds=5000
    )
    took = time.monotonic() - began
    proof = json.loads(json_file.read_bytes())
    print(text_file.read_text(), done.stderr, f"all in {took:.0f} s", sep="\n")  # noqa: T201 - what the proof is about
    assert booted(proof) == [
        (platform, state.value, True) for platform in ("tcg", "libvirt", "kvm", "xen") for state in ExecutionState
    ]
    assert proof["booted_everywhere"]
    assert proof["unchanged"]
    assert proof["sha256"] == before == digest(debian)
    assert proof["unjudged"] == []
    of_image, *of_platforms = proof["report"]["reports"]
    assert {finding["verdict"] for finding in of_image["findings"] if finding["level"] == "must"} == {"pass"}
    names = ("QEMU (emulation): ", "libvirt (emulation): ", "nested kvm host: ", "nested xen host: ")
    for name, judged in zip(names, of_platforms, strict=True):
        assert judged["subject"]["name"].startswith(name)
        others = {one["requirement"] for one in judged["findings"] if one["verdict"] != "pass"}
        assert others == (XEN_LACKS if "xen" in name else set()), (name, others)
    assert done.returncode == 1, "ArmVirtXen's lacks are failures"
