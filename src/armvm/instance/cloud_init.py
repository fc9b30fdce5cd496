"""What cloud-init is told about an instance: user-data, meta-data and network-config, from short wishes or whole files.

Sources: cloud-init's reference, "User data formats", "NoCloud" and "Module reference" (22.4).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from armvm.errors import InputError, UsageError
from armvm.printable import printable

MOST_FILE_BYTES = 4 << 20
"""How large a file for cloud-init may be; what is larger belongs on a disk or on a server."""
_MOST_YAML_BYTES = 1 << 20
_MOST_LIST = 1000
_MOST_TEXT = 64 << 10

_CLOUD_CONFIG = b"#cloud-config"
_OTHER_KINDS = (
    *(b"#!", b"#include", b"#cloud-config-archive", b"#cloud-boothook", b"#part-handler", b"## template:"),
    *(b"Content-Type:", b"MIME-Version:", b"From nobody", b"\x1f\x8b"),
)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_SSH_KEY = re.compile(r"(?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/]{20,}={0,3}(?: [^\r\n\0]*)?")
_HASH = re.compile(r"\$[0-9a-z]{1,8}\$[!-9;-~]{8,256}")
_PACKAGE = re.compile(r"[A-Za-z0-9@][A-Za-z0-9@+._:=~/-]{0,200}")
_HOSTNAME = re.compile(
    r"(?=.{1,64}$)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)


@dataclass(frozen=True, slots=True)
class CloudInit:
    """What is wished of cloud-init. ``user`` may use sudo; without ``password_hash`` (crypt(5)) only keys let in.

    ``commands`` are shell commands, run once at the end of the first boot. ``user_data`` is a whole file instead of
    all of these but ``user``, which then only says who `armvm vm ssh` logs in as.
    """

    hostname: str
    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    password_hash: str | None = None
    packages: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    user_data: bytes | None = None
    meta_data: bytes | None = None
    network_config: bytes | None = None

    def __post_init__(self) -> None:
        for pattern, values, what in (
            (_HOSTNAME, (self.hostname,), "hostname"),
            (_USER, (self.user,), "user name"),
            (_SSH_KEY, self.ssh_keys, "ssh public key"),
            (_PACKAGE, self.packages, "package"),
        ):
            for value in values:
                if value is not None and not pattern.fullmatch(value):
                    raise UsageError(f"no {what}: {printable(value)[:80]!r}")
        if self.password_hash is not None and not _HASH.fullmatch(self.password_hash):
            raise UsageError("the password's hash is none")
        for command in self.commands:
            if not command.strip() or "\0" in command or len(command) > _MOST_TEXT:
                raise UsageError(f"no shell command: {printable(command)[:80]!r}")
        if max(map(len, (self.ssh_keys, self.packages, self.commands))) > _MOST_LIST:
            raise UsageError(f"more than {_MOST_LIST} of one kind for cloud-init")
        if self.user is None and (self.ssh_keys or self.password_hash) and self.user_data is None:
            raise UsageError("a key or a password for whom?", hint="--user NAME says it (root is one too)")
        if self.user_data is not None and (self.ssh_keys or self.password_hash or self.packages or self.commands):
            raise UsageError("keys, passwords, packages and commands stand in the user-data file, when there is one")


@dataclass(frozen=True, slots=True)
class SeedFiles:
    """The files of a NoCloud seed."""

    user_data: bytes
    meta_data: bytes
    network_config: bytes | None = None


def new_instance_id() -> str:
    """An id that no machine has had: where cloud-init finds another than last time, it sets up anew."""
    return f"iid-armvm-{secrets.token_hex(8)}"


def hostname_of(name: str) -> str:
    """The instance's ``name`` as a host may be called (RFC 1123 §2.1)."""
    labels = (re.sub(r"[^A-Za-z0-9-]", "-", label).strip("-") for label in name.split("."))
    return (".".join(label for label in labels if label) or "armvm")[:63].rstrip("-.")


