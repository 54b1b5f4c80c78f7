"""Who a client is, and what it may do: API keys by their hashes, read from the run folder.

Owns the table of keys. Never sees or stores a key itself: the file holds SHA-256 digests. Touches the
file only in `load` and `reload_if_changed`, which block on a shared file system: call them off the
event loop.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from proxy.errors import Forbidden, Unauthorized
from proxy.routes import Access, Route

log = logging.getLogger(__name__)

_BEARER = b"bearer "


class Key(msgspec.Struct, frozen=True, rename={"kind": "class"}, forbid_unknown_fields=True):
    """`hash` is the SHA-256 of the key in hexadecimal."""

    name: str
    hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    kind: Literal["user", "batch", "reader", "operator"]


class ApiKeys:
    """The live table of one file. `identify` may run while another thread reloads."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or msgspec.ValidationError: without keys there is no service."""
        self._path = path
        self._version = self._stat()
        self._by_hash = self._load()

    def identify(self, authorization: bytes | None, x_api_key: bytes | None = None) -> Key | None:
        """The key in an Authorization header or, without one, in Anthropic's `x-api-key`.

        A look-up by digest leaks nothing useful through its timing: nobody can aim at a prefix of a hash.
        """
        if authorization is None:
            secret = x_api_key
        else:
            secret = authorization[7:] if authorization[:7].lower() == _BEARER else None
        return None if secret is None else self._by_hash.get(hashlib.sha256(secret.strip()).hexdigest())

    def of_hash(self, hash: str | None) -> Key | None:
        """Who was identified before, unless the key was taken out since."""
        return None if hash is None else self._by_hash.get(hash)

    def reload_if_changed(self) -> bool:
        """Take over a new table whole. A broken file changes nothing and is reported once."""
        try:
            version = self._stat()
            if version == self._version:
                return False
            self._version = version
            self._by_hash = self._load()
        except (OSError, msgspec.DecodeError) as error:
            # An editor may be halfway; locking everyone out would be worse than the old table.
            log.error("API keys not reloaded, the old ones stay valid: %s: %s", self._path, error)
            return False
        log.info("API keys reloaded: %d keys", len(self._by_hash))
        return True

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _load(self) -> dict[str, Key]:
        keys = msgspec.json.decode(self._path.read_bytes(), type=list[Key])
        return {key.hash: key for key in keys}


def authorize(route: Route, key: Key | None) -> None:
    """Raises Unauthorized or Forbidden."""
    if route.access is Access.FREE:
        return
    if key is None:
        raise Unauthorized(
            "missing or unknown API key: send the header `Authorization: Bearer KEY` or `x-api-key: KEY`"
        )
    if key.kind == "reader" and route.access is not Access.READER:
        raise Forbidden(f"the key {key.name!r} is read-only: it opens what shows the run, not {route.path}")
