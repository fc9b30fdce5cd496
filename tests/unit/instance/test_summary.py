from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from armvm.errors import UsageError
from armvm.instance import dependants, store
from armvm.instance.create import Storage, Wishes
from armvm.instance.lock import HolderKind
from armvm.instance.summary import Status, summaries, summarise, used_bytes
from armvm.units import GIB, MIB
from tools.instances import made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(2 * MIB))
    return path


def test_what_is_said_of_an_instance(image: Path) -> None:
    web = made("web", image, ssh=True, vcpus=3)
    (summary,) = summaries()
    assert summary.instance == web
    assert (summary.status, summary.state, summary.vcpus, summary.memory_bytes) == (
        Status.STOPPED,
        "aarch64",
        3,
        GIB,
    )
    assert summary.image == image
    assert summary.disks == (web.disk,)
    assert summary.ssh_port is not None
    told = subprocess.check_output(["du", "-s", "--block-size=1", str(web.folder)], text=True)
    assert 0 < used_bytes(web.folder) <= int(told.split()[0])


def test_an_image_in_place_and_a_copy(image: Path) -> None:
    assert summarise(made("place", image, wishes=Wishes(Storage.IN_PLACE))).image == image
    assert summarise(made("copy", image, wishes=Wishes(Storage.COPY))).image is None


def test_how_it_is(image: Path) -> None:
    web = made("web", image)
    for kind, status in ((HolderKind.COMMAND, Status.BUSY), (HolderKind.MACHINE, Status.RUNNING)):
        with web.locked(kind=kind):
            assert summarise(web).status is status
    assert summarise(web).status is Status.STOPPED
    code = (
        "import os, sys\n"
        "from armvm.instance.store import find\n"
        "from armvm.instance.lock import HolderKind\n"
        "with find('web').locked(kind=HolderKind.MACHINE):\n"
        "    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert summarise(web).status is Status.CRASHED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"x" * (2 << 20),
        b"disks = 1",
        b"disks = [1]",
        b'disks = [{path = 1}]\nstate = "x"\nvcpus = "many"\nmemory_bytes = 1',
        b'disks = []\nstate = "x"\nvcpus = 1\nmemory_bytes = 1\nnics = [1]',
        b'disks = []\nstate = "x"\nvcpus = 1\nmemory = "much"',
        b'disks = []\nstate = "x"\nvcpus = 1',
        b'disks = []\nstate = "x"\nvcpus = 1\nmemory_bytes = 1\nnics = [{forwards = [[1]]}]',
        b"a = " + b"[" * 5000,
    ],
)
def test_a_broken_one_hides_no_other(image: Path, content: bytes) -> None:
    web = made("web", image)
    made("db", image)
    web.description.write_bytes(content)
    db, broken = summaries()
    assert (db.status, db.problem) == (Status.STOPPED, None)
    assert broken.status is Status.BROKEN
    assert "machine.toml" in str(broken.problem)


def test_who_stands_on_an_image(image: Path, tmp_path: Path) -> None:
    for name in ("web", "db"):
        made(name, image)
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(MIB))
    made("other", other, wishes=Wishes(Storage.IN_PLACE))
    hard, soft = tmp_path / "hard.raw", tmp_path / "soft.raw"
    os.link(image, hard)
    soft.symlink_to(image)
    for path in (image, hard, soft, tmp_path / "." / "image.raw"):
        assert dependants.of(path) == ("db", "web")
    assert dependants.of(image, besides="web") == ("db",)
    assert dependants.of(other) == ("other",)
    assert dependants.of(image, other) == ("db", "other", "web")
    assert dependants.of(tmp_path / "none.raw") == ()
    with pytest.raises(UsageError, match=r"2 instances stand on it \(db, web\)"):
        dependants.require_none(image, what="replaced", hint="x")
    image.unlink()
    hard.unlink()
    assert dependants.of(image) == ("db", "web")


def test_a_file_that_was_edited_by_hand(image: Path) -> None:
    web = made("web", image)
    web.description.write_text('state = "aarch32"\nnics = [{forwards = ["2222:22", [80, 81]]}]\ndisks = []\n')
    summary = summarise(web)
    assert (summary.vcpus, summary.memory_bytes, summary.ports) == (2, GIB, ((2222, 22), (80, 81)))
    web.description.write_text('state = "aarch64"\nmemory = "768MiB"\nvcpus = 4\ndisks = []\n')
    summary = summarise(web)
    assert (summary.vcpus, summary.memory_bytes, summary.image) == (4, 768 * MIB, None)


def test_nothing_is_made_by_looking() -> None:
    assert summaries() == ()
    assert dependants.of("/nowhere") == ()
    assert not store.instances_folder().exists()


def test_a_list_needs_no_machine() -> None:
    """`armvm vm list` is to be instant: nothing that describes machines, firmware or disks is loaded for it."""
    code = (
        "import sys\n"
        "from armvm.cli.main import main\n"
        "assert main(['vm', 'list', '-q']) == 0\n"
        "print(*(name for name in sys.modules if name.startswith(('armvm.machine', 'armvm.firmware', 'armvm.disk'))))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).split() == []