def render(wanted: CloudInit, instance_id: str) -> SeedFiles:
    """The seed's files. Raises InputError for a file of the user's that cloud-init would not understand."""
    if wanted.user_data is None:
        user_data = _CLOUD_CONFIG + b"\n" + _dump(_cloud_config(wanted))
    else:
        user_data = wanted.user_data
        check_user_data(user_data, "user-data")
    if wanted.network_config is not None:
        _mapping(wanted.network_config, "network-config")
    meta = _mapping(wanted.meta_data, "meta-data") if wanted.meta_data is not None else {}
    meta.setdefault("instance-id", instance_id)
    meta.setdefault("local-hostname", wanted.hostname)
    return SeedFiles(user_data, _dump(meta), wanted.network_config)


def renewed(files: SeedFiles, instance_id: str, hostname: str) -> SeedFiles:
    """The files for another machine of the same wishes: cloud-init sets it up anew, under its own name."""
    meta = _mapping(files.meta_data, "meta-data")
    meta.update({"instance-id": instance_id, "local-hostname": hostname})
    return SeedFiles(files.user_data, _dump(meta), files.network_config)


def instance_id_of(files: SeedFiles) -> str | None:
    """The id in the meta-data."""
    value = _mapping(files.meta_data, "meta-data").get("instance-id")
    return None if value is None else str(value)


def check_user_data(content: bytes, subject: str) -> None:
    """Raise InputError, which names ``subject``, when cloud-init would not take ``content`` for user-data."""
    _require_size(content, subject)
    first = content.split(b"\n", 1)[0].rstrip()
    if first == _CLOUD_CONFIG:
        _mapping(content, subject)
        return
    if not content.startswith(_OTHER_KINDS):
        raise InputError(
            "is of no kind that cloud-init knows, which goes by its first line",
            subject=subject,
            found=printable(first[:60].decode(errors="replace")) or "an empty line",
            expected="#cloud-config, #!, #include or a MIME message",
        )


def _cloud_config(wanted: CloudInit) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if wanted.user is not None:
        # To a user that is there already (root), nothing but keys and password is given.
        user: dict[str, Any] = {"name": wanted.user}
        if wanted.user != "root":
            user |= {"shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL"}
        if wanted.ssh_keys:
            user["ssh_authorized_keys"] = list(wanted.ssh_keys)
        if wanted.password_hash is not None:
            user["hashed_passwd"] = wanted.password_hash
        user["lock_passwd"] = wanted.password_hash is None and wanted.user != "root"
        config["users"] = [user]
        config["disable_root"] = wanted.user != "root"
        config["ssh_pwauth"] = wanted.password_hash is not None
    if wanted.packages:
        config |= {"package_update": True, "packages": list(wanted.packages)}
    if wanted.commands:
        config["runcmd"] = list(wanted.commands)
    return config


def _dump(value: dict[str, Any]) -> bytes:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**9)
    return text.encode()


def _mapping(content: bytes, subject: str) -> dict[str, Any]:
    """The YAML mapping that ``content`` is. Raises InputError, with the line, when it is none."""
    import yaml

    _require_size(content, subject)
    if len(content) > _MOST_YAML_BYTES:
        raise InputError("far too long for YAML that is read whole", subject=subject, found=f"{len(content)} bytes")
    try:
        value = yaml.safe_load(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{subject}, line {mark.line + 1}" if mark is not None else subject
        raise InputError(f"no YAML: {printable(str(error.problem))}", subject=place) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"no YAML: {printable(str(error))[:200]}", subject=subject) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError("has to be a YAML mapping (key: value)", subject=subject, found=f"a {type(value).__name__}")
    return value


def _require_size(content: bytes, subject: str) -> None:
    if len(content) > MOST_FILE_BYTES:
        raise InputError(
            "is too large for a seed", subject=subject, found=f"{len(content)} bytes", expected=f"≤ {MOST_FILE_BYTES}"
        )
