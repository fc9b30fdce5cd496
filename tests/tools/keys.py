"""Keys and certificates for Secure Boot, made by openssl; programs signed by sbsign."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """A private key and its certificate, in PEM and DER."""

    private: Path
    pem: Path
    der: Path


def make_key(folder: Path, name: str) -> Key:
    """A key with a certificate of its own, whose subject is CN=``name``."""
    key = Key(folder / f"{name}.key", folder / f"{name}.pem", folder / f"{name}.der")
    _run("openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "3650",
         "-subj", f"/CN={name}/", "-keyout", str(key.private), "-out", str(key.pem))  # fmt: skip
    _run("openssl", "x509", "-in", str(key.pem), "-outform", "DER", "-out", str(key.der))
    return key


def sign(program: Path, key: Key) -> Path:
    """A copy of an EFI program, signed with ``key``."""
    signed = program.with_suffix(".signed.efi")
    _run("sbsign", "--key", str(key.private), "--cert", str(key.pem), "--output", str(signed), str(program))
    return signed


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
