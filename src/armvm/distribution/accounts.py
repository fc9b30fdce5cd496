"""Accounts in a root tree: the lines that useradd would write (passwd(5), shadow(5), group(5), subuid(5))."""

from __future__ import annotations

from collections.abc import Iterable

from armvm.distribution.recipe import User
from armvm.errors import InputError, UsageError
from armvm.image.staging import StagedTree

_FIRST_ID = 1000
_SUBORDINATE_FIRST, _SUBORDINATE_COUNT = 100_000, 65_536
_MOST_BYTES = 1 << 20
_SKELETON = "etc/skel"
_DAY = 86400


def add_users(tree: StagedTree, users: Iterable[User], *, timestamp: int) -> None:
    """Put ``users`` into the tree, with their home folders and keys. ``root`` gets keys and a password only.

    Raises UsageError for a user or group that cannot be had, InputError for a tree without the account files.
    """
    accounts = _Accounts(tree, timestamp)
    for user in users:
        accounts.add(user)
    accounts.write()


class _Accounts:
    def __init__(self, tree: StagedTree, timestamp: int) -> None:
        self._tree = tree
        self._time = timestamp
        self._files = {name: self._lines(name) for name in ("passwd", "shadow", "group", "gshadow")}
        self._subordinate: list[str] = []
        self._next_id = _FIRST_ID

    def _lines(self, name: str) -> list[list[str]]:
        content = self._tree.read(f"etc/{name}", max_bytes=_MOST_BYTES)
        if content is None:
            raise InputError(f"the root tree has no /etc/{name}, so no account can be added")
        return [line.split(":") for line in content.decode("utf-8", "surrogateescape").splitlines() if line]

    def add(self, user: User) -> None:
        password = user.password_hash or "!"
        if user.name == "root":
            shadow = self._line("shadow", "root")
            if shadow is not None and user.password_hash is not None:
                shadow[1] = password
            self._keys(user, "root", 0, 0)
            return
        if self._line("passwd", user.name) is not None:
            raise UsageError(f"the distribution has a user {user.name} already")
        number, day = self._free_id(), self._time // _DAY
        home = f"/home/{user.name}"
        self._files["passwd"].append([user.name, "x", str(number), str(number), "", home, user.shell])
        self._files["shadow"].append([user.name, password, str(day), "0", "99999", "7", "", "", ""])
        self._files["group"].append([user.name, "x", str(number), ""])
        self._files["gshadow"].append([user.name, "!", "", ""])
        for group in dict.fromkeys(user.groups):
            self._join(user.name, group)
        first = _SUBORDINATE_FIRST + (number - _FIRST_ID) * _SUBORDINATE_COUNT
        self._subordinate.append(f"{user.name}:{first}:{_SUBORDINATE_COUNT}\n")
        self._home(home.lstrip("/"), number)
        self._keys(user, home.lstrip("/"), number, number)
        if user.password_hash is None and "sudo" in user.groups:
            rule = f"# No password is set, so none can be asked for.\n{user.name} ALL=(ALL:ALL) NOPASSWD: ALL\n"
            self._tree.write(f"etc/sudoers.d/armvm-{user.name}", rule.encode(), mode=0o440, mtime=self._time)

    def write(self) -> None:
        """Put the account files back, with the owners and modes that they have."""
        for name, lines in self._files.items():
            old = self._tree.lookup(f"etc/{name}")
            assert old is not None  # noqa: S101 - it was read
            text = "".join(":".join(line) + "\n" for line in lines)
            self._tree.write(
                f"etc/{name}",
                text.encode("utf-8", "surrogateescape"),
                mode=old.mode & 0o7777,
                uid=old.uid,
                gid=old.gid,
                mtime=self._time,
            )
        for name in ("subuid", "subgid"):
            self._tree.write(f"etc/{name}", "".join(self._subordinate).encode(), mtime=self._time)

    def _line(self, file: str, name: str) -> list[str] | None:
        return next((line for line in self._files[file] if line[0] == name), None)

    def _free_id(self) -> int:
        taken = {line[2] for file in ("passwd", "group") for line in self._files[file] if len(line) > 2}
        while str(self._next_id) in taken:
            self._next_id += 1
        return self._next_id

    def _join(self, user: str, group: str) -> None:
        line = self._line("group", group)
        if line is None or len(line) < 4:
            raise UsageError(f"the distribution has no group {group}", hint="which package brings it? add --package")
        for file in ("group", "gshadow"):
            members = self._line(file, group)
            if members is not None and len(members) > 3:
                members[3] = ",".join(filter(None, [*members[3].split(","), user]))

    def _home(self, home: str, number: int) -> None:
        self._tree.folder(home, mode=0o700, uid=number, gid=number, mtime=self._time)
        for name in self._tree.names(_SKELETON):
            content = self._tree.read(f"{_SKELETON}/{name}", max_bytes=_MOST_BYTES)
            if content is not None:
                self._tree.write(f"{home}/{name}", content, uid=number, gid=number, mtime=self._time)

    def _keys(self, user: User, home: str, uid: int, gid: int) -> None:
        if not user.ssh_keys:
            return
        owner = {"uid": uid, "gid": gid, "mtime": self._time}
        self._tree.folder(f"{home}/.ssh", mode=0o700, **owner)
        text = "".join(f"{key}\n" for key in user.ssh_keys)
        self._tree.write(f"{home}/.ssh/authorized_keys", text.encode(), mode=0o600, **owner)
