"""What is done in a guest by its agent, against an agent of ours that keeps to QEMU's description of it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from armvm.errors import ArmvmError, GuestError, InputError, UsageError
from armvm.instance import client
from armvm.instance.guest import MOST_INPUT_BYTES, Agent
from armvm.instance.store import Instance


class QemuGa:
    """The commands of qemu-ga that are used, done on this host, files below ``folder``; ``lies`` are false answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lies: dict[str, Any] = {}
        self.spool = 1 << 30
        self._files: dict[int, BinaryIO] = {}
        self._done: dict[int, dict[str, Any]] = {}
        self._polls = 0

    @property
    def open_files(self) -> int:
        return len(self._files)

    def ask(self, _instance: Instance, request: dict[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        assert timeout_seconds > request["timeout_seconds"]
        json.dumps(request)
        name = request["execute"]
        if name in self.lies:
            return {"return": self.lies[name]}
        answer = getattr(self, name.removeprefix("guest-").replace("-", "_"))(request["arguments"])
        text = json.dumps(answer)
        if len(text) > self.spool:
            (self.folder / ".agent-x.part").write_text(text)
            return {"file": ".agent-x.part"}
        return {"return": answer}

    def ping(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return {}

    def exec(self, arguments: dict[str, Any]) -> dict[str, Any]:
        assert arguments["capture-output"] is True
        done = subprocess.run(
            [arguments["path"], *arguments["arg"]],
            input=base64.b64decode(arguments.get("input-data", "")),
            capture_output=True,
            check=False,
            timeout=60,
        )
        status: dict[str, Any] = {"exited": True}
        status |= {"signal": -done.returncode} if done.returncode < 0 else {"exitcode": done.returncode}
        for key, content in (("out-data", done.stdout), ("err-data", done.stderr)):
            if content:
                status[key] = base64.b64encode(content).decode()
        self._done[7] = status
        return {"pid": 7}

    def exec_status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._polls += 1
        return {"exited": False} if self._polls < 3 else self._done[arguments["pid"]]

    def file_open(self, arguments: dict[str, Any]) -> int:
        try:
            self._files[1000] = (self.folder / arguments["path"]).open(arguments["mode"] + "b")
        except OSError as error:
            raise GuestError(f"the guest agent does not do guest-file-open: {error}") from error
        return 1000

    def _file(self, arguments: dict[str, Any]) -> BinaryIO:
        if arguments["handle"] not in self._files:
            raise GuestError("the guest agent does not do it: no such handle")
        return self._files[arguments["handle"]]

    def file_read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        content = self._file(arguments).read(arguments["count"])
        end = len(content) < arguments["count"]
        return {"count": len(content), "buf-b64": base64.b64encode(content).decode(), "eof": end}

    def file_write(self, arguments: dict[str, Any]) -> dict[str, Any]:
        content = base64.b64decode(arguments["buf-b64"])[:100_000]
        return {"count": self._file(arguments).write(content), "eof": False}

    def file_flush(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._file(arguments).flush()
        return {}

    def file_close(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._file(arguments).close()
        del self._files[arguments["handle"]]
        return {}


@pytest.fixture
def ga(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QemuGa:
    agent = QemuGa(tmp_path)
    monkeypatch.setattr(client, "ask", agent.ask)
    return agent


@pytest.fixture
def agent(tmp_path: Path, ga: QemuGa) -> Agent:
    return Agent(Instance("web", tmp_path))


def test_a_program_is_run_to_its_end(agent: Agent) -> None:
    agent.ping()
    done = agent.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"\0in\xff")
    assert (done.exit_code, done.signal, done.stdout, done.stderr) == (3, None, b"\0in\xff", b"err\n")
    killed = agent.run(["sh", "-c", "kill -9 $$"])
    assert (killed.exit_code, killed.signal) == (137, 9)


def test_a_program_that_does_not_end(agent: Agent, ga: QemuGa) -> None:
    ga.lies["guest-exec-status"] = {"exited": False}
    with pytest.raises(GuestError, match=r"process 7 in the guest\) has not ended within 0.1 s"):
        agent.run(["true"], timeout_seconds=0.1)
    with pytest.raises(UsageError, match="too many"):
        agent.run(["true"], stdin=bytes(MOST_INPUT_BYTES + 1))


@pytest.mark.parametrize("size", [0, 1, 256 << 10, (1 << 20) + 7])
def test_files_there_and_back(agent: Agent, ga: QemuGa, tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    told: list[int] = []
    agent.bring(io.BytesIO(content), "there", progress=told.append)
    assert (tmp_path / "there").read_bytes() == content
    back = io.BytesIO()
    agent.fetch("there", back, progress=told.append)
    assert back.getvalue() == content
    assert told[-1] == size
    assert ga.open_files == 0


def test_a_long_answer_comes_by_a_file(agent: Agent, ga: QemuGa, tmp_path: Path) -> None:
    ga.spool = 1000
    (tmp_path / "there").write_bytes(b"x" * 100_000)
    back = io.BytesIO()
    agent.fetch("there", back)
    assert len(back.getvalue()) == 100_000
    assert not (tmp_path / ".agent-x.part").exists()


def test_files_are_closed_whatever_happens(agent: Agent, ga: QemuGa) -> None:
    with pytest.raises(GuestError, match="No such file"):
        agent.fetch("none", io.BytesIO())
    ga.lies["guest-file-write"] = {"count": -1}
    with pytest.raises(GuestError, match="wrote -1 of 5 bytes"):
        agent.bring(io.BytesIO(b"12345"), "there")
    assert ga.open_files == 0


@pytest.mark.parametrize("lie", [None, [], {}, {"pid": "x"}, {"exited": True, "out-data": "%"}, {"buf-b64": 3}, 7, "x"])
def test_an_agent_that_lies_is_an_error(agent: Agent, ga: QemuGa, tmp_path: Path, lie: object) -> None:
    (tmp_path / "there").write_bytes(b"x")
    for command in ("guest-exec", "guest-file-open", "guest-file-read", "guest-file-write"):
        ga.lies = {command: lie}
        with pytest.raises(ArmvmError):
            if command == "guest-exec":
                ga.lies["guest-exec-status"] = lie
                agent.run(["true"], timeout_seconds=0.1)
            elif command == "guest-file-write":
                agent.bring(io.BytesIO(b"x"), "there")
            else:
                agent.fetch("there", io.BytesIO())
                raise GuestError("an empty file, then")


@pytest.mark.parametrize("name", ["../machine.toml", "/etc/passwd", "machine.toml", ".agent-/../x.part", ""])
def test_a_file_of_another_name_is_not_read(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "machine.toml").write_text("{}")
    monkeypatch.setattr(client, "ask", lambda *_args, **_options: {"file": name})
    with pytest.raises(InputError):
        agent.ping()
    assert (tmp_path / "machine.toml").exists()
