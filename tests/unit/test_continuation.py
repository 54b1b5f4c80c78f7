"""What a client lacks of a stream that was made anew, wherever the old one broke off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.host.continuation import Continuation, NotTheSame, created_of
from workers.protocol import Resume

END = b"data: [DONE]\n\n"


def event(number: int, created: int) -> bytes:
    return b'data: {"id":"x","created":%d,"text":"\\"created\\":%d"}\n\n' % (created, number)


def answer(created: int, num_events: int) -> list[bytes]:
    return [event(number, created) for number in range(num_events)]


@given(num_events=st.integers(1, 8), data=st.data())
def test_old_and_new_bytes_are_one_answer(num_events: int, data: st.DataObject) -> None:
    old, new = answer(1_700_000_000, num_events), answer(1_700_000_099, num_events)
    had = data.draw(st.integers(0, num_events - 1))
    at_once = data.draw(st.integers(1, num_events))
    sent = b"".join(old[:had])
    continuation = Continuation(Resume(b"", len(sent), created_of(old[0]), 1))
    pieces = [b"".join(new[first : first + at_once]) for first in range(0, num_events, at_once)]
    rest = b"".join(continuation.rest(piece) for piece in pieces)
    assert sent + rest == b"".join(old)
    assert continuation.caught_up


def test_other_bytes_are_noticed_where_the_clients_end() -> None:
    sent = b"".join(answer(1_700_000_000, 2))
    continuation = Continuation(Resume(b"", len(sent), 1_700_000_000, 1))
    with pytest.raises(NotTheSame):
        continuation.rest(b"data: {}\n\n" + sent)


@pytest.mark.parametrize("resampled", [False, True])
def test_the_last_event_says_what_has_happened(resampled: bool) -> None:
    last = Continuation(Resume(b"", 0, 0, 2)).last(b"data: {}\n\n" + event(1, 1) + END, resampled=resampled)
    told = b',"sluice":{"resumed":2,"resampled":%b}}' % (b"true" if resampled else b"false")
    assert last == b"data: {}\n\n" + event(1, 1).removesuffix(b"}\n\n") + told + b"\n\n" + END


def test_an_answer_that_ends_in_another_way_is_left_as_it_is() -> None:
    assert (
        Continuation(Resume(b"", 0, 0, 1)).last(b'data: {"error":{}}\n\n', resampled=False) == b'data: {"error":{}}\n\n'
    )


def test_an_answer_without_a_time_has_none() -> None:
    assert created_of(b'data: {"id":"x"}\n\n') == 0
