"""The launcher as users run it: a command in a folder, its output, its exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.rundir import RunDir
from launcher.scheduler.local import run_processes
from launcher.stopping import kill_local
from tests.live import SOURCE, wait_for

READY_S = 90.0


class Launch:
    """One running `python -m launcher`, in a session of its own like a terminal's job."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.output_file = folder / "output.txt"
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                command(*arguments),
                cwd=folder,
                env=environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def wait_ready(self) -> str:
        """Returns the URL that it prints."""
        wait_for(lambda: "\nready\n" in self.output or self.process.poll() is not None, "the run to be ready", READY_S)
        found = re.search(r"^  url +(\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    def interrupt(self) -> None:
        """Ctrl-C: the terminal signals the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        return self.process.wait(READY_S)

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def launch(
    folder: Path, *arguments: str, timeout_s: float = 2 * READY_S, source: Path = SOURCE
) -> subprocess.CompletedProcess[str]:
    """The launcher of this checkout, or of another one, to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"}


@contextmanager
def nothing_left(run: RunDir) -> Iterator[None]:
    """A failing test leaves nothing either."""
    try:
        yield
        wait_for(lambda: not run_processes(run), "every process of the run to end", READY_S)
    finally:
        kill_local(run)
