"""The link's pure core: a loss is never silent, and what is in flight is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.links.session import LinkLost, Session


def session(window_bytes: int = 100) -> Session:
    return Session(window_bytes, silence_s=3.0, heard_at=0.0)


def test_batches_in_order_are_accepted() -> None:
    ours = session()
    for seq in range(3):
        ours.accept(seq, 0, 10, now=float(seq))
    assert ours.received_bytes == 30


@pytest.mark.parametrize("seq", [0, 2])
def test_a_repeated_or_skipped_batch_loses_the_link(seq: int) -> None:
    ours = session()
    ours.accept(0, 0, 10, now=0.0)
    with pytest.raises(LinkLost, match="expected batch 1"):
        ours.accept(seq, 0, 10, now=0.0)


@pytest.mark.parametrize("ack", [-1, 51])
def test_an_acknowledgement_of_what_was_not_sent_loses_the_link(ack: int) -> None:
    ours = session()
    ours.count(50)
    with pytest.raises(LinkLost, match="acknowledged"):
        ours.accept(0, ack, 10, now=0.0)


def test_credit_ends_with_the_window_and_returns_with_the_acknowledgement() -> None:
    ours = session(window_bytes=100)
    ours.seal()
    ours.count(100)
    assert not ours.may_send()
    ours.accept(0, 60, 1, now=0.0)
    assert ours.may_send()


def test_silence_is_counted_from_the_last_word() -> None:
    ours = session()
    ours.accept(0, 0, 1, now=10.0)
    assert not ours.silent(13.0)
    assert ours.silent(13.1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=60))
def test_two_ends_that_lose_nothing_never_stall_for_ever(history: list[tuple[bool, int]]) -> None:
    """Each step one end sends a batch if it may; whoever owes an acknowledgement gives it."""
    ends = (session(), session())
    for left_sends, size in history:
        sender, receiver = ends if left_sends else ends[::-1]
        if not sender.may_send():
            assert receiver.owes_ack() or receiver.told_bytes < receiver.received_bytes
            sender, receiver = receiver, sender
        seq, ack = sender.seal()
        sender.count(size)
        receiver.accept(seq, ack, size, now=0.0)
        assert sender.sent_bytes - sender.acked_bytes <= 100 + 60
        assert receiver.received_bytes == sender.sent_bytes
