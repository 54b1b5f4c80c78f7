"""A small file system of its own for the run folder, and what can become of one: full, read-only, hung.

Owns the mount. Needs root.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

SIZE_MIB = 192  # more than a worker asks of the folder for what engines compile
PIECE = bytes(1 << 16)


@contextmanager
def memory_file_system(folder: Path) -> Iterator[None]:
    with mounted(folder, "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "none"):
        yield


@contextmanager
def disk_image(folder: Path) -> Iterator[None]:
    """One that can be frozen."""
    folder.parent.mkdir(exist_ok=True)
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(SIZE_MIB << 20)
    command("mkfs.ext4", "-q", str(image))
    with mounted(folder, "-o", "loop", str(image)):
        yield


@contextmanager
def mounted(folder: Path, *what: str) -> Iterator[None]:
    folder.mkdir(parents=True)
    command("mount", *what, str(folder))
    try:
        yield
    finally:
        command("umount", "--lazy", str(folder))


@contextmanager
def full(folder: Path) -> Iterator[None]:
    path = folder / "filler"
    try:
        with path.open("wb", buffering=0) as file, suppress_full():
            while True:
                file.write(PIECE)
        yield
    finally:
        path.unlink()


@contextmanager
def suppress_full() -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        if fault.errno != ENOSPC:
            raise


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """For all that is opened from now on: files that are open for writing hold a mount itself writable."""
    command("mount", "--bind", str(folder), str(folder))
    try:
        command("mount", "-o", "remount,ro,bind", str(folder))
        yield
    finally:
        command("umount", "--lazy", str(folder))


@contextmanager
def hung(folder: Path) -> Iterator[None]:
    """Whoever writes waits."""
    command("fsfreeze", "--freeze", str(folder))
    try:
        yield
    finally:
        command("fsfreeze", "--unfreeze", str(folder))


def command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")
