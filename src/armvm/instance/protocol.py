"""What a command and the process that runs a machine say to each other: JSON objects, one a line, on a unix socket.

    → {"do": "attach", …}                                      one request a connection
    ← {"ok": {…}}  or  {"error": {"kind": "busy", "message": …, "hint": …}}

``console`` is the exception: after its answer the connection carries the console's bytes, both ways.
"""

from __future__ import annotations

import json
from typing import Any

from armvm.errors import (
    ArmvmError,
    BusyError,
    GuestError,
    InputError,
    MachineError,
    MissingError,
    OutputError,
    UsageError,
)

MOST_LINE_BYTES = 1 << 20

_KINDS: dict[str, type[ArmvmError]] = {
    "usage": UsageError,
    "input": InputError,
    "missing": MissingError,
    "output": OutputError,
    "busy": BusyError,
    "machine": MachineError,
    "guest": GuestError,
    "fault": ArmvmError,
}


def encode(message: dict[str, Any]) -> bytes:
    """A message as its line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """A line as its message. Raises InputError when it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError("no JSON on a control socket") from error
    if not isinstance(message, dict):
        raise InputError("no object on a control socket")
    return message


def encode_error(error: ArmvmError) -> bytes:
    """An error as the answer that says so."""
    kind = next((name for name, one in _KINDS.items() if type(error) is one), "fault")
    fields: dict[str, Any] = {"kind": kind, "message": error.message, "hint": error.hint}
    if isinstance(error, MachineError):
        fields["tail"] = error.output_tail
    elif isinstance(error, GuestError):
        fields["tail"] = error.console_tail
    return encode({"error": fields})


def result(message: dict[str, Any]) -> dict[str, Any]:
    """What an answer brings. Raises the error that it carries."""
    error = message.get("error")
    if not isinstance(error, dict):
        answer = message.get("ok")
        return answer if isinstance(answer, dict) else {}
    text, hint, tail = str(error.get("message")), error.get("hint"), str(error.get("tail", ""))
    kind = _KINDS.get(str(error.get("kind")), ArmvmError)
    if kind is MachineError:
        raise MachineError(text, output_tail=tail, hint=hint)
    if kind is GuestError:
        raise GuestError(text, console_tail=tail, hint=hint)
    if kind is MissingError:
        raise MissingError(text, component="", hint=hint)
    raise kind(text, hint=hint)
