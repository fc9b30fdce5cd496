"""machine.toml: what is written is what is read, and what is wrong is said with file and line."""

from __future__ import annotations

import itertools
import time
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.instance import machine_toml
from armvm.instance.definition import BackingImage, Definition, LowerImage
from armvm.instance.toml_places import line_of
from armvm.machine.accelerators import AcceleratorKind
from armvm.machine.definition import Machine, VariablesFile, disk_names, nic_names
from armvm.machine.devices import (
    BridgeNetwork,
    DiskCache,
    DiskDevice,
    DiskInterface,
    Graphics,
    LinkNetwork,
    PortForward,
    SharedFolder,
    ShareDriver,
    TapNetwork,
    UserNetwork,
    WatchdogAction,
    Writes,
)
from armvm.machine.qemu.command import plan
from armvm.units import GIB, MIB
from tools.machines import firmware_of

FOLDER = Path("/home/ada/instances/web")
FILE = FOLDER / "machine.toml"

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,19}", fullmatch=True)
PATHS = st.one_of(TEXT.map(lambda name: Path("/") / name.lstrip("/")), TEXT.map(lambda name: FOLDER / name.lstrip("/")))
PORTS = st.none() | st.integers(0, 6)
MACS = st.none() | st.from_regex(r"[0-9A-F][02468ACE](:[0-9a-f]{2}){5}", fullmatch=True)
DISKS = st.builds(
    DiskDevice,
    PATHS,
    st.sampled_from(["raw", "qcow2"]),
    st.sampled_from([512, 4096]),
    st.sampled_from(Writes),
    st.sampled_from(DiskInterface),
    st.none() | st.from_regex(r"[!-~]{1,20}", fullmatch=True),
    st.sampled_from(DiskCache),
    st.booleans(),
    NAMES,
    PORTS,
)
TCP = st.integers(1, 65535)
NICS = st.one_of(
    st.builds(UserNetwork, st.lists(st.builds(PortForward, TCP, TCP), max_size=3).map(tuple), MACS, NAMES, PORTS),
    st.builds(TapNetwork, st.just("tap0"), MACS, NAMES, PORTS),
    st.builds(BridgeNetwork, st.just("br-1.2"), MACS, NAMES, PORTS),
    st.builds(LinkNetwork, PATHS, st.integers(0, 1), MACS, NAMES, PORTS),
)
SHARES = st.builds(
    SharedFolder, PATHS, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True), st.booleans(),
    st.sampled_from(ShareDriver),
)  # fmt: skip
GRAPHICS = st.builds(Graphics, st.none() | PATHS, st.none() | st.integers(5900, 65535), st.none() | PATHS)
MACHINES = st.builds(
    Machine,
    state=st.sampled_from(ExecutionState),
    firmware=st.just(firmware_of()),
    disks=st.lists(DISKS, min_size=1, max_size=3, unique_by=lambda disk: disk.name).map(tuple),
    memory_bytes=st.one_of(st.integers(1, 1 << 40), st.integers(1, 64).map(lambda count: count * GIB)),
    vcpus=st.integers(1, 512),
    nics=st.lists(NICS, max_size=3).map(tuple),
    variables=st.none() | st.builds(VariablesFile, PATHS, st.sampled_from(["qcow2", "raw"])),
    clock=st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(fold=0)),
    hotplug_ports=st.integers(0, 7),
    more_consoles=st.integers(0, 8),
    shares=st.lists(SHARES, max_size=2).map(tuple),
    watchdog=st.none() | st.sampled_from(WatchdogAction),
    graphics=st.none() | GRAPHICS,
    vsock_cid=st.none() | st.integers(3, 1000),
    scsi_controller=st.booleans(),
    rng=st.booleans(),
    balloon=st.booleans(),
    tpm=st.booleans(),
    secure_boot=st.booleans(),
    usb_keyboard=st.booleans(),
    guest_agent=st.booleans(),
)


@pytest.fixture(autouse=True)
def firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_toml, "find_firmware", lambda *_, **__: firmware_of())


def parsed(text: str) -> Definition:
    return machine_toml.parse(text, FILE)


