"""`python -m workers.staging.staging_process check|copy SPEC`: staging, in a process beside the agent.

A file system that hangs does not take the agent along. It tells the agent by lines of JSON on its standard output.
`copy` ends when its standard input does: until then it holds on to the copy, so that the agent can.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

import msgspec

from workers.spec import WorkerSpec, read_spec
from workers.staging.staging import Cannot, Staging, locked

TELL_EVERY_S = 2.0


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    copied_bytes: int
    total_bytes: int
    by_another: bool  # process copies; this one waits


class Staged(msgspec.Struct, frozen=True, tag="staged"):
    """Where the model is. It stays there for as long as somebody holds `lock` shared."""

    folder: str
    lock: str


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    folder: str
    missing_bytes: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    reason: str


Told = Progress | Staged | Checked | Refused


def tell(message: Told) -> None:
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()


class Teller:
    """Not every look is news."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._told_at = float("-inf")

    def __call__(self, copied_bytes: int, by_another: bool) -> None:
        if time.monotonic() - self._told_at >= TELL_EVERY_S:
            self._told_at = time.monotonic()
            tell(Progress(copied_bytes, self._total_bytes, by_another))


def run(what: str, spec: WorkerSpec) -> int:
    assert spec.stage_dir is not None
    load_format = str(spec.engine.args.get("load_format") or "auto")
    try:
        staging = Staging(Path(spec.engine.model_path), Path(spec.stage_dir), load_format)
        if what == "check":
            tell(Checked(str(staging.folder), staging.missing_bytes()))
            return 0
        with locked(staging.used_lock, fcntl.LOCK_SH):
            os.utime(staging.used_lock)
            staging.stage(Teller(staging.total_bytes))
            tell(Staged(str(staging.folder), str(staging.used_lock)))
            while os.read(0, 4096):
                pass
    except Cannot as fault:
        tell(Refused(str(fault)))
        return 1
    return 0


if __name__ == "__main__":
    status = run(sys.argv[1], read_spec(Path(sys.argv[2]), WorkerSpec))
    os._exit(status)  # without waiting for a stream that hangs
