"""A TOML document becoming values: every key is known, every value is of its kind, and what is not is named."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from armvm.errors import InputError
from armvm.units import parse_size


class TomlReader:
    """Reads the values of one file; paths in it are relative to its folder. Raises InputError, naming the key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def document(self) -> dict[str, Any]:
        """The whole document."""
        import tomllib

        try:
            return tomllib.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot be read as a recipe: {error}", subject=str(self._path)) from error

    def known(self, data: dict[str, Any], known: Collection[str], prefix: str) -> None:
        """Refuse a table with a key that is not ``known``; ``prefix`` is the table's name with a dot behind."""
        for key in data:
            if key not in known:
                keys = ", ".join(sorted(prefix + name for name in known))
                raise InputError(f"unknown key {prefix + key!r}", subject=str(self._path), hint=f"keys: {keys}")

    def table(
        self, data: dict[str, Any], key: str, known: Collection[str] | None = None, prefix: str = ""
    ) -> dict[str, Any]:
        """The table at ``key``, empty when it is not there."""
        value = data.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(prefix + key, value, "a table")
        if known is not None:
            self.known(value, known, f"{prefix}{key}.")
        return value

    def file(self, value: Any, key: str) -> Path:
        """A path."""
        return self._path.parent / self.text(value, key)

    def size(self, value: Any, key: str) -> int | None:
        """A size in bytes, given as a number or as text such as "4G"; None when there is none."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.wrong(key, value, 'a size such as "512M"')
        return value if isinstance(value, int) else parse_size(value)

    def text(self, value: Any, key: str) -> str:
        """A string."""
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def flag(self, value: Any, key: str) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def list(self, value: Any, key: str) -> list[Any]:
        """A list."""
        if not isinstance(value, list):
            raise self.wrong(key, value, "a list")
        return value

    def texts(self, value: Any, key: str) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(self.text(item, key) for item in self.list(value, key))

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        """The error for a value that is not what it should be."""
        return InputError(f"{key} is wrong", subject=str(self._path), found=repr(value)[:80], expected=expected)
