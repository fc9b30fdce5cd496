"""A Linux kernel's configuration, as the file ``config-RELEASE`` has it and, with CONFIG_IKCONFIG, the kernel."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.units import MIB

MOST_CONFIG_BYTES = 4 * MIB
_SETTING = re.compile(r"^CONFIG_([A-Za-z0-9_]+)=(.*)$", re.MULTILINE)
_ARCHITECTURES = {ExecutionState.AARCH64: "ARM64", ExecutionState.AARCH32: "ARM"}


class Setting(enum.Enum):
    """What a configuration says of a driver: in the kernel, a module of its own, or neither."""

    BUILT_IN = "y"
    MODULE = "m"
    OFF = "n"


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """The options that are set, by their symbol without ``CONFIG_``, and ``where`` the text was found.

    Values are ``y``, ``m``, a number, or the text between the quotes.
    """

    where: str
    values: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, text: str, where: str) -> KernelConfig:
        """Read a configuration (Linux, Documentation/kbuild/kconfig.rst). Raises InputError when ``text`` is none.

        What is not in it is off, so one that is cut off would lie: it has to be of ARM and end with a line's end.
        """
        values = {
            symbol: value.rstrip("\r").removeprefix('"').removesuffix('"') for symbol, value in _SETTING.findall(text)
        }
        if "ARM" not in values and "ARM64" not in values:
            raise InputError("no kernel configuration", subject=where, expected="CONFIG_ARM64=y or CONFIG_ARM=y")
        if not text.endswith("\n"):
            raise InputError("a kernel configuration that is cut off", subject=where, expected="a line's end")
        return cls(where, values)

    def value(self, symbol: str) -> str | None:
        """The value of a symbol (without ``CONFIG_``); None when it is not set."""
        return self.values.get(symbol)

    def setting(self, symbol: str) -> Setting:
        """Whether a symbol is ``y``, ``m``, or anything else."""
        value = self.values.get(symbol)
        return Setting(value) if value in {"y", "m"} else Setting.OFF

    def is_for(self, state: ExecutionState) -> bool:
        """Whether it configures a kernel for ``state``."""
        return self.values.get(_ARCHITECTURES[state]) == "y"
