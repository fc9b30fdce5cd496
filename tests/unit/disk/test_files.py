"""Paths, links and bounds that all file systems share."""

from __future__ import annotations

import pytest

from armvm.disk.files import FileKind, FileSystem, MemoryFileSystem, join
from armvm.errors import InputError

TREE = MemoryFileSystem(
    {"/boot/vmlinuz-6.1": b"kernel", "usr/lib/modules/6.1/modules.dep": b"", "/etc/fstab": b"#"},
    {
        "/vmlinuz": "boot/vmlinuz-6.1",
        "/lib": "usr/lib",
        "/etc/up": "../../../boot",
        "/loop": "loop2",
        "/loop2": "/loop",
        "/etc/abs": "/boot/./vmlinuz-6.1",
        "/dangling": "nowhere/at/all",
    },
)


def test_it_is_a_file_system() -> None:
    assert isinstance(TREE, FileSystem)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/vmlinuz", "/boot/vmlinuz-6.1"),
        ("vmlinuz", "/boot/vmlinuz-6.1"),
        ("/lib/modules//6.1/./modules.dep", "/usr/lib/modules/6.1/modules.dep"),
        ("/etc/up/vmlinuz-6.1", "/boot/vmlinuz-6.1"),
        ("/../../etc/abs", "/boot/vmlinuz-6.1"),
        ("/lib/..", "/usr"),
        ("/", "/"),
    ],
)
def test_links_are_followed_inside(path: str, found: str) -> None:
    entry = TREE.lookup(path)
    assert entry is not None
    assert entry.path == found


@pytest.mark.parametrize("path", ["/dangling", "/nothing", "/boot/vmlinuz-6.1/x", "/boot/vmlinuz-6.1/x/.."])
def test_what_is_not_there_is_none(path: str) -> None:
    assert TREE.lookup(path) is None


def test_a_link_can_be_looked_at_itself() -> None:
    entry = TREE.lookup("/lib", follow=False)
    assert entry is not None
    assert (entry.kind, entry.link_target) == (FileKind.LINK, "usr/lib")
    behind = TREE.lookup("/lib/modules", follow=False)
    assert behind is not None
    assert behind.path == "/usr/lib/modules"


def test_a_loop_ends() -> None:
    with pytest.raises(InputError, match="circles"):
        TREE.lookup("/loop")


def test_reading() -> None:
    assert TREE.read("/vmlinuz") == b"kernel"
    with pytest.raises(InputError, match="too large"):
        TREE.read("/vmlinuz", max_bytes=5)
    for path in ("/nothing", "/boot"):
        with pytest.raises(InputError):
            TREE.read(path)
    with pytest.raises(InputError, match="no folder"):
        TREE.entries("/vmlinuz")


def test_walking_takes_folders_first_and_follows_no_link() -> None:
    paths = [entry.path for entry in TREE.walk()]
    assert paths.index("/usr") < paths.index("/usr/lib") < paths.index("/usr/lib/modules/6.1/modules.dep")
    assert "/lib/modules" not in paths
    assert [entry.path for entry in TREE.walk("/boot")] == ["/boot/vmlinuz-6.1"]


def test_join() -> None:
    assert join("/boot", "grub/", "//x") == "/boot/grub/x"
    assert join("") == "/"
