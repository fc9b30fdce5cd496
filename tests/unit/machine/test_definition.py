from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armvm.errors import UsageError
from armvm.execution import ExecutionState
from armvm.machine.definition import (
    DiskDevice,
    GicVersion,
    HardwareDescription,
    PortForward,
    UserNetwork,
    problems,
    require_sound,
)
from armvm.units import GIB, MIB
from tools.machines import machine_of


def test_the_default_machine_makes_sense() -> None:
    for state in ExecutionState:
        assert problems(machine_of(state)) == ()


def test_a_gicv2_has_at_most_eight_cpus_and_the_clause_is_named() -> None:
    eight = replace(machine_of(), gic=GicVersion.V2, vcpus=8)
    assert problems(eight) == ()
    (problem,) = problems(replace(eight, vcpus=9))
    assert "9 vCPUs" in problem
    assert "VM System Specification v1.0, VM Platform" in problem
    assert problems(replace(eight, vcpus=9, gic=GicVersion.V3)) == ()
    assert problems(replace(eight, vcpus=9, gic=None)) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vcpus": 0}, "0 vCPUs"),
        ({"vcpus": -1}, "-1 vCPUs"),
        ({"vcpus": 513}, "513 vCPUs"),
        ({"memory_bytes": 127 * MIB}, "127 MiB of memory"),
        ({"memory_bytes": 0}, "0 B of memory"),
        ({"memory_bytes": GIB + 1}, "whole MiB"),
        ({"disks": (DiskDevice(Path("a"), "raw", sector_size=520),)}, "sectors of 520 bytes"),
        ({"disks": (DiskDevice(Path("a"), "raw"),) * 25}, "25 disks"),
        ({"nics": (UserNetwork(),) * 7}, "7 network cards"),
        ({"nics": (UserNetwork((PortForward(0, 22),)),)}, "no TCP port: 0"),
        ({"nics": (UserNetwork((PortForward(2222, 65536),)),)}, "no TCP port: 65536"),
        ({"nics": (UserNetwork((PortForward(2222, 22), PortForward(2222, 80))),)}, "forwarded twice"),
        ({"state": ExecutionState.AARCH32, "description": HardwareDescription.ACPI}, "ACPI on an AArch32 machine"),
    ],
)
def test_what_makes_no_sense_is_said(change: dict[str, Any], said: str) -> None:
    (problem,) = problems(replace(machine_of(), **change))
    assert said in problem


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"0 vCPUs.*1 MiB of memory"):
        require_sound(problems(replace(machine_of(), vcpus=0, memory_bytes=MIB)))
    require_sound(())