@settings(max_examples=40, deadline=None)
@given(MACHINES, st.none() | PATHS, st.none() | TEXT)
def test_what_is_written_is_what_is_read(machine: Machine, firmware_file: Path | None, user: str | None) -> None:
    below = tuple(LowerImage(Path(f"/images/{name}"), 1, -2) for name in ("b", "c"))
    age = 1_700_000_000_123_456_789
    image = BackingImage(disk_names(machine)[0], Path("/images/a.raw"), "raw", 1 << 40, age, below)
    definition = Definition(machine, (image,), firmware_file, user, "id-1")
    content = machine_toml.serialise(definition, FOLDER)
    assert machine_toml.parse(content.decode(), FILE) == definition
    assert machine_toml.serialise(machine_toml.parse(content.decode(), FILE), FOLDER) == content


def test_devices_get_the_names_that_they_have_by_their_place() -> None:
    machine = Machine(
        ExecutionState.AARCH64, firmware_of(), (DiskDevice(Path("/a"), "raw"), DiskDevice(Path("/b"), "raw")), GIB
    )
    again = parsed(machine_toml.serialise(Definition(machine), FOLDER).decode()).machine
    assert [disk.name for disk in again.disks] == ["disk0", "disk1"] == list(disk_names(machine))
    assert [nic.name for nic in again.nics] == ["net0"] == list(nic_names(machine))


def test_it_can_be_read_by_people() -> None:
    machine = Machine(
        ExecutionState.AARCH64,
        firmware_of(),
        (DiskDevice(FOLDER / "disk.qcow2", "qcow2", writes=Writes.KEPT, serial="A-1"),),
        2 * GIB,
        nics=(UserNetwork((PortForward(2222, 22),)), LinkNetwork(Path("/links/lab"), 1)),
        tpm=True,
    )
    text = machine_toml.serialise(Definition(machine), FOLDER).decode()
    assert text.startswith("# What this machine is.")
    assert text.partition("\n\n")[2] == (
        'format = 2\nstate = "aarch64"\nmemory = "2GiB"\nvcpus = 2\ndescription = "dt"\nconsole = "pl011"\n'
        'bus = "pci"\ntpm = true\n\n'
        '[[disks]]\nname = "disk0"\npath = "disk.qcow2"\nformat = "qcow2"\nsector_size = 512\nwrites = "kept"\n'
        'serial = "A-1"\n\n'
        '[[nics]]\nkind = "user"\nname = "net0"\nforwards = ["2222:22"]\n\n'
        '[[nics]]\nkind = "link"\nname = "net1"\nfolder = "/links/lab"\nend = 1\n'
    )


def test_little_has_to_be_said() -> None:
    machine = parsed('format = 2\nstate = "aarch32"\n[[disks]]\npath = "d"\nformat = "raw"').machine
    assert machine == Machine(
        ExecutionState.AARCH32, firmware_of(), (DiskDevice(FOLDER / "d", "raw", writes=Writes.KEPT),), GIB, nics=()
    )
    pairs = parsed('format = 2\nstate = "aarch64"\nmemory = 805306368\n[[disks]]\npath = "d"\nformat = "raw"\n[[nics]]')
    assert pairs.machine.nics == (UserNetwork(),)
    assert pairs.machine.memory_bytes == 768 * MIB


def test_every_field_has_a_key() -> None:
    """A new field of a device or of the machine needs a key, or the round trip would lose it."""
    machine = Machine(
        ExecutionState.AARCH64,
        firmware_of(),
        (DiskDevice(Path("/d"), "raw", 4096, Writes.REFUSED, DiskInterface.NVME, "s", DiskCache.NONE, False, "n", 1),),
        GIB,
        nics=(UserNetwork((PortForward(1, 2),), "52:54:00:00:00:01", "a", 2), LinkNetwork(Path("/l"), 1)),
        shares=(SharedFolder(Path("/s"), "t", True, ShareDriver.NINE_P),),
        graphics=Graphics(None, 5901, Path("/p")),
    )
    text = machine_toml.serialise(Definition(machine), FOLDER).decode()
    for kind in (DiskDevice, UserNetwork, LinkNetwork, SharedFolder):
        for field in fields(kind):
            assert f"\n{field.name} = " in text
    with pytest.raises(InputError) as caught:
        parsed("format = 2\n_ = 1")
    keys = caught.value.message.partition("there are ")[2].split(", ")
    missing = {field.name for field in fields(Machine)} - set(keys)
    assert missing == {"memory_bytes", "platform"}


