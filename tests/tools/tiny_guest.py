"""A guest of a few kilobytes for real boots: an initial RAM disk whose init says that it lives and powers off.

What it says on /dev/console, one line each:

    ARMVM-GUEST-READY aarch64|aarch32
    ARMVM-GUEST-CMDLINE <what stands in /proc/cmdline>
    ARMVM-GUEST-ECHO <line>      with armvm.echo on the command line: every line that it reads, until one says "off"
    ARMVM-GUEST-DONE             the last before it powers off (with armvm.reboot: before it resets)
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from armvm.execution import ExecutionState

READY = "ARMVM-GUEST-READY"
CMDLINE = "ARMVM-GUEST-CMDLINE"
ECHO = "ARMVM-GUEST-ECHO"
DONE = "ARMVM-GUEST-DONE"

_TARGETS = {
    ExecutionState.AARCH64: ("aarch64-linux-none", "generic"),
    ExecutionState.AARCH32: ("thumb-linux-eabi", "generic+v7a+hwdiv"),
}

_INIT = r"""
typedef __SIZE_TYPE__ usize;

#ifdef __aarch64__
enum { READ = 63, WRITE = 64, SYNC = 81, MOUNT = 40, OPENAT = 56, REBOOT = 142 };
#define STATE "aarch64"
static long call(long number, long a, long b, long c, long d, long e) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
                  x3 __asm__("x3") = d, x4 __asm__("x4") = e;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}
#else
enum { READ = 3, WRITE = 4, SYNC = 36, MOUNT = 21, OPENAT = 322, REBOOT = 88 };
#define STATE "aarch32"
/* r7 carries the number, and is the frame pointer of Thumb code: set it inside the instruction. */
static long call(long number, long a, long b, long c, long d, long e) {
    register long r0 __asm__("r0") = a, r1 __asm__("r1") = b, r2 __asm__("r2") = c, r3 __asm__("r3") = d,
                  r4 __asm__("r4") = e, r6 __asm__("r6") = number;
    __asm__ volatile("push {r7}\n mov r7, r6\n svc 0\n pop {r7}"
                     : "+r"(r0) : "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r6) : "memory");
    return r0;
}
#endif

static char line[4096];

void *memset(void *at, int value, usize length) {
    volatile char *to = at;
    while (length--) *to++ = (char)value;
    return at;
}

static usize length_of(const char *text) {
    usize length = 0;
    while (text[length]) length++;
    return length;
}

static void say(const char *text) { call(WRITE, 1, (long)text, (long)length_of(text), 0, 0); }

static int holds(const char *text, const char *word) {
    for (; *text; text++) {
        usize i = 0;
        while (word[i] && text[i] == word[i]) i++;
        if (!word[i]) return 1;
    }
    return 0;
}

/* Without its line end; 0 at the end of input. */
static int read_line(int from) {
    usize length = 0;
    char c;
    while (length < sizeof line - 1) {
        if (call(READ, from, (long)&c, 1, 0, 0) != 1) break;
        if (c == '\n') { line[length] = 0; return 1; }
        line[length++] = c;
    }
    line[length] = 0;
    return length > 0;
}

void _start(void) {
    int echo, reset;
    say("\n" "ARMVM-GUEST-READY " STATE "\n");
    call(MOUNT, (long)"proc", (long)"/proc", (long)"proc", 0, 0);
    read_line((int)call(OPENAT, -100, (long)"/proc/cmdline", 0, 0, 0));
    echo = holds(line, "armvm.echo");
    reset = holds(line, "armvm.reboot");
    say("ARMVM-GUEST-CMDLINE ");
    say(line);
    say("\n");
    while (echo && read_line(0)) {
        if (line[0] == 'o' && line[1] == 'f' && line[2] == 'f' && !line[3]) break;
        say("ARMVM-GUEST-ECHO ");
        say(line);
        say("\n");
    }
    say("ARMVM-GUEST-DONE\n");
    call(SYNC, 0, 0, 0, 0, 0);
    for (;;) call(REBOOT, (long)0xfee1dead, 672274793, reset ? 0x01234567 : 0x4321fedc, 0, 0);
}
"""


def tiny_initramfs(state: ExecutionState, cache_dir: Path) -> Path:
    """The initial RAM disk for ``state``, made once in ``cache_dir`` (safe for several processes at once)."""
    digest = hashlib.sha256(f"{_INIT}{_TARGETS[state]}{Path(__file__).read_text()}".encode()).hexdigest()[:12]
    path = cache_dir / f"tiny-{state.value}-{digest}.cpio"
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(newc({"init": _compiled(state, cache_dir)}))
        unfinished.replace(path)
    return path


def newc(programs: dict[str, bytes]) -> bytes:
    """A cpio archive in the format that Linux unpacks, with /dev/console, /proc and these programs."""
    entries = [
        _entry("dev", 0o040755),
        _entry("dev/console", 0o020600, device=(5, 1)),
        _entry("proc", 0o040755),
        *(_entry(name, 0o100755, content) for name, content in programs.items()),
        _entry("TRAILER!!!", 0),
    ]
    return b"".join(entries)


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def _compiled(state: ExecutionState, cache_dir: Path) -> bytes:
    triple, cpu = _TARGETS[state]
    folder = cache_dir / f"init-{state.value}-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / "init.c").write_text(_INIT)
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    flags = ("-ffreestanding", "-fno-stack-protector", "-fno-builtin", "-Wall", "-Werror")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "build-exe", "-cflags", *flags, "--", "init.c"),
            *("-O", "ReleaseSmall", "-fstrip", "-fno-compiler-rt", "-fentry=_start", "-femit-bin=init"),
            *("-target", triple, "-mcpu", cpu),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "init").read_bytes()
