"""What went wrong: a worker's own fault, and one line out of the nested groups that task groups raise."""

from __future__ import annotations

from collections.abc import Iterator


class WorkerFault(Exception):
    """This worker cannot serve; the message says why and what to do."""


def leaves(fault: BaseException) -> Iterator[BaseException]:
    """The single exceptions inside."""
    if isinstance(fault, BaseExceptionGroup):
        for inner in fault.exceptions:
            yield from leaves(inner)
    else:
        yield fault


def story(fault: BaseException) -> str:
    """Their messages; an exception without one is named."""
    return "; ".join(str(leaf) or type(leaf).__name__ for leaf in leaves(fault))
