"""How the probe's disk is booted on other hypervisors: data, and its rendering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instructions:
    """What to do on one hypervisor; ``format`` is what it wants the disk in, ``back`` how its word comes back."""

    name: str
    format: str
    steps: tuple[str, ...]
    back: str


@cache
def instructions() -> Mapping[str, Instructions]:
    """The hypervisors and clouds whose way is known, by a short name."""
    import tomllib

    data = tomllib.loads(Path(__file__).with_name("instructions.toml").read_text(encoding="utf-8"))
    return {
        key: Instructions(entry["name"], entry["format"], tuple(entry["steps"]), entry["back"])
        for key, entry in data.items()
    }


def render_instructions(key: str, image: Path, form: str) -> str:
    """The instructions for ``key`` as text, for the disk at ``image`` in the format ``form``."""
    entry = instructions()[key]
    words = {"image": image.name, "format": form}
    steps = [f"  {number}. {step.format(**words)}" for number, step in enumerate(entry.steps, start=1)]
    last = f"  {len(steps) + 1}. {entry.back.format(**words)}"
    return "\n".join([f"{entry.name} (disk format: {entry.format})", *steps, last])
