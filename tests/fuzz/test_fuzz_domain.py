"""Domain XML in every state of brokenness: an InputError or a machine, never anything else."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.firmware.discovery import Firmware
from armvm.machine.libvirt.domain_xml import Domain, domain_xml
from armvm.machine.libvirt.imported import read_domain
from tools.machines import firmware_of, machine_of

SOUND = domain_xml(replace(machine_of(), rng=True, tpm=True, balloon=True, vsock_cid=5), Domain("web"))
WORDS = [word for word in SOUND.replace('"', " ").replace(">", "> ").split() if word]


def find(_state: ExecutionState, *, override: Path | None = None) -> Firmware:
    return firmware_of()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_broken_domains(data: st.DataObject) -> None:
    text = SOUND
    for _ in range(data.draw(st.integers(1, 4))):
        old = data.draw(st.sampled_from(WORDS))
        new = data.draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=8), st.integers().map(str), st.just("")))
        text = text.replace(old, new, data.draw(st.integers(1, 3)))
    content = text.encode("utf-8", "surrogatepass")
    cut = data.draw(st.integers(0, len(content)))
    with suppress(InputError):
        read_domain(content[:cut] if data.draw(st.booleans()) else content, subject="x", find=find)
