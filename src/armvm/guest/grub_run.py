"""Running GRUB's configuration at rest: variables, control flow, menus. Nothing is written, and it always ends.

What depends on what nobody knows at rest (a key, a file system that cannot be read) is run both ways: what differs
afterwards is unknown (None) from then on, and what was found is marked as not certain. The commands themselves are in
``grub_commands``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from armvm.disk.files import FileKind
from armvm.errors import InputError
from armvm.execution import ExecutionState
from armvm.guest.facts import PlacedFile, PlacedLine
from armvm.guest.grub_devices import Absent, Devices, NoAnswer, split_path
from armvm.guest.grub_script import Block, Command, For, Function, If, Script, Statement, While, Word, parse_script
from armvm.guest.grub_values import (
    Call,
    Environment,
    GrubEntry,
    GrubLoad,
    Halt,
    Leave,
    LeaveLoop,
    MenuItem,
    OutOfBounds,
    Return,
)
from armvm.guest.grub_words import expand
from armvm.guest.trouble import Trouble, missing, remark, untold
from armvm.printable import printable
from armvm.units import MIB

MOST_STEPS = 20_000
"""How many commands are run for one boot program."""
MOST_CONFIG_BYTES = MIB
MOST_ENTRIES = 512
MOST_DEPTH = 40
"""How deep functions, blocks and configuration files may run in each other."""
_MOST_TEXT = 8 * MIB
_MOST_REMARKS = 64
_MOST_STARS = 4
_FEATURES = [
    "feature_chainloader_bpb",
    "feature_ntldr",
    "feature_platform_search_hint",
    "feature_default_font_path",
    "feature_all_video_module",
    "feature_menuentry_id",
    "feature_menuentry_options",
    "feature_200_final",
    "feature_nativedisk_cmd",
    "feature_timeout_style",
]


Commands = Mapping[str, Callable[["GrubRun", Call], bool | None]]


class GrubRun:
    """One run of GRUB from its start to its menus."""

    def __init__(self, devices: Devices, state: ExecutionState, commands: Commands) -> None:
        self.devices = devices
        self.commands = commands
        self.environment = Environment()
        self.functions: dict[str, Block] = {}
        self.positional: tuple[str | None, ...] = ()
        self.menu: list[MenuItem] = []
        self.entries: list[GrubEntry] = []
        self.troubles: list[Trouble] = []
        self.loads: list[GrubLoad] = []
        self.trail: tuple[PlacedFile, ...] = ()
        self.source: PlacedLine | None = None
        self.uncertain = 0
        self.in_entry = False
        self.waits = False
        self._lines: tuple[PlacedFile, Sequence[str]] | None = None
        self._scripts: dict[tuple[int, str], tuple[PlacedFile, Script, tuple[str, ...]]] = {}
        self._steps = self._text = self._depth = self._defined = 0
        cpu = "arm64" if state is ExecutionState.AARCH64 else "arm"
        for name, value in (("grub_cpu", cpu), ("grub_platform", "efi"), *((name, "y") for name in _FEATURES)):
            self.export(name, value)

    # Variables and troubles

    def get(self, name: str) -> str | None:
        """A variable's value: empty when it is not set, None when nobody knows."""
        return self.environment.values.get(name, "")

    def export(self, name: str, value: str | None) -> None:
        """Set a variable that inner contexts see."""
        self.environment.values[name] = value
        self.environment.exported.add(name)

    def assign(self, name: str, value: str | None) -> None:
        """Set a variable."""
        self.environment.values[name] = value

    def report(self, trouble: Trouble) -> None:
        """Keep what is in the way."""
        if trouble not in self.troubles and len(self.troubles) < _MOST_REMARKS:
            self.troubles.append(trouble)

    def no_answer(self, call: Call, answer: NoAnswer) -> Trouble:
        """A trouble at the line of ``call``."""
        make = missing if answer.absent is Absent.MISSING else untold
        return make(call.line.where, f"{printable(' '.join(call.line.text.split()))}: {answer.reason}", answer.expected)

    def charge(self, steps: int = 1, text: int = 0) -> None:
        """Count what is done. Raises OutOfBounds past the limits."""
        self._steps += steps
        self._text += text
        if self._steps > MOST_STEPS or self._text > _MOST_TEXT:
            raise OutOfBounds("the configuration does more than is followed here")

    # Files

    def device_and_path(self, path: str) -> tuple[str | None, str]:
        """A file name's device (``$root`` when it names none; None when nobody knows) and path."""
        device, rest = split_path(path)
        if device is None or device == "":
            device = self.get("root")
        elif device.startswith(","):
            root = self.get("root")
            device = None if root is None else root.partition(",")[0] + device
        if device is not None and device.startswith("(") and device.endswith(")"):
            device = device[1:-1]
        return device, rest

    def find(self, path: str | None) -> PlacedFile | NoAnswer:
        """A file by its GRUB name."""
        found = self.lookup(path)
        if isinstance(found, NoAnswer):
            return found
        if found[1] is not FileKind.FILE:
            return NoAnswer(Absent.MISSING, f"{found[0].where} is a {found[1].value}")
        return found[0]

    def lookup(self, path: str | None) -> tuple[PlacedFile, FileKind, int] | NoAnswer:
        """What stands at a GRUB name: place, kind, size in bytes."""
        self.charge(4)
        if path is None:
            return NoAnswer(Absent.UNTOLD, "the name depends on what cannot be told at rest")
        device, rest = self.device_and_path(path)
        if device is None:
            return NoAnswer(Absent.UNTOLD, "the device depends on what cannot be told at rest")
        if rest and not rest.startswith("/"):
            return NoAnswer(Absent.MISSING, f"{printable(path)} is no file name that GRUB takes")
        found = self.devices.lookup(device, rest or "/", top_level=not self.get("btrfs_relative_path"))
        if isinstance(found, NoAnswer):
            return found
        return PlacedFile(found[0], found[1].path), found[1].kind, found[1].size_bytes

    def file_test(self, operator: str, path: str) -> bool | None:
        """``-d``, ``-e``, ``-f``, ``-s`` of ``test``."""
        found = self.lookup(path)
        if isinstance(found, NoAnswer):
            return False if found.absent is Absent.MISSING else None
        _, kind, size_bytes = found
        if operator == "-d":
            return kind is FileKind.FOLDER
        if operator == "-s":
            return kind is FileKind.FILE and size_bytes > 0
        return operator == "-e" or kind is FileKind.FILE

    # Configuration files

    def read_config(self, place: PlacedFile) -> tuple[Script, tuple[str, ...]]:
        """A configuration file, parsed once. Raises InputError when it cannot be read."""
        key = (id(place.files), place.path)
        if key not in self._scripts:
            text = place.files.read(place.path, max_bytes=MOST_CONFIG_BYTES).decode("utf-8", "replace")
            self.charge(text=2 * len(text))
            self._scripts[key] = (place, parse_script(text), tuple(text.split("\n")))
        return self._scripts[key][1:]

    def run_config(self, place: PlacedFile, name: str | None = None) -> bool | None:
        """Run a configuration file, which GRUB calls ``name``, in the context that is.

        Raises InputError when it cannot be read.
        """
        script, lines = self.read_config(place)
        before = self._lines, self.trail, {k: self.get(k) for k in ("config_file", "config_directory")}
        self._lines, self.trail = (place, lines), (*self.trail, place)
        self.export("config_file", name)
        self.export("config_directory", None if name is None else name.rpartition("/")[0])
        for problem in script.problems:
            self.report(remark(self.line(problem.line).where, f"not understood, GRUB skips it: {problem.message}"))
        try:
            return self.run(script.statements)
        finally:
            self._lines, self.trail = before[0], before[1]
            for variable, value in before[2].items():
                self.export(variable, value)

    def line(self, number: int) -> PlacedLine:
        """A line of the file that is being run."""
        if self._lines is None:  # nothing runs outside a file
            raise OutOfBounds("no configuration is being run")
        place, lines = self._lines
        return PlacedLine(place, number, lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else "")

    @contextmanager
    def in_file(self, line: PlacedLine) -> Iterator[None]:
        """Run what stands in the file of ``line``, a menu entry's block say."""
        before = self._lines
        try:
            script = self._scripts.get((id(line.file.files), line.file.path))
            self._lines = (line.file, script[2] if script else (line.text,))
            yield
        finally:
            self._lines = before

    # Control flow

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """One level further in. Raises OutOfBounds too far in."""
        self._depth += 1
        try:
            if self._depth > MOST_DEPTH:
                raise OutOfBounds("functions or configuration files call each other without end")
            yield
        finally:
            self._depth -= 1

    def run(self, block: Block) -> bool | None:
        """Run statements one after the other; the last one's result."""
        result: bool | None = True
        with self.deeper():
            for statement in block:
                result = self._statement(statement)
        return result

    def _statement(self, statement: Statement) -> bool | None:
        self.charge()
        match statement:
            case Command():
                return self._command(statement)
            case If():
                return self._if(statement.branches, statement.otherwise)
            case For():
                return self._loop(statement, self._expand_all(statement.words))
            case While():
                return self._while(statement)
            case Function(name=name, body=body):
                self._define(name, body)
                return True

    def _define(self, name: Word, body: Block) -> None:
        self.functions[name.keyword or ""] = body

    def _if(self, branches: tuple[tuple[Block, Block], ...], otherwise: Block) -> bool | None:
        for at, (condition, body) in enumerate(branches):
            holds = self.run(condition)
            if holds is True:
                return self.run(body)
            if holds is None:
                return self._if_unknown(body, branches[at + 1 :], otherwise)
        return self.run(otherwise)

    def _if_unknown(self, body: Block, others: tuple[tuple[Block, Block], ...], otherwise: Block) -> bool | None:
        with self.deeper():
            return self.either(lambda: self.run(body), lambda: self._if(others, otherwise))

    def either(self, *ways: Callable[[], bool | None]) -> bool | None:
        """Run every way from the same start, and go on with what they leave in common."""
        start, loads = self.environment, list(self.loads)
        results: list[bool | None] = []
        ends: list[Environment] = []
        loaded: list[GrubLoad] = []
        halts = 0
        for way in ways:
            self.environment, self.loads = start.copy(), list(loads)
            self.uncertain += 1
            try:
                results.append(way())
                ends.append(self.environment)
            except Halt:
                halts += 1
            except Leave:
                results.append(None)
                ends.append(self.environment)
            finally:
                self.uncertain -= 1
            loaded += [load for load in self.loads if load not in loaded]
        if halts == len(ways):
            raise Halt
        self.environment, self.loads = _merged(ends), loaded
        return results[0] if len(set(results)) == 1 else None

    def _loop(self, loop: For, values: tuple[str | None, ...]) -> bool | None:
        result: bool | None = True
        name = loop.name.keyword or ""
        for value in values:
            self.charge()
            self.assign(name, value)
            try:
                result = self.run(loop.body)
            except LeaveLoop as leave:
                if _goes_out(leave):
                    break
        return result

    def _while(self, loop: While) -> bool | None:
        result: bool | None = True
        while True:
            holds = self.run(loop.condition)
            if holds is None:
                return self.either(lambda: self.run(loop.body), lambda: True)
            if holds is loop.until:
                return result
            try:
                result = self.run(loop.body)
            except LeaveLoop as leave:
                if _goes_out(leave):
                    return result

    def _command(self, command: Command) -> bool | None:
        words = self._expand_all(command.words)
        if not words:
            return True
        if None in words:
            self._forget_assigned(command.words, words)
        line = self.line(command.line)
        negated = words[0] == "!" and len(words) > 1
        name, arguments = (words[1], words[2:]) if negated else (words[0], words[1:])
        result = self.call(Call(name or "", arguments, line, command.block)) if name is not None else None
        return result if not negated or result is None else not result

    def call(self, call: Call) -> bool | None:
        """Run a function, a command, or an assignment."""
        result: bool | None
        if call.name in self.functions:
            result = self._function(self.functions[call.name], call.arguments)
        elif call.name in self.commands:
            result = self.commands[call.name](self, call)
        elif "=" in call.name[1:]:
            name, _, value = call.name.partition("=")
            self.assign(name, value)
            result = True
        else:
            self.report(remark(call.line.where, f"the command {printable(call.name)} is not followed"))
            self.forget(call)
            result = None
        self.assign("?", None if result is None else "0" if result else "1")
        return result

    def _forget_assigned(self, words: Sequence[Word], expanded: Sequence[str | None]) -> None:
        """``set root=$unknown`` and ``root=$unknown``: nobody knows any more what root is."""
        if len(words) != len(expanded):
            return
        for at, (word, value) in enumerate(zip(words[:2], expanded, strict=False)):
            first = word.parts[0]
            if value is None and not first.variable and "=" in first.text[1:] and (at == 0 or expanded[0] == "set"):
                self.assign(first.text.partition("=")[0], None)

    def forget(self, call: Call) -> None:
        """Nobody knows any more what the variable holds that a command was told to set."""
        for at, argument in enumerate(call.arguments):
            option, _, name = (argument or "").partition("=")
            if option not in ("--set", "-s", "--variable"):
                continue
            if not name and at + 1 < len(call.arguments):
                name = call.arguments[at + 1] or ""
            self.assign(name.rpartition(":")[2], None)

    def _function(self, body: Block, arguments: tuple[str | None, ...]) -> bool | None:
        before, self.positional = self.positional, arguments
        try:
            return self.run(body)
        except Return as end:
            return end.result
        finally:
            self.positional = before

    # Words

    def _expand_all(self, words: Sequence[Word]) -> tuple[str | None, ...]:
        expanded = expand(words, self._values, self._matching)
        self.charge(0, sum(len(word or "") for word in expanded))
        return expanded

    def _values(self, name: str) -> list[str | None]:
        if name in ("@", "*"):
            return list(self.positional)
        if name == "#":
            return [str(len(self.positional))]
        if name.isdigit():
            number = int(name[:4])
            return [self.positional[number - 1] if 0 < number <= len(self.positional) else ""]
        return [self.get(name)]

    def _matching(self, pattern: str) -> list[str]:
        """The files that fit a pattern in its last part, as GRUB's regexp module finds them."""
        folder, _, wanted = pattern.rpartition("/")
        if not folder or "*" in folder or wanted.count("*") > _MOST_STARS:
            return []
        found = self.lookup(f"{folder}/")
        if isinstance(found, NoAnswer) or found[1] is not FileKind.FOLDER:
            return []
        try:
            names = [entry.name for entry in found[0].files.entries(found[0].path)]
        except InputError:
            return []
        return [f"{folder}/{name}" for name in names if fnmatch.fnmatchcase(name, wanted)]

    # Menus

    def add(self, item: MenuItem) -> None:
        """Put an entry into the menu. Raises OutOfBounds past the most that are followed."""
        self._defined += 1
        if self._defined > MOST_ENTRIES:
            raise OutOfBounds(f"there are more than {MOST_ENTRIES} menu entries")
        self.menu.append(item)


def _goes_out(leave: LeaveLoop) -> bool:
    """Whether the loop ends; a ``break 2`` goes on outwards."""
    if leave.levels > 1:
        raise LeaveLoop(leave.levels - 1, again=leave.again)
    return not leave.again


def _merged(ends: Sequence[Environment]) -> Environment:
    first, *others = ends
    merged = first.copy()
    for other in others:
        for name in merged.values.keys() | other.values.keys():
            if merged.values.get(name, "") != other.values.get(name, ""):
                merged.values[name] = None
        merged.exported |= other.exported
    return merged
