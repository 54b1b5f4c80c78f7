"""Conversations on real vLLM go where their KV lies, by the engines' own counters, whatever is restarted meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import resyncs
from tests.e2e.conftest import Real
from tests.e2e.resyncs import NUM_TURNS, Routed, routed

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ours(real: Real) -> Iterator[Routed]:
    with routed(real) as ours:
        yield ours


def test_from_the_second_turn_on_the_conversation_is_in_the_cache(ours: Routed) -> None:
    conversations = ours.conversations(1, 4)
    with ours.client() as client:
        for number in range(NUM_TURNS):
            parts = [conversation.turn(client) for conversation in conversations]
            print(f"turn {number + 1}: {[round(part, 3) for part in parts]}")
            assert number == 0 or min(parts) >= 0.9
    assert ours.run.metric("sluice_digest_resyncs_total") == 0


def test_after_events_are_lost(ours: Routed) -> None:
    print(resyncs.events_lost(ours, 2))


def test_after_events_are_gone_for_good(ours: Routed) -> None:
    print(resyncs.events_gone(ours, 3))


def test_after_the_proxy_is_restarted(ours: Routed) -> None:
    print(resyncs.proxy_restarted(ours, 4))


def test_after_a_worker_is_restarted(ours: Routed) -> None:
    print(resyncs.worker_restarted(ours, 5))
