"""What a row of the experiment is: an event, how the run is launched for it, and how long streams may pause.

Owns the shape only. `happen` makes the event come, and returns when the run is whole again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.stage import Stage


@dataclass(frozen=True, slots=True)
class Row:
    """`allowed_s`: over the normal p99; None: requests may queue. `ground`: where run folders lie meanwhile."""

    happen: Callable[[Stage], None]
    allowed_s: float | None
    arguments: tuple[str, ...] = ()  # of the launcher, beside those that all rows have
    ground: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext()
    networks: bool = False  # each node has one of its own
    tokens: int | None = None  # of each stream, where it has to be as long as that
