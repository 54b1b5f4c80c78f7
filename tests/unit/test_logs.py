"""Logs: following a worker over its lives, and a process's own logging, which never blocks it."""

from __future__ import annotations

import io
import logging
import os
import queue
import threading
from logging.handlers import QueueListener
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.view import logs
from workers.logs import PASSED_ON, BoundedHandler, Lines


class Seen(Exception):
    """Enough."""


def test_following_goes_on_with_new_files_and_does_not_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "1_0_log.out", tmp_path / "2_0_log.out"
    first.write_text("".join(f"line {number}\n" for number in range(30)))

    def write(path: Path, text: str, at: int) -> None:
        with path.open("a") as file:
            file.write(text)
        os.utime(path, (at, at))

    turns = iter(
        [
            lambda: write(first, "last words\n", 1),
            lambda: write(second, "a new life\n", 2),
            lambda: (write(first, "an echo\n", 3), write(second, "goes on\n", 4)),
        ]
    )

    def sleep(_: float) -> None:
        turn = next(turns, None)
        if turn is None:
            raise Seen
        turn()

    monkeypatch.setattr(logs.time, "sleep", sleep)
    output = io.BytesIO()
    with pytest.raises(Seen):
        logs.follow(tmp_path, output)
    text = output.getvalue().decode()
    assert text.startswith("line 10\n") and text.count("line 29\n") == 1
    assert text.endswith(
        "line 29\nlast words\n\n==> 2_0_log.out <==\na new life\n\n==> 1_0_log.out <==\nan echo\n"
        "\n==> 2_0_log.out <==\ngoes on\n"
    )


class StuckStream(io.StringIO):
    """A file system that hangs until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.freed = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.freed.wait()
        return super().write(text)


def record(text: str, name: str = "sluice.test") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, "", 0, text, None, None)


def test_a_stuck_writer_never_blocks_the_caller_and_what_it_missed_is_counted() -> None:
    lines: queue.Queue[logging.LogRecord] = queue.Queue(3)
    stream, handler = StuckStream(), BoundedHandler(lines)
    listener = QueueListener(lines, logging.StreamHandler(stream))
    listener.start()
    try:
        handler.handle(record("line 0"))
        assert stream.entered.wait(60)
        for number in range(1, 11):
            handler.handle(record(f"line {number}"))  # a caller that blocked would stay here for ever
        assert handler.num_dropped == 7
        stream.freed.set()
        lines.join()
        handler.handle(record("moves again"))
    finally:
        stream.freed.set()
        listener.stop()
    note = "7 log lines dropped: standard output did not take them"
    assert stream.getvalue().splitlines() == ["line 0", "line 1", "line 2", "line 3", note, "moves again"]


@given(st.integers(1, 4), st.lists(st.booleans(), max_size=60))
def test_every_line_is_written_or_counted(size: int, history: list[bool]) -> None:
    """True: a line is logged; False: the writer takes one."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(size)
    handler = BoundedHandler(lines)
    written: list[str] = []
    for logged in [*history, *[False] * size]:
        if logged:
            handler.handle(record("line"))
        elif not lines.empty():
            written.append(lines.get_nowait().getMessage())
    told = sum(int(text.split()[0]) for text in written if "dropped" in text)
    assert written.count("line") + told + handler.num_dropped == sum(history)


def test_lines_of_another_process_pass_as_they_are() -> None:
    formatter = Lines("%(levelname).1s agent %(name)s: %(message)s")
    assert formatter.format(record("I engine sluice.host: up", PASSED_ON)) == "I engine sluice.host: up"
    assert formatter.format(record("ready")) == "I agent sluice.test: ready"
