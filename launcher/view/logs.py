"""The log files of a run: which is the newest, its last lines, and following them.

Reads only. A worker has one file per job and rank, so that several generations lie side by side.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO, NoReturn

TAIL_LINES = 20
TAIL_BYTES = 64 << 10
LOOK_EVERY_S = 0.5


def logs_of(folder: Path, job: str = "") -> list[Path]:
    """Of one job or of all, the one that was written last at the end."""
    found = [*folder.glob(f"{job or '*'}_*_log.out"), *folder.glob("*.log")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-lines:]


def follow(folder: Path, output: BinaryIO) -> NoReturn:
    """To the end of time: all files of the folder, those of new generations too, as `tail -F` does."""
    shown = logs_of(folder)[-1]
    output.write("".join(f"{line}\n" for line in tail(shown)).encode())
    positions = {path: path.stat().st_size for path in logs_of(folder)}
    while True:
        output.flush()
        time.sleep(LOOK_EVERY_S)
        for path in logs_of(folder):
            with path.open("rb") as file:
                file.seek(positions.get(path, 0))
                news = file.read()
                positions[path] = file.tell()
            if news and path != shown:
                output.write(f"\n==> {path.name} <==\n".encode())
                shown = path
            output.write(news)
