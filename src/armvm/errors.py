"""The exception tree of armvm, whole.

    ArmvmError                 70  cannot go on (a fault of ours where nothing more exact fits)
    ├── UsageError              2  a request that makes no sense, or contradicts itself
    ├── InputError             65  a file cannot be read as what it should be
    ├── MissingError           69  a program, firmware or package is not there
    ├── OutputError            69  a result could not be written
    ├── BusyError              69  somebody else holds what this needs
    ├── MachineError           69  a virtual machine could not be started or talked to
    └── GuestError              1  the guest did not do what was asked of it

A non-conforming image is not an error: it is a report (see ``armvm.spec.verdict``).
Only ``armvm.cli`` turns these into exit codes.
"""

from __future__ import annotations


class ArmvmError(Exception):
    """Something that armvm cannot go on from.

    ``hint`` is a second voice: what the user can do about it. ``exit_code`` is what the command line exits with.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ArmvmError):
    """A request that makes no sense or contradicts itself (nine vCPUs on a GICv2, an unknown sector size)."""

    exit_code = 2


class InputError(ArmvmError):
    """A file is not what it should be: truncated, corrupt, hostile, or of another kind.

    ``subject`` names the file, ``offset_bytes`` the place in it, ``found`` and ``expected`` what stands and what
    should stand there. All are optional, all end up in the message.
    """

    exit_code = 65

    def __init__(
        self,
        message: str,
        *,
        subject: str | None = None,
        offset_bytes: int | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        place = [part for part in (subject, None if offset_bytes is None else f"offset {offset_bytes:#x}") if part]
        text = f"{', '.join(place)}: {message}" if place else message
        if found is not None:
            text += f": found {found}"
        if expected is not None:
            text += f"{',' if found is not None else ':'} expected {expected}"
        super().__init__(text, hint=hint)
        self.subject = subject
        self.offset_bytes = offset_bytes
        self.found = found
        self.expected = expected


class MissingError(ArmvmError):
    """A program, firmware image or library is not installed. ``install`` is the exact command that installs it."""

    exit_code = 69

    def __init__(self, message: str, *, component: str, install: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or (f"install it with: {install}" if install else None))
        self.component = component
        self.install = install


class OutputError(ArmvmError):
    """A result could not be written (no space, no permission, already there). What was there before is untouched."""

    exit_code = 69


class BusyError(ArmvmError):
    """Another process holds the lock on what this needs."""

    exit_code = 69


class MachineError(ArmvmError):
    """A virtual machine could not be started or talked to. ``output_tail`` is the last that the hypervisor said."""

    exit_code = 69

    def __init__(self, message: str, *, output_tail: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.output_tail = output_tail


class GuestError(ArmvmError):
    """The guest did not do what was asked within its deadline. ``console_tail`` is the last that it said."""

    exit_code = 1

    def __init__(self, message: str, *, console_tail: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.console_tail = console_tail
