"""Which replays a search will ask for next, so that they can run beside each other.

Pure. A search asks for one replay after the other, each by the answers before. What it would ask for if all answers
that are missing were failures is found by letting it run on with failures. So how many run at once changes how long a
search takes, never what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from launcher.twin.capacity_search import Question, Tried
from launcher.twin.splits import Split

Found = TypeVar("Found")
Ask = Callable[[Question], Tried]
Search = Callable[[Ask], Found]


class _Enough(Exception):
    pass


def foreseen(search: Search[Found], known: Mapping[Question, Tried], most: int) -> list[Question]:
    """The first will be asked whatever comes; none: all that it asks is known."""
    supposed: dict[Question, Tried] = {}

    def ask(question: Question) -> Tried:
        if question in known:
            return known[question]
        if question not in supposed:
            if len(supposed) == most:
                raise _Enough
            supposed[question] = _failure(question.split)
        return supposed[question]

    try:
        search(ask)
    except _Enough:
        pass
    return list(supposed)


def _failure(split: Split) -> Tried:
    never = float("inf")
    return Tried(split=split, ttft_s=never, itl_s=0.0, ttft_of_target=never, itl_of_target=0.0)
