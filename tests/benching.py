"""Benchmarks run as their users run them, and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.live import SOURCE


def start(name: str, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Its folder for temporary files is its own: by that all of its processes are known."""
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", f"output={folder / 'out'}", *arguments],
        cwd=SOURCE,
        env={**os.environ, "TMPDIR": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(folder: Path) -> list[list[str]]:
    """Their command lines."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("TMPDIR") == str(folder):
                found.append(process.cmdline())
    return found
