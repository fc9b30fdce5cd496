"""What a distribution's image is to be made of: the ``[distribution]`` part of a recipe, or options."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armvm.errors import InputError, UsageError
from armvm.execution import ExecutionState
from armvm.image.recipe import RecipeFields, parse_fields
from armvm.image.toml_reader import TomlReader
from armvm.printable import printable


class Architecture(enum.Enum):
    """An architecture as Debian names it; OCI's name for it is in ``oci``."""

    ARM64 = "arm64"
    ARMHF = "armhf"

    @property
    def state(self) -> ExecutionState:
        """The execution state that it runs in."""
        return ExecutionState.AARCH64 if self is Architecture.ARM64 else ExecutionState.AARCH32

    @property
    def oci(self) -> str:
        """The architecture's name in OCI images (GOARCH)."""
        return "arm64" if self is Architecture.ARM64 else "arm"


class SourceKind(enum.Enum):
    """Where a root tree comes from."""

    DEBIAN = "debian"
    OCI = "oci"
    DOCKER_ARCHIVE = "docker-archive"
    TREE = "tree"
    TAR = "tar"


RELEASES = {"11": "bullseye", "12": "bookworm", "13": "trixie", "stable": "trixie", "oldstable": "bookworm"}
"""Numbers and aliases of Debian's releases: an image keeps to the release that it was made of."""
POCKETS = ("updates", "security")

_RELEASE = re.compile(r"[a-z][a-z0-9-]{1,31}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9-]+)?(?:=[A-Za-z0-9.+:~-]+)?")
_HOSTNAME = re.compile(r"(?=.{1,64}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HASH = re.compile(r"\$[0-9a-z]{1,8}\$[!-9;-~]{8,256}")
_SSH_KEY = re.compile(r"(?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/]{20,}={0,3}(?: [^\r\n]*)?")
_MIRROR = re.compile(r"(?:https?|file)://[!-~]+")
_TIMEZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,2}")
_LOCALE = re.compile(r"[A-Za-z]{1,8}(?:_[A-Z]{2})?(?:\.UTF-8)?")
_KERNEL_ARGUMENT = re.compile(r"[A-Za-z0-9_.,:=/+@%-]+")


@dataclass(frozen=True, slots=True)
class User:
    """An account. Without ``password_hash`` (crypt(5)) it is locked: its ssh keys are the way in, sudo asks nothing."""

    name: str
    ssh_keys: tuple[str, ...] = ()
    password_hash: str | None = None
    groups: tuple[str, ...] = ()
    shell: str = "/bin/bash"

    def __post_init__(self) -> None:
        _match(_USER, self.name, "user name")
        for group in self.groups:
            _match(_USER, group, "group")
        for key in self.ssh_keys:
            _match(_SSH_KEY, key, f"ssh public key of {printable(self.name)}")
        if self.password_hash is not None and not _HASH.fullmatch(self.password_hash):
            raise UsageError(
                f"the password of {self.name} is no hash", hint="make one with `openssl passwd -6`, or `mkpasswd`"
            )
        _match(re.compile(r"/[A-Za-z0-9_./-]+"), self.shell, "shell")


@dataclass(frozen=True, slots=True)
class DistributionRecipe:
    """A distribution's image.

    Only ``source``, ``architectures``, ``kernel_arguments`` and ``root_size_bytes`` have a meaning for what is not
    Debian: its tree is taken as it is.
    """

    source: str = "debian"
    architectures: tuple[Architecture, ...] = (Architecture.ARM64,)
    packages: tuple[str, ...] = ()
    hostname: str = "debian"
    users: tuple[User, ...] = ()
    ssh: bool = False
    cloud_init: bool = False
    mirror: str | None = None
    pockets: tuple[str, ...] = POCKETS
    locale: str = "C.UTF-8"
    timezone: str | None = None
    kernel_arguments: tuple[str, ...] = ()
    root_size_bytes: int | None = None

    def __post_init__(self) -> None:
        kind, _ = self.origin
        if not self.architectures or len(set(self.architectures)) != len(self.architectures):
            raise UsageError("name each architecture once: arm64, armhf, or both")
        for pattern, values, what in (
            (_PACKAGE, self.packages, "package"),
            (_HOSTNAME, (self.hostname,), "hostname"),
            (_MIRROR, (self.mirror,), "mirror"),
            (_TIMEZONE, (self.timezone,), "time zone"),
            (_LOCALE, (self.locale,), "locale"),
            (_KERNEL_ARGUMENT, self.kernel_arguments, "kernel argument"),
        ):
            for value in values:
                if value is not None:
                    _match(pattern, value, what)
        for pocket in self.pockets:
            if pocket not in POCKETS:
                raise UsageError(f"no pocket of Debian: {printable(pocket)!r}", hint=f"pockets: {', '.join(POCKETS)}")
        names = [user.name for user in self.users]
        if len(set(names)) != len(names):
            raise UsageError("two users have the same name")
        if kind is not SourceKind.DEBIAN and self._only_debian():
            raise UsageError(
                f"{', '.join(self._only_debian())}: only a Debian image is set up so, another tree is taken as it is",
                hint="set it up before it is archived",
            )
        if kind is not SourceKind.DEBIAN and len(self.architectures) > 1:
            raise UsageError("one tree serves one architecture")

    def _only_debian(self) -> list[str]:
        given = {
            "packages": self.packages,
            "users": self.users,
            "ssh": self.ssh,
            "cloud-init": self.cloud_init,
            "mirror": self.mirror,
            "timezone": self.timezone,
            "hostname": self.hostname != "debian",
            "locale": self.locale != "C.UTF-8",
            "pockets": self.pockets != POCKETS,
        }
        return [name for name, value in given.items() if value]

    @property
    def origin(self) -> tuple[SourceKind, str]:
        """The kind of the source, and what of it: a Debian release's code name, or a path. Raises UsageError."""
        word, _, rest = self.source.partition(":")
        try:
            kind = SourceKind(word)
        except ValueError:
            kinds = "debian[:RELEASE], oci:PATH, docker-archive:FILE, tree:FOLDER, tar:FILE"
            raise UsageError(f"nothing known to build from: {printable(self.source)!r}", hint=f"from {kinds}") from None
        if kind is not SourceKind.DEBIAN:
            if not rest:
                raise UsageError(f"--from {word}: which file or folder?", hint=f"write {word}:PATH")
            return kind, rest
        release = RELEASES.get(rest or "stable", rest)
        _match(_RELEASE, release, "release of Debian")
        return kind, release


