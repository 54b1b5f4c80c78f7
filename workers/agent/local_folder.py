"""The agent's folder on its node: sockets, small files, what compilers leave in TMPDIR.

Owns its name, its lock and its end. The lock is the kernel's and goes with the process, however that ends: a folder
that nobody holds any more was left by an agent that was killed, and the next agent of the same user removes it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workers.faults import WorkerFault
from workers.staging.mounts import mount_at

log = logging.getLogger("sluice.agent")

PREFIX = "sluice-agent-"
MAX_BASE_CHARS = 44  # a socket's path has at most 107, and engines name theirs at length


@contextmanager
def local_folder() -> Iterator[Path]:
    """0700. What agents that were killed have left beside it is gone."""
    base = Path(tempfile.gettempdir())
    base = base if len(str(base)) <= MAX_BASE_CHARS else Path("/tmp")
    try:
        remove_left(base)
        folder, lock = _new(base)
    except OSError as fault:
        raise WorkerFault(f"TMPDIR: no folder of this node can be written: {fault}; set it in cluster.setup") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new(base: Path) -> tuple[Path, int]:
    """It gets the name by which others would find it once it is locked."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=base))
    lock = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # without locks, nobody will take it for one that was left
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return hidden.rename(base / hidden.name.removeprefix(".")), lock


def remove_left(base: Path) -> None:
    """Only where nobody but this node writes: elsewhere a lock of another node might not show."""
    mount = mount_at(base)
    if mount is None or mount.shared is not False:
        return
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if folder.lstat().st_uid == os.getuid():
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    """Raises OSError, also where its agent lives."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        log.info("removed %s, which an agent that was killed had left", folder)
    finally:
        os.close(lock)
