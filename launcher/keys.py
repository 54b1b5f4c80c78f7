"""The run's secrets: who may speak on its links, and who may use its endpoint.

Owns the files in `keys/`, all 0600. A key that exists is kept: clients and live workers hold it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec
import zmq

from workers.spec import write_json

# One key per party: CURVE with an allow-list admits these and nobody else.
PARTIES = ("proxy", "worker", "controller")
API_KEY_PREFIX = "sk-sluice-"


class KeyPair(msgspec.Struct, frozen=True):
    """A CURVE key pair in ZeroMQ's printable form."""

    public: str
    secret: str


class ApiKey(msgspec.Struct, frozen=True):
    """One entry of `api_keys.json`. `class` is `user`, `batch` for requests that come after all others, `reader`
    for what shows the run only, or `operator` for a user who may name the worker."""

    name: str
    hash: str  # SHA-256 of the key, hexadecimal
    kind: str = msgspec.field(name="class", default="user")


def api_key_file(folder: Path) -> Path:
    return folder / "api_key"


def batch_key_file(folder: Path) -> Path:
    return folder / "batch_key"


def operator_key_file(folder: Path) -> Path:
    return folder / "operator_key"


def write_keys(folder: Path) -> None:
    """Make what is missing."""
    for party in PARTIES:
        path = folder / f"{party}.json"
        if not path.exists():
            public, secret = zmq.curve_keypair()
            write_json(path, KeyPair(public.decode(), secret.decode()))
    if not (folder / "api_keys.json").exists():
        keys = [
            ("default", api_key_file(folder), "user"),
            ("default batch", batch_key_file(folder), "batch"),
            ("default reader", folder / "reader_key", "reader"),
            ("default operator", operator_key_file(folder), "operator"),
        ]
        entries = [ApiKey(name, hashlib.sha256(_api_key(path).encode()).hexdigest(), kind) for name, path, kind in keys]
        write_json(folder / "api_keys.json", entries)


def _api_key(path: Path) -> str:
    """What the file holds; made where there is none."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(API_KEY_PREFIX + secrets.token_urlsafe(32))
    return path.read_text().strip()
