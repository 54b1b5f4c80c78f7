"""Proofs: before a worker takes users' requests, a real completion has gone through it.

For every allowed prefill -> decode pair a short completion with a prompt nobody has sent before is run
through exactly this pair, and the decode engine's own counter must show KV that it received. Pure: it
is asked what is due, and told what happened. Owns the attempts, not the result: that is the fleet's.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import Event, ProofFailed, Proven
from proxy.fleet.worker import Key, Pair
from workers.protocol import Capabilities, Leg, Load, Submit

RETRY_S = 2.0
COUNTER_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Attempt:
    """One proof under way. `ended_at`: the completion came; the counter is waited for."""

    pair: Pair
    received_before: int
    ended_at: float | None = None


class Prober:
    """At most one proof at a time per decode worker: the counter would not tell two apart."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._attempts: dict[Key, Attempt] = {}
        self._not_before: dict[Pair, float] = {}

    def due(self, now: float) -> list[Pair]:
        """Pairs to prove now; each counts as under way from here on."""
        started: list[Pair] = []
        for pair in self._fleet.expected_pairs():
            decode = pair[1]
            if pair in self._fleet.proven or decode in self._attempts or self._not_before.get(pair, 0.0) > now:
                continue
            load = self._fleet.workers[decode].load
            self._attempts[decode] = Attempt(pair, load.kv_tokens_received)
            started.append(pair)
        return started

    def answered(self, pair: Pair, now: float) -> list[Event]:
        """The completion came in full."""
        attempt = self._attempts.get(pair[1])
        if attempt is None or attempt.pair != pair:
            return []
        attempt.ended_at = now
        if pair[0] is None:
            del self._attempts[pair[1]]
            return [Proven(pair)]
        return []

    def failed(self, pair: Pair, reason: str, now: float) -> list[Event]:
        attempt = self._attempts.get(pair[1])
        if attempt is None or attempt.pair != pair:
            return []
        del self._attempts[pair[1]]
        self._not_before[pair] = now + RETRY_S
        return [ProofFailed(pair, reason)]

    def counted(self, decode: Key, load: Load) -> list[Event]:
        """A decode worker's own figures."""
        attempt = self._attempts.get(decode)
        if attempt is None or attempt.ended_at is None or load.kv_tokens_received <= attempt.received_before:
            return []
        del self._attempts[decode]
        return [Proven(attempt.pair)]

    def lost(self, key: Key) -> None:
        """A worker has gone: what was being proven with it is void."""
        for decode in [d for d, a in self._attempts.items() if key in a.pair]:
            del self._attempts[decode]
        self._not_before = {pair: at for pair, at in self._not_before.items() if key not in pair}

    def tick(self, now: float) -> list[Event]:
        """Answers whose KV never showed in the engine's counter: the hand-over did not happen."""
        late = [a for a in self._attempts.values() if a.ended_at is not None and now - a.ended_at > COUNTER_TIMEOUT_S]
        events: list[Event] = []
        for attempt in late:
            events += self.failed(attempt.pair, "answered, but the decode engine received no KV", now)
        return events


def proof(request_id: str, model: str, loaded: Capabilities, nonce: str) -> Submit:
    """A completion whose prompt fills at least two blocks and shares its first one with nothing.

    Of an engine that pools: whatever its model makes of such a text.
    """
    words = " ".join(f"{nonce}{i:x}" for i in range(2 * loaded.block_size))
    asked = {"prompt": words, "max_tokens": 2, "temperature": 0} if loaded.generates else {"input": words}
    return Submit(
        rid=0,
        request_id=request_id,
        leg=Leg.WHOLE,
        method="POST",
        path="/v1/completions" if loaded.generates else "/pooling",
        query=b"",
        headers=((b"content-type", b"application/json"),),
        body=msgspec.json.encode({"model": model, **asked}),
    )