GOOD = """\
# a comment = [
format = 2
state = "aarch64"
vcpus = 2
text = '''
[[disks]]
'''
[[disks]]
path = "a" # ] path
format = "raw"
[disks.image]
path = "/i"
format = "raw"
size_bytes = 1
modified_ns = 1
[[disks]]
path = "b"
format = "raw"
serial = "x"
[[nics]]
kind = "link"
folder = "/l"
end = 0
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("format = 2\n", "format = 1\n", None, "another version"),
        ('state = "aarch64"', 'state = "arm64"', 3, 'state is "arm64", and should be one of "aarch64", "aarch32"'),
        ('state = "aarch64"\n', "", None, "the key state is missing"),
        ("vcpus = 2", 'vcpus = "two"', 4, "vcpus is a text, and should be a number"),
        ("vcpus = 2", "vcpus = 0", 4, "vcpus is 0, and should be 1 to 512"),
        ("vcpus = 2", "vcpus = true", 4, "vcpus is true or false"),
        ("vcpus = 2", "vcpu = 2", 4, 'no key "vcpu" in the top of the file; is vcpus meant?'),
        ("vcpus = 2", 'memory = "2 Gigs"', 4, 'memory is "2 Gigs", and should be a size'),
        ("vcpus = 2", "memory = -1", 4, "memory is -1"),
        ("vcpus = 2", "gic = 5", 4, "gic is 5, and should be one of 2, 3, 4"),
        ("vcpus = 2", "rng = 1", 4, "rng is a number, and should be true or false"),
        ("vcpus = 2", "clock = 12", 4, "clock is a number, and should be a date and time"),
        ("vcpus = 2", "shares = 3", 4, "shares is a number, and should be tables"),
        ("vcpus = 2", "graphics = 3", 4, "[graphics] is a number, and should be a table"),
        ("vcpus = 2", "graphics.prot = 1", 4, 'no key "prot" in [graphics]; is port meant?'),
        ("vcpus = 2", 'variables = "\\u0000"', 4, "variables holds the character NUL"),
        ("vcpus = 2", "vcpus = 2\nvcpus = 3", 5, "Cannot overwrite a value"),
        ("vcpus = 2", "vcpus = ", 4, "no TOML: Invalid value"),
        ('path = "a"', "path = 3", 6, "path is a number, and should be a text in quotes"),
        ('path = "a"', 'path = ""', 6, "path has 0 characters"),
        ('path = "b"', 'psth = "b"', 14, 'no key "psth" in [[disks]] number 2; is path meant?'),
        ('serial = "x"', "port = 7", 16, "port is 7, and should be 0 to 6"),
        ('serial = "x"', 'serial = "\\n"', 16, "serial is"),
        ('serial = "x"', 'cache = "none,file=/etc"', 16, "cache is"),
        ('serial = "x"', 'name = "A"', 16, 'name is "A", and should look like "data"'),
        ('serial = "x"', "sector_size = 520", 16, "sector_size should be 512 or 4096"),
        ("size_bytes = 1", "", 8, "the key size_bytes is missing in [disks.image] of [[disks]] number 1"),
        ("size_bytes = 1", 'size_bytes = "1"', 11, "size_bytes is a text"),
        ("size_bytes = 1", "size_bytes = 1\nbelow = 3", 12, "below is a number, and should be tables, each under"),
        (
            "modified_ns = 1",
            'modified_ns = 1\n[[disks.image.below]]\npath = "x"\nsize_bytes = 1\nmodified_ns = true',
            16,
            "modified_ns is true or false, and should be a number",
        ),
        ('kind = "link"', 'kind = "lnk"', 18, 'kind is "lnk", and should be one of "user", "tap", "bridge", "link"'),
        (
            'kind = "link"',
            'kind = "tap"',
            19,
            'folder makes no sense with the kind "tap": it belongs to the kind "link"',
        ),
        ("end = 0", "end = 2", 20, "end is 2, and should be 0 to 1"),
        ('folder = "/l"\n', "", 17, "the key folder is missing in [[nics]] number 1"),
        ('folder = "/l"', 'folder = "/l"\nforwards = ["22"]', 20, "forwards holds 22"),
        ('folder = "/l"', 'folder = "/l"\nmac = "1"', 20, 'mac is "1", and should look like "52:54:00:12:34:56"'),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, line: int | None, said: str) -> None:
    text = GOOD.replace("text = '''\n[[disks]]\n'''\n", "")
    parsed(text)
    assert old in text
    with pytest.raises(InputError) as caught:
        parsed(text.replace(old, new, 1))
    message = caught.value.message
    assert said in message
    assert message.startswith(f"{FILE}, line {line}" if line else f"{FILE}: ")


def test_tables_are_counted_and_texts_passed_over() -> None:
    assert line_of(GOOD, ("disks", 0)) == 8
    assert line_of(GOOD, ("disks", 0), "format") == 10
    assert line_of(GOOD, ("disks", 0, "image"), "size_bytes") == 14
    assert line_of(GOOD, ("disks", 1), "path") == 17
    assert line_of(GOOD, ("nics", 0), "end") == 23
    assert line_of(GOOD, (), "vcpus") == 4
    assert line_of(GOOD, ("shares", 0), "tag") is None
    inline = 'a = [\n  1, # ]\n]\n"b c".d = { e = 1 }\n'
    assert line_of(inline, (), "b c") == 4
    assert line_of(inline, ("b c", "d"), "e") == 4


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | st.lists(st.sampled_from(list("[]{}=\"'.#\n\\ab1")), max_size=80).map("".join))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        parsed(f"format = 2\n{text}")
    except InputError as error:
        assert str(FILE) in error.message
        assert error.message.isprintable() or "\n" in error.message
    line_of(text, ("disks", 0), "path")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a." * 50_000 + "b = 1", "[" + "a." * 20_000 + "b]", '"' * 99999]
)
def test_monsters_end_soon(text: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError):
        parsed(text)
    assert time.monotonic() - start < 10


def test_a_large_file_is_no_description(tmp_path: Path) -> None:
    file = tmp_path / "machine.toml"
    file.write_bytes(b"#" * 150_000)
    for read in (machine_toml.read, machine_toml.read_partial):
        with pytest.raises(InputError, match="larger than 128 KiB"):
            read(file)
    with pytest.raises(InputError, match="cannot be read"):
        machine_toml.read(tmp_path / "none.toml")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_nothing_that_is_said_becomes_an_option_of_qemu(data: st.DataObject) -> None:
    """Hostile paths, names and serials stay within their value: QEMU's own parsers split at single commas."""
    hostile = st.text(st.sampled_from(list(",=/:ab\n\"'-")), min_size=1, max_size=12).map(
        lambda t: f"{t},file=/etc/shadow"
    )
    path = Path("/x") / data.draw(hostile).lstrip("/")
    machine = Machine(
        ExecutionState.AARCH64,
        replace(firmware_of(), code=path),
        (
            DiskDevice(path, "raw", serial=data.draw(hostile), writes=data.draw(st.sampled_from(Writes))),
            DiskDevice(path, "qcow2", serial=data.draw(hostile), interface=DiskInterface.NVME),
        ),
        GIB,
        nics=(LinkNetwork(path, 0), TapNetwork(data.draw(hostile))),
        variables=VariablesFile(path, "qcow2"),
        shares=(SharedFolder(path, data.draw(hostile), True, ShareDriver.NINE_P),),
        graphics=Graphics(path),
    )
    plain = replace(
        machine,
        firmware=firmware_of(),
        disks=tuple(replace(disk, path=Path("/p"), serial="s") for disk in machine.disks),
        nics=(LinkNetwork(Path("/p"), 0), TapNetwork("tap0")),
        variables=VariablesFile(Path("/p"), "qcow2"),
        shares=(SharedFolder(Path("/p"), "t", True, ShareDriver.NINE_P),),
        graphics=Graphics(Path("/p")),
    )
    assert _keys(machine) == _keys(plain)


def _keys(machine: Machine) -> list[list[str]]:
    """The keys of every option on the command line, in order, as QEMU's parsers find them."""
    arguments = plan(machine, program="qemu", accelerator=AcceleratorKind.TCG)
    return [
        [word.partition("=")[0] for word in argument.replace(",,", "").split(",")][1:]
        for _option, argument in itertools.pairwise(arguments)
        if not argument.startswith("-")
    ]


def test_a_partial_file_says_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text('format = 2\nvcpus = 3\n[[disks]]\npath = "d.img"\nformat = "raw"\n')
    said: dict[str, Any] = machine_toml.read_partial(file).machine
    assert said == {"vcpus": 3, "disks": (DiskDevice(tmp_path / "d.img", "raw"),)}
    file.write_text("format = 2")
    assert machine_toml.read_partial(file).machine == {}
