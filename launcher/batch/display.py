"""A batch on the screen: a bar on a terminal, one line a minute everywhere else.

Owns the screen inside `with display`. Decides nothing.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from launcher.batch.meter import Reading

LINE_EVERY_S = 60.0


class Display:
    """`show` may be called often."""

    def __init__(self, console: Console | None = None, line_every_s: float = LINE_EVERY_S) -> None:
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._fancy = self._console.is_terminal and not self._console.is_dumb_terminal
        columns = (BarColumn(bar_width=20), TextColumn("{task.fields[told]}"))
        self._bar = Progress(*columns, console=self._console, disable=not self._fancy, auto_refresh=False)
        self._task: TaskID | None = None
        self._line_every_s = line_every_s
        self._line_at = 0.0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", markup=False)

    def show(self, reading: Reading, now: float) -> None:
        self.draw(reading.ended, reading.total, line(reading), now)

    def draw(self, done: int, total: int, told: str, now: float) -> None:
        if self._fancy:
            if self._task is None:
                self._task = self._bar.add_task("", total=total, told="")
            self._bar.update(self._task, completed=done, told=told, refresh=True)
        elif now >= self._line_at:
            self._line_at = now + self._line_every_s
            self.say(told)


def line(reading: Reading) -> str:
    parts = [
        f"{reading.ended}/{reading.total}",
        f"{reading.requests_per_s:.1f} req/s",
        f"{reading.output_tokens_per_s:.0f} tok/s",
        f"{reading.cached_share:.0%} cached",
        f"{reading.failed} failed",
        f"{reading.in_flight} in flight",
        f"{'?' if reading.eta_s is None else span(reading.eta_s)} left",
        f"{reading.gpu_hours:.2f} GPU-h",
    ]
    return "  ".join(parts)


def span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