def _match(pattern: re.Pattern[str], value: str, what: str) -> None:
    if not pattern.fullmatch(value):
        raise UsageError(f"no {what}: {printable(value)[:80]!r}")


_KEYS = {
    *("from", "architectures", "packages", "hostname", "users", "ssh", "cloud-init", "mirror", "pockets", "locale"),
    *("timezone", "kernel-arguments", "root-size"),
}
_USER_KEYS = {"name", "ssh-keys", "ssh-key-files", "password-hash", "password-hash-file", "groups", "sudo", "shell"}


def parse_distribution(path: Path) -> tuple[DistributionRecipe | None, RecipeFields]:
    """The ``[distribution]`` part of the recipe file ``path`` (None when it has none), and the image's part.

    Raises InputError, naming the key, for what is no recipe.
    """
    reader = TomlReader(path)
    data = reader.document()
    fields = parse_fields(path, {key: value for key, value in data.items() if key != "distribution"})
    if "distribution" not in data:
        return None, fields
    try:
        return _distribution(reader, reader.table(data, "distribution", _KEYS)), fields
    except UsageError as error:
        raise InputError(error.message, subject=str(path), hint=error.hint) from error


def _distribution(reader: TomlReader, data: dict[str, Any]) -> DistributionRecipe:
    given: dict[str, Any] = {}
    for key, read, name in (
        ("from", reader.text, "source"),
        ("packages", reader.texts, "packages"),
        ("hostname", reader.text, "hostname"),
        ("ssh", reader.flag, "ssh"),
        ("cloud-init", reader.flag, "cloud_init"),
        ("mirror", reader.text, "mirror"),
        ("pockets", reader.texts, "pockets"),
        ("locale", reader.text, "locale"),
        ("timezone", reader.text, "timezone"),
        ("kernel-arguments", reader.texts, "kernel_arguments"),
        ("root-size", reader.size, "root_size_bytes"),
    ):
        if key in data:
            given[name] = read(data[key], f"distribution.{key}")
    if "architectures" in data:
        given["architectures"] = parse_architectures(reader.texts(data["architectures"], "distribution.architectures"))
    if "from" in data:
        kind, _, rest = given["source"].partition(":")
        if rest and kind != SourceKind.DEBIAN.value:
            given["source"] = f"{kind}:{reader.file(rest, 'distribution.from')}"
    users = reader.list(data.get("users", []), "distribution.users")
    given["users"] = tuple(_user(reader, user) for user in users)
    return DistributionRecipe(**given)


def _user(reader: TomlReader, data: Any) -> User:
    key = "distribution.users"
    if not isinstance(data, dict):
        raise reader.wrong(key, data, "a table with name, ssh-keys, password-hash, sudo")
    reader.known(data, _USER_KEYS, f"{key}.")
    keys = list(reader.texts(data.get("ssh-keys", []), f"{key}.ssh-keys"))
    for file in reader.list(data.get("ssh-key-files", []), f"{key}.ssh-key-files"):
        keys += read_ssh_keys(reader.file(file, f"{key}.ssh-key-files"))
    password = data.get("password-hash")
    if password is not None:
        reader.text(password, f"{key}.password-hash")
    if "password-hash-file" in data:
        password = read_password_hash(reader.file(data["password-hash-file"], f"{key}.password-hash-file"))
    groups = reader.texts(data.get("groups", []), f"{key}.groups")
    if reader.flag(data.get("sudo", False), f"{key}.sudo"):
        groups = (*groups, "sudo")
    shell = reader.text(data.get("shell", "/bin/bash"), f"{key}.shell")
    return User(reader.text(data.get("name", ""), f"{key}.name"), tuple(keys), password, groups, shell)


def parse_architectures(words: Iterable[str]) -> tuple[Architecture, ...]:
    """Architectures by name; ``both`` is arm64 and armhf. Raises UsageError for another name."""
    found: list[Architecture] = []
    for word in words:
        if word == "both":
            found += list(Architecture)
            continue
        try:
            found.append(Architecture(word))
        except ValueError:
            raise UsageError(f"no architecture of ours: {printable(word)!r}", hint="arm64, armhf or both") from None
    return tuple(dict.fromkeys(found))


def read_ssh_keys(path: Path) -> tuple[str, ...]:
    """The public keys in a file, one a line, as ``~/.ssh/id_ed25519.pub`` has it. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as ssh public keys: {error}", subject=str(path)) from error
    if "PRIVATE KEY" in text:
        raise InputError("this is a private key", subject=str(path), hint=f"the public one is in {path}.pub")
    keys = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for key in keys:
        if not _SSH_KEY.fullmatch(key):
            raise InputError("no ssh public key", subject=str(path), found=printable(key)[:40])
    return keys


def read_password_hash(path: Path) -> str:
    """The password hash (crypt(5)) in a file. Raises InputError; what the file holds is never shown."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot be read as a password hash", subject=str(path)) from error
