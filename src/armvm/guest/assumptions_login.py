"""What a guest takes for granted about the consoles that people log in on.

systemd's getty generator starts a login on every console that the kernel speaks on (/sys/class/tty/console/active) and
on hvc0 wherever it exists (systemd-getty-generator(8)), so a guest of systemd needs nothing. Others name devices:
inittab(5) of sysvinit, BusyBox's inittab (examples/inittab), OpenRC's agetty services; and securetty(5) shuts root out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from armvm.guest.assumptions_console import SERVING
from armvm.guest.facts import Assumption, AssumptionKind, PlacedLine
from armvm.guest.mounted import GuestText
from armvm.guest.system import GuestSystem
from armvm.printable import printable

_SCREEN = re.compile(r"tty\d+|vc/\d+|tty1-\d")
_SERIAL = re.compile(r"\b(tty(?:S|AMA|USB|ama|LP|PS|mxc|SAC|O)\d+|hvc\d+|hvsi\d+|xvc\d+)\b")
_LOGIN = re.compile(r"getty|\blogin\b|sulogin|\bsh\b")
_GENERATORS = tuple(
    f"{base}/systemd/system-generators/systemd-getty-generator" for base in ("/usr/lib", "/lib", "/etc")
)
_WANTS = ("/etc/systemd/system/getty.target.wants", "/etc/systemd/system/multi-user.target.wants")
_UNIT = re.compile(r"(?:serial-)?getty@(.+)\.service")


@dataclass(frozen=True, slots=True)
class _Login:
    device: str
    line: PlacedLine


def login_assumptions(text: GuestText, system: GuestSystem) -> tuple[Assumption, ...]:
    """What the system assumes about where people log in."""
    found: list[Assumption] = []
    if system.runs_systemd:
        found += _systemd(text)
    else:
        found += _inittab(text)
        found += _openrc(text)
    found += _securetty(text)
    return tuple(found)


def _inittab(text: GuestText) -> Iterator[Assumption]:
    logins: list[_Login] = []
    screens = 0
    lines = text.lines("/etc/inittab")
    for line in lines:
        fields = line.text.strip().split(":", 3)
        if line.text.lstrip().startswith("#") or len(fields) < 4 or fields[2] not in ("respawn", "askfirst"):
            continue
        if not _LOGIN.search(fields[3]):
            continue
        device = _SERIAL.search(f"{fields[0]} {fields[3]}")
        if device is not None:
            logins.append(_Login(device[1], line))
        elif fields[0] in ("", "console") or "console" in fields[3]:
            return  # BusyBox's empty id and a getty on "console" follow the kernel
        else:
            screens += bool(_SCREEN.search(f"{fields[0]} {fields[3]}"))
    devices = {login.device for login in logins}
    if not logins:
        if screens:
            yield Assumption(
                AssumptionKind.LOGIN,
                "logins on screens only: nobody can log in on a serial console",
                lines[0].file.where,
                "no getty on console, ttyAMA0 or hvc0",
                "Start a getty on console.",
                serious=False,
            )
        return
    yield from _devices(logins, devices)


def _devices(logins: Sequence[_Login], devices: set[str]) -> Iterator[Assumption]:
    missing = [device for device in SERVING if device not in devices]
    if not missing:
        return
    for number, login in enumerate(logins):
        follows = re.sub(rf"\b{re.escape(login.device)}\b", "console", login.line.text)
        yield Assumption(
            AssumptionKind.LOGIN,
            f"a login on {login.device}, none on {', '.join(missing)}",
            login.line.where,
            printable(login.line.text.strip()),
            "Start the getty on console, which is the one that the kernel speaks on.",
            login.line,
            "" if number else follows,
        )


def _openrc(text: GuestText) -> Iterator[Assumption]:
    paths = [path for path in text.names("/etc/runlevels/default") if "/agetty." in path]
    devices = {path.rpartition(".")[2] for path in paths}
    serial = [path for path in paths if _SERIAL.fullmatch(path.rpartition(".")[2])]
    missing = [device for device in SERVING if device not in devices]
    if not serial or not missing or "console" in devices:
        return
    commands = " && ".join(f"ln -s agetty /etc/init.d/agetty.{each} && rc-update add agetty.{each}" for each in missing)
    for path in serial:
        yield Assumption(
            AssumptionKind.LOGIN,
            f"a login on {path.rpartition('.')[2]}, none on {', '.join(missing)}",
            f"{text.files.name}, {printable(path)}",
            printable(path.rpartition("/")[2]),
            f"Add the others: {commands}.",
        )


def _systemd(text: GuestText) -> Iterator[Assumption]:
    generates = any(text.exists(path) for path in _GENERATORS[:2]) and text.link_target(_GENERATORS[2]) != "/dev/null"
    found: dict[str, str] = {}
    for folder in _WANTS:
        for path in text.names(folder):
            unit = _UNIT.fullmatch(path.rpartition("/")[2])
            if unit is not None and _SERIAL.fullmatch(unit[1]):
                found[unit[1]] = path
    missing = [device for device in SERVING if device not in found]
    if not found or not missing:
        return
    for device, path in found.items():
        if generates:
            why = f"a login is asked for on {device}: where there is none, every boot waits for it"
        else:
            why = f"a login on {device}, none on {', '.join(missing)}"
        yield Assumption(
            AssumptionKind.LOGIN,
            why,
            f"{text.files.name}, {printable(path)}",
            f"serial-getty@{device}.service is enabled",
            f"Take the link away (systemctl disable serial-getty@{device}); systemd's generator starts what is needed.",
            serious=not generates,
        )


def _securetty(text: GuestText) -> Iterator[Assumption]:
    lines = text.lines("/etc/securetty")
    named = {line.text.strip() for line in lines}
    missing = [device for device in SERVING if device not in named]
    if lines and missing and "console" not in named:
        last = lines[-1]
        yield Assumption(
            AssumptionKind.LOGIN,
            f"root may not log in on {' and '.join(missing)}",
            last.file.where,
            f"no {' and no '.join(missing)}",
            "Name these devices there, or take the file away.",
            last,
            "\n".join([last.text, *missing]),
            serious=False,
        )
