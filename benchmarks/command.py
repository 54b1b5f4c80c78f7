"""How a benchmark's command begins and ends: its arguments first, and nothing left behind, whoever ends it.

Owns the signals of the benchmark's own process. What it starts is ended by whoever started it, on the way out, and
what a signal has torn from its owner here.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

import msgspec

from benchmarks.arguments import read_arguments
from benchmarks.processes import end_all

Options = TypeVar("Options", bound=msgspec.Struct)
ENDS = (signal.SIGINT, signal.SIGTERM)


def command(options: type[Options], run: Callable[[Options], None]) -> None:
    """Shells start what runs in the background with SIGINT ignored: it stays so."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        run(read_arguments(options, sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit("interrupted: no results") from None
    finally:
        end_all()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Once: a second signal is not to interrupt the end of what was started."""
    for each in ENDS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
