"""One writer per batch: files `owner.N`, the highest of which says whose it is.

Owns these files. A claim is the creation of the next one with O_EXCL, which also NFS and Lustre grant only once;
numbers are never used again. A holder on this host is looked at; of another one the heartbeat is watched. A holder
that finds a higher number has lost the batch, and stops.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from workers.spec import write_json

BEAT_S = 5.0
GONE_S = 4 * BEAT_S  # a holder elsewhere whose heartbeat has not moved for this long is gone
LOOK_EVERY_S = 0.5


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """`started`: of the process, by its kernel; process ids are used again."""

    host: str
    pid: int
    started: str
    job: str  # Slurm's, "" outside of it
    beat: int = 0
    released: bool = False

    def __str__(self) -> str:
        job = f" in Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Held(Exception):
    """Somebody else works on this batch."""


class Ownership:
    """Of one folder, from `claim` on."""

    def __init__(self, folder: Path, number: int, holder: Holder) -> None:
        self._folder = folder
        self._number = number
        self._holder = holder

    def check(self) -> None:
        """Raises Held."""
        if (self._folder / f"owner.{self._number + 1}").exists():
            raise Held(f"{self._folder} has been taken over by another process")

    def beat(self) -> None:
        """Raises Held."""
        self.check()
        self._holder = msgspec.structs.replace(self._holder, beat=self._holder.beat + 1)
        write_json(self._path, self._holder)

    def release(self) -> None:
        write_json(self._path, msgspec.structs.replace(self._holder, released=True))

    @property
    def _path(self) -> Path:
        return self._folder / f"owner.{self._number}"


def claim(folder: Path, job: str, say: Callable[[str], None], gone_s: float = GONE_S) -> Ownership:
    """Waits while it is not known whether another host's holder lives. Raises Held."""
    number = max(_numbers(folder), default=0)
    if number:
        _await_end(folder / f"owner.{number}", say, gone_s)
    holder = Holder(host=socket.gethostname(), pid=os.getpid(), started=_started(os.getpid()), job=job)
    path = folder / f"owner.{number + 1}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Held(f"{folder} has just been taken by another process") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(holder))
    for older in _numbers(folder):
        if older < number:  # the last one stays: someone may be watching it
            (folder / f"owner.{older}").unlink(missing_ok=True)
    return Ownership(folder, number + 1, holder)


def _numbers(folder: Path) -> list[int]:
    found = (re.fullmatch(r"owner\.(\d+)", path.name) for path in folder.iterdir())
    return [int(match[1]) for match in found if match]


def _await_end(path: Path, say: Callable[[str], None], gone_s: float) -> None:
    first = _read(path)
    deadline = time.monotonic() + gone_s
    if _lives_here(first) is None:
        say(f"held by {first or 'a process that has just begun'}: waiting {gone_s:.0f} s for its heartbeat")
    while True:
        holder = _read(path)
        lives = False if holder is not None and holder.released else _lives_here(holder)
        if lives is False:
            return
        if lives or (holder is not None and (first is None or holder.beat != first.beat)):
            raise Held(f"{path.parent} is being worked on by {holder}; the same batch runs only once at a time")
        if time.monotonic() > deadline:
            return
        time.sleep(LOOK_EVERY_S)


def _read(path: Path) -> Holder | None:
    """None: it is being written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except msgspec.DecodeError:
        return None


def _lives_here(holder: Holder | None) -> bool | None:
    """None: it cannot be seen from here."""
    if holder is None or holder.host != socket.gethostname():
        return None
    return holder.started == _started(holder.pid)


def _started(pid: int) -> str:
    """ "" for a process that is not there, or is dead and not yet waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
