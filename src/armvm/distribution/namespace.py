"""Runs a program where foreign binaries can be executed, without a trace on the host.

    python -m armvm.distribution.namespace [--binfmt REGISTRATION]… -- PROGRAM [ARGUMENT…]

The program runs in user, mount and PID namespaces of its own, with a binfmt_misc of its own (Linux ≥ 6.7: "binfmt_misc:
enable sandboxed mounts") in which the registrations stand. It sees the same user ids, and what it mounts ends with it.
This needs root on the host; an ordinary user's mmdebstrap makes such namespaces by itself.

Source: Linux, Documentation/admin-guide/binfmt-misc.rst; user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import sys

MOUNT_POINT = "/proc/sys/fs/binfmt_misc"
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_IDS = "0 0 65536\n"
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
FAILED = 125
"""The exit code when the namespaces could not be made (the program's own is passed on otherwise)."""


def main(argv: list[str]) -> int:
    """Carry it out; the exit code is the program's."""
    registrations: list[str] = []
    while argv and argv[0] == "--binfmt":
        registrations.append(argv[1])
        argv = argv[2:]
    if len(argv) < 2 or argv[0] != "--":
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        _enter()
        _register(registrations)
    except OSError as error:
        sys.stderr.write(f"no namespace for foreign binaries: {error}\n")
        return FAILED
    return _run(argv[1:])


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _enter() -> None:
    """Unshare, and let a child that stayed outside write the maps: a process may not map ids that it no longer has."""
    ready_read, ready_write = os.pipe()
    me = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(ready_write)
        code = 1
        try:
            os.read(ready_read, 1)
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{me}/{name}", "w", encoding="ascii") as file:
                    file.write(_IDS)
            code = 0
        finally:
            os._exit(code)
    os.close(ready_read)
    try:
        _checked(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID), "unshare")
    finally:
        os.close(ready_write)
        status = os.waitpid(child, 0)[1]
    if status:
        raise PermissionError("the user ids cannot be mapped")
    os.setgid(0)
    os.setuid(0)
    _checked(_libc().mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount")


def _register(registrations: list[str]) -> None:
    if not registrations:
        return
    _checked(_libc().mount(b"binfmt_misc", MOUNT_POINT.encode(), b"binfmt_misc", 0, None), f"mount {MOUNT_POINT}")
    for registration in registrations:
        with open(f"{MOUNT_POINT}/register", "w", encoding="latin-1") as file:
            file.write(registration)


def _run(argv: list[str]) -> int:
    """The program as a child of this PID namespace's first process, which dies with us and takes all with it."""
    first = os.fork()
    if first == 0:
        _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL)
        program = os.fork()
        if program == 0:
            try:
                os.execvp(argv[0], argv)  # noqa: S606 - this module is what runs a program
            except OSError as error:
                sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
                os._exit(127)
        status = 0
        while True:  # orphans become children of the first process, which has to collect them
            pid, status = os.wait()
            if pid == program:
                os._exit(_code(status))
    return _code(os.waitpid(first, 0)[1])


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
