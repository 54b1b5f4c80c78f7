"""A guard in a child's process group: where agent and child both die at once, it ends what the child leaves behind.

Hears of the agent's death by the end of a pipe, gives the child time to end by itself, and its last act is to kill its
own group; being a member, it keeps the group's number from being given to anybody else. Run as a file, without
anything but Python's own modules: it costs each engine a few milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S, LOOK_EVERY_S = 12.0, 0.2  # as an agent's
MAX_FILES = 1 << 16
# Its parent is gone at once, so that the child's children are its own. It outlives Slurm's warnings like the child.
_SHELL = (
    'trap "" TERM INT HUP USR1 USR2; ("$1" -I -S "$2" "$$" <"/proc/self/fd/$3" >/dev/null 2>&1 &); shift 3; exec "$@"'
)


@contextmanager
def guarded(command: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """The command with a guard beside it, and the descriptor to be passed on. The child has to lead a group.

    To be left once nothing of the group is wanted any more.
    """
    theirs, ours = os.pipe()
    try:
        yield ["sh", "-c", _SHELL, "sh", sys.executable, __file__, str(theirs), *command], theirs
    finally:
        os.close(theirs)
        os.close(ours)


def guard(leader: int) -> None:
    os.closerange(3, MAX_FILES)  # the child's, whose end others wait for
    while os.read(0, 1):
        pass
    patient_until = time.monotonic() + PATIENCE_S
    while time.monotonic() < patient_until and alive(leader):
        time.sleep(LOOK_EVERY_S)
    os.killpg(0, signal.SIGKILL)


def alive(pid: int) -> bool:
    """A dead one has no words of its command left, also where nobody fetches its status."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    guard(int(sys.argv[1]))
