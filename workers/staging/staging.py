"""A model on a disk of this node, copied once for all workers that start on it.

Owns the folder `sluice-UID` in `cluster.stage_dir`. Each model in it has two locks, files of this node, which the
kernel gives back however their holder ends: `.copying` is held by the one that copies, `.used` is shared by all that
need the copy, so that one that nobody needs can make room. A file appears under its name only when it is whole: a
copy that broke off goes on where it was, and one that lost files is repaired.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from workers.agent.preflight import MIB, size
from workers.staging.model_files import ModelFile, is_copied, model_files, staged_name
from workers.staging.mounts import free_bytes, mount_at

POLL_S = 0.5
STALL_S = 300.0  # without a byte
BLOCK_BYTES = 8 * MIB
NUM_STREAMS = 4  # files at once: one alone does not fill a parallel file system
SPARE_BYTES = 64 * MIB
PART = ".sluice-part"

# Bytes that are there, and whether another process copies.
Tell = Callable[[int, bool], None]


class Cannot(Exception):
    """It cannot be staged; the message names the key and the fix."""


class Staging:
    """One model on one node."""

    def __init__(self, source: Path, stage_dir: Path, load_format: str = "auto") -> None:
        """Raises Cannot."""
        try:
            self.files = model_files(source, load_format)
        except OSError as fault:
            raise Cannot(f"model.path: {fault.filename}: {fault.strerror}") from None
        self._source = source
        self._root = private_root(stage_dir)
        self.folder = self._root / staged_name(source, self.files)
        self.total_bytes = sum(file.size for file in self.files)

    @property
    def used_lock(self) -> Path:
        return used_lock(self.folder)

    @property
    def missing(self) -> list[ModelFile]:
        return [file for file in self.files if not is_copied(self.folder, file)]

    def missing_bytes(self) -> int:
        """What is still to be copied. Raises Cannot where it would not fit even if all that is unused went."""
        needed = sum(file.size for file in self.missing)
        room = free_bytes(self._root) + sum(tree_bytes(folder) for folder in self._unused())
        if needed and needed + SPARE_BYTES > room:
            raise Cannot(
                f"cluster.stage_dir: {self._root} has room for {size(room)}, the model needs {size(needed)} more; set"
                " it to a larger disk of the nodes, or to null"
            )
        return needed

    def stage(self, tell: Tell) -> None:
        """Returns with the whole model there. The caller holds `used_lock` shared. Raises Cannot."""
        watch = Watch(self.folder)
        while self.missing:
            with locked(self._root / f"{self.folder.name}.copying", fcntl.LOCK_EX | fcntl.LOCK_NB) as ours:
                if ours:
                    self._copy(self.missing, watch, tell)
                    continue
            tell(watch.look(), True)
            time.sleep(POLL_S)

    def _copy(self, files: Sequence[ModelFile], watch: Watch, tell: Tell) -> None:
        for left in self.folder.rglob(f"*{PART}"):
            left.unlink()
        self._make_room()
        stop = threading.Event()
        pool = ThreadPoolExecutor(NUM_STREAMS)
        copies = [pool.submit(copy_file, self._source, self.folder, file, stop) for file in files]
        try:
            while not all(copy.done() for copy in copies):
                wait(copies, POLL_S, FIRST_EXCEPTION)
                tell(watch.look(), False)
                for copy in copies:
                    if copy.done():
                        copy.result()
        except OSError as fault:
            raise Cannot(f"cluster.stage_dir: copying {self._source} to {self.folder}: {fault.strerror}") from None
        finally:
            stop.set()  # a stream that hangs is left behind: it ends with its process
            pool.shutdown(wait=False, cancel_futures=True)
            wait(copies, POLL_S)

    def _make_room(self) -> None:
        """Copies that nobody uses go, the longest unused first. Raises Cannot."""
        needed = self.missing_bytes()
        for folder in self._unused():
            if needed + SPARE_BYTES <= free_bytes(self._root):
                return
            with locked(used_lock(folder), fcntl.LOCK_EX | fcntl.LOCK_NB) as unused:
                if unused:
                    shutil.rmtree(folder)

    def _unused(self) -> list[Path]:
        """Other models' copies that no process holds on to, the longest unused first."""
        folders = [path for path in self._root.iterdir() if path.is_dir() and path != self.folder]
        unused = []
        for folder in folders:
            with locked(used_lock(folder), fcntl.LOCK_EX | fcntl.LOCK_NB) as ours:
                if ours:
                    unused.append(folder)
        return sorted(unused, key=lambda folder: used_lock(folder).stat().st_mtime)


class Watch:
    """Notices a copy that no longer moves, whoever makes it."""

    def __init__(self, folder: Path, stall_s: float = STALL_S) -> None:
        self._folder = folder
        self._stall_s = stall_s
        self._bytes = -1
        self._moved_at = 0.0

    def look(self) -> int:
        """Returns the bytes that are there. Raises Cannot."""
        now, there = time.monotonic(), tree_bytes(self._folder)
        if there != self._bytes:
            self._bytes, self._moved_at = there, now
        elif now - self._moved_at > self._stall_s:
            raise Cannot(f"model.path: no byte has come for {self._stall_s:.0f} s: does its file system hang?")
        return there


def copy_file(source: Path, target: Path, file: ModelFile, stop: threading.Event) -> None:
    """Under its name once it is whole and on the disk. Raises OSError."""
    part = target / f"{file.name}{PART}"
    part.parent.mkdir(parents=True, exist_ok=True)
    block = memoryview(bytearray(BLOCK_BYTES))
    with (source / file.name).open("rb", buffering=0) as reading, part.open("wb") as writing:
        while count := reading.readinto(block):
            if stop.is_set():
                return
            writing.write(block[:count])
        writing.flush()
        os.fdatasync(writing.fileno())
        status = os.fstat(reading.fileno())
        if (status.st_size, status.st_mtime_ns, writing.tell()) != (file.size, file.mtime_ns, file.size):
            raise OSError(0, f"{file.name} changed meanwhile")
    os.utime(part, ns=(file.mtime_ns, file.mtime_ns))
    part.rename(target / file.name)


@contextmanager
def locked(path: Path, how: int) -> Iterator[bool]:
    """Whether the lock is ours. A lock's file is never removed: two processes might each hold one of its name."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            yield False
        else:
            yield True


def used_lock(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.used"


def private_root(stage_dir: Path) -> Path:
    """Ours alone: in a folder that everyone may write to, another user could have put other weights there."""
    root = stage_dir / f"sluice-{os.getuid()}"
    mount = mount_at(stage_dir)
    if mount is not None and mount.shared:
        where = f"{stage_dir} is on {mount.kind}, which all nodes share"
        raise Cannot(f"cluster.stage_dir: {where}; set it to a disk of a node")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.lstat()
    except OSError as fault:
        raise Cannot(f"cluster.stage_dir: {root}: {fault.strerror}; set it to a disk of the nodes, or null") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise Cannot(f"cluster.stage_dir: {root} is not a folder of yours alone: remove it, or choose another place")
    return root


def tree_bytes(folder: Path) -> int:
    """Of all files that are there now; what goes away meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
