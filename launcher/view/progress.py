"""Live progress of a run: a table that redraws itself on a terminal, plain lines everywhere else.

Owns the screen inside `with progress.shown()`. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from launcher.view.present import HEADER, remark, worker_cells
from launcher.view.run_status import RunStatus
from workers.agent.lifecycle import READY

TABLE_WIDTH = 80  # a narrower terminal gets lines, which wrap
COLORS = {"ready": "green", "failed": "red", "draining": "yellow", "queued": "yellow"}


class Progress:
    """`note` says one line, `show` the whole run; both may be called often."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(soft_wrap=True, highlight=False)
        fancy = self._console.is_terminal and not self._console.is_dumb_terminal
        fancy = fancy and self._console.width >= TABLE_WIDTH
        self._live = Live(console=self._console, transient=True, auto_refresh=False) if fancy else None
        self._said: dict[str, str] = {}

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        if self._live is None:
            yield self
            return
        with self._live:
            yield self

    def note(self, subject: str, text: str) -> None:
        """A subject says the same thing once."""
        if self._said.get(subject) != text:
            self._said[subject] = text
            self._console.print(f"{time.strftime('%H:%M:%S')}  {subject:<12}  {text}", markup=False)

    def show(self, status: RunStatus) -> None:
        if status.missing_pairs and status.workers and all(worker.phase == READY for worker in status.workers):
            self.note("proving", "; ".join(status.unproven))
        if self._live is not None:
            self._live.update(_table(status), refresh=True)
            return
        for worker in status.workers:
            place = " ".join(part for part in (f"job {worker.job}" if worker.job else "", worker.node) if part)
            self.note(worker.name, "  ".join(part for part in (worker.phase, place, remark(worker)) if part))


def _table(status: RunStatus) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in HEADER:
        table.add_column(name, no_wrap=name != "")
    now = time.time()
    for worker in status.workers:
        cells = list(worker_cells(worker, now))
        color = COLORS.get(worker.phase, "")
        cells[1] = f"[{color}]{cells[1]}[/]" if color else cells[1]
        cells[6] = cells[6].replace("[", "\\[")
        table.add_row(*cells)
    return table
