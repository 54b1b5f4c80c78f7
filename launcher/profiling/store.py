"""The points of one worker that have been measured, in a file of lines: what is there stays whoever is killed.

Owns the file. Its first line names the engine; another engine's points are set aside, not mixed in.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from launcher.profiling.points import Measured
from workers.spec import EngineSpec


class Header(msgspec.Struct, frozen=True):
    engine: str


class PointFile:
    """Raises OSError."""

    def __init__(self, path: Path, engine: EngineSpec) -> None:
        self._path = path
        self._header = Header(hashlib.sha256(msgspec.json.encode(engine)).hexdigest())
        self.measured = self._read()

    def _read(self) -> list[Measured]:
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]  # a line that was not finished is measured again
        lines = whole.splitlines()
        if not lines or msgspec.json.decode(lines[0], type=Header) != self._header:
            if lines:
                self._path.rename(self._path.with_suffix(".old"))
            self._write(msgspec.json.encode(self._header), "wb")
            return []
        if whole != data:
            os.truncate(self._path, len(whole))
        return [msgspec.json.decode(line, type=Measured) for line in lines[1:]]

    def add(self, measured: Measured) -> None:
        self._write(msgspec.json.encode(measured), "ab")
        self.measured.append(measured)

    def _write(self, line: bytes, mode: str) -> None:
        with self._path.open(mode) as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
