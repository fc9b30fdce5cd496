"""Where Debian's packages come from: the mirror that the machine's own apt uses, else mmdebstrap's default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from armvm.errors import MissingError
from armvm.packages import install_command

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""The keys of Debian's archive: on the machine that builds, and under the same path in every Debian."""
APT_FOLDER = Path("/etc/apt")
_SUITES = frozenset({"buster", "bullseye", "bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable"})
_COMPONENTS = "main"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """The addresses of a Debian archive; None where mmdebstrap's own default is meant."""

    main: str | None = None
    security: str | None = None

    def lines(self, release: str, pockets: Iterable[str]) -> str | None:
        """A sources.list for ``release``; None when the main archive's address is not known."""
        if self.main is None:
            return None
        places = [(self.main, release)]
        if "updates" in pockets and _has_pockets(release):
            places.append((self.main, f"{release}-updates"))
        if "security" in pockets and self.security is not None and _has_pockets(release):
            places.append((self.security, f"{release}-security"))
        return "".join(f"deb [signed-by={KEYRING}] {uri} {suite} {_COMPONENTS}\n" for uri, suite in places)


def _has_pockets(release: str) -> bool:
    return release not in ("sid", "unstable", "experimental")


def require_keyring(keyring: Path = KEYRING) -> Path:
    """The keyring of Debian's archive. Raises MissingError with the command that installs it."""
    if not keyring.is_file():
        component = "debian-archive-keyring"
        raise MissingError(
            "the keys of Debian's package archive are not on this machine",
            component=component,
            install=install_command(component),
        )
    return keyring


def machine_archive(apt: Path = APT_FOLDER) -> Archive:
    """The Debian archive that this machine's apt uses, whatever release; empty where it uses none (Ubuntu, Fedora)."""
    main = security = None
    for uri, suite in _entries(apt):
        base = suite.partition("/")[0]
        if base.removesuffix("-security") != base or suite.endswith("/updates"):
            if base.removesuffix("-security") in _SUITES:
                security = security or uri
        elif base in _SUITES:
            main = main or uri
    return Archive(main, security)


def mirror_archive(mirror: str) -> Archive:
    """A mirror that was asked for: its security archive stands beside it, as on every full mirror."""
    base = mirror.rstrip("/")
    security = f"{base}-security" if base.endswith("/debian") else None
    return Archive(base, security)


def _entries(apt: Path) -> Iterator[tuple[str, str]]:
    """(URI, suite) of every binary source (sources.list(5)), in the order in which apt reads them."""
    paths = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")[:_MOST_BYTES]
        except OSError:
            continue
        if path.suffix == ".list":
            yield from _one_line(text)
        elif path.suffix == ".sources":
            yield from _deb822(text)


def _one_line(text: str) -> Iterator[tuple[str, str]]:
    for line in (raw.partition("#")[0].strip() for raw in text.splitlines()):
        if not line.startswith("deb "):
            continue
        rest = line.removeprefix("deb ").strip()
        if rest.startswith("["):
            rest = rest.partition("]")[2].strip()
        words = rest.split()
        if len(words) >= 2:
            yield words[0], words[1]


def _deb822(text: str) -> Iterator[tuple[str, str]]:
    for stanza in text.replace("\r\n", "\n").split("\n\n"):
        fields: dict[str, list[str]] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields.setdefault(key, []).extend(line.split())
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.split()
        if "deb" not in fields.get("types", []) or fields.get("enabled", ["yes"]) == ["no"]:
            continue
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield uri, suite
