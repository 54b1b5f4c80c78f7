"""Logging that never blocks an event loop: a bounded queue, a thread that writes, drops counted.

Standard output of a job usually lies on a shared file system, and those hang. Owns the process's
logging set-up; nothing else configures logging.
"""

from __future__ import annotations

import logging
import queue
import sys
from logging.handlers import QueueHandler, QueueListener

QUEUE_LINES = 10_000
PASSED_ON = "engine"  # the logger of an engine process's output in its agent


class BoundedHandler(QueueHandler):
    """Drops a line when the writer is stuck, and says how many were dropped once it moves again."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.num_dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self.num_dropped:
                note = f"{self.num_dropped} log lines dropped: standard output did not take them"
                told = logging.LogRecord("sluice.logs", logging.WARNING, "", 0, note, None, None)
                self.queue.put_nowait(told)
                self.num_dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self.num_dropped += 1


class Lines(logging.Formatter):
    """Lines that another process has formatted already pass as they are."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == PASSED_ON else super().format(record)


def start_logging(process: str) -> QueueListener:
    """Send all logging to standard output through a thread. Returns the listener; stop it to flush."""
    writer = logging.StreamHandler(sys.stdout)
    writer.setFormatter(Lines(f"%(asctime)s %(levelname).1s {process} %(name)s: %(message)s"))
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_LINES)
    listener = QueueListener(lines, writer)
    listener.start()
    handler = BoundedHandler(lines)
    handler.setFormatter(logging.Formatter("%(message)s"))  # the writer adds the rest
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    return listener
