"""What a command line takes for granted about consoles.

What Linux does (kernel/printk/printk.c; drivers/of/base.c, of_console_check; drivers/acpi/spcr.c;
arch/arm/xen/enlighten.c; drivers/tty/hvc/hvc_console.c):

- Without any ``console=``, it takes the device tree's ``stdout-path`` or ACPI's SPCR, which lead to the pl011, and hvc0
  in a Xen domain. Its messages reach no virtio console: hvc0 becomes a console only when it is asked for.
- With one, ``stdout-path`` and Xen's own choice count no more: a console that is not named stays dead.
- One that is named and does not exist does no harm. The virtio console and Xen's are both hvc0, so
  ``console=ttyAMA0 console=hvc0`` serves all three.
- ``earlycon`` with an address writes there before anything is known about the machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from armvm.guest.command_line import WordFault
from armvm.guest.facts import AssumptionKind

SERVING = {"ttyAMA0": "the pl011", "hvc0": "virtio and Xen consoles"}
"""The console devices that an ARM VM of the specification can have, and what stands behind them."""
ALL_CONSOLES = " ".join(f"console={device}" for device in SERVING)

_SILENT = frozenset({"", "null", "ttynull", "none"})


def console_faults(words: Sequence[str]) -> tuple[WordFault, ...]:
    """What the words of a command line assume about consoles."""
    return (*_consoles(words), *_early(words))


def console_device(word: str) -> str | None:
    """The device of a ``console=`` word (``ttyAMA0,115200`` → ``ttyAMA0``); None when it is no such word."""
    name, equals, value = word.strip('"').partition("=")
    return value.partition(",")[0].removeprefix("/dev/") if equals and name == "console" else None


def _consoles(words: Sequence[str]) -> tuple[WordFault, ...]:
    named = [(word, device) for word in words if (device := console_device(word)) is not None]
    if not named:
        return ()
    devices = {device for _, device in named}
    missing = [device for device in SERVING if device not in devices]
    last = named[-1][0]
    shown = " ".join(dict.fromkeys(word for word, _ in named))
    if devices <= _SILENT:
        new = ALL_CONSOLES
        why = "the kernel speaks on no console"
    elif not missing:
        return ()
    else:
        new = " ".join([last, *(f"console={device}" for device in missing)])
        why = f"{_named(devices)}: {left_dead(missing)}"
    return (
        WordFault(
            AssumptionKind.CONSOLE, why, last, new, f"Pass every console on the command line: {ALL_CONSOLES}.", shown
        ),
    )


def left_dead(missing: Sequence[str]) -> str:
    """What comes of a console that nobody names, in words."""
    if len(missing) == len(SERVING):
        return "pl011, virtio and Xen consoles stay dead"
    return " and ".join(SERVING[device] for device in missing) + (
        " stays dead" if "ttyAMA0" in missing else " stay dead"
    )


def _named(devices: set[str]) -> str:
    serial = sorted(device for device in devices if not device.startswith("tty") or not device[3:].isdigit())
    return f"of consoles only {serial[0][:40]} is named" if len(serial) == 1 else "not every kind of console is named"


def _early(words: Sequence[str]) -> tuple[WordFault, ...]:
    return tuple(
        WordFault(
            AssumptionKind.CONSOLE,
            "an early console at a fixed address: where another device or nothing is, the kernel dies without a word",
            word,
            "earlycon",
            "Use earlycon without an address (the device tree or SPCR says where the console is), or none.",
        )
        for word in words
        if word.partition("=")[0] == "earlycon" and "0x" in word.partition("=")[2]
    )


def silent_on_virtio(words: Sequence[str]) -> bool:
    """Whether no console is named at all: nothing is hard-wired, and the kernel never speaks on a virtio console."""
    return not any(console_device(word) is not None for word in words)
