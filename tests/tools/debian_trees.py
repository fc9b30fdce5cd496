"""Small tar archives in the shape of a bootstrapped Debian: accounts, a kernel, GRUB's core, and nothing that runs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from armvm.distribution.debian import core_path
from armvm.distribution.recipe import Architecture
from tools.pe_images import linux_kernel, make_pe

VERSION = "6.1.0-9-arm64"


def debian_tar(path: Path, architecture: Architecture = Architecture.ARM64) -> Path:
    """What mmdebstrap leaves, in small."""
    state = architecture.state
    files = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n",
        "etc/shadow": b"root:*:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\n",
        "etc/group": b"root:x:0:\ndaemon:x:1:\nsudo:x:27:\n",
        "etc/gshadow": b"root:*::\ndaemon:*::\nsudo:*::\n",
        "etc/passwd-": b"old",
        "etc/hostname": b"the-machine-that-built",
        "etc/skel/.profile": b"# profile\n",
        "etc/ssh/ssh_host_ed25519_key": b"secret",
        "etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
        "usr/lib/os-release": b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
        "usr/sbin/sshd": b"\x7fELF",
        "var/log/dpkg.log": b"yesterday",
        "var/log/apt/term.log": b"yesterday",
        "usr/share/zoneinfo/Europe/Berlin": b"TZif2",
        f"boot/vmlinuz-{VERSION}": linux_kernel(state),
        f"boot/initrd.img-{VERSION}": b"\x28\xb5\x2f\xfd initrd",
        "boot/vmlinuz-6.1.0-10-arm64": linux_kernel(state),
        "boot/initrd.img-6.1.0-10-arm64": b"\x28\xb5\x2f\xfd initrd",
        core_path(architecture): make_pe(state),
    }
    links = {"etc/os-release": "../usr/lib/os-release", "lib": "usr/lib", "etc/resolv.conf": "/proc/self/x"}
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = len(content), 1_600_000_000
            info.mode, info.gid = (0o640, 42) if "shadow" in name else (0o644, 0)
            tar.addfile(info, io.BytesIO(content))
        for name, target in links.items():
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path
