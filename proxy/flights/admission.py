"""Whether a request may wait: there is room for it, and its turn can come before its deadline.

Pure. What a turn takes is worked out from what the workers' rates have learned; while they know too little, everybody
may wait. Requests of a batch are patient: for them there only has to be room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from proxy.errors import QueueFull, TooBusy
from proxy.fleet.fleet import Fleet
from proxy.fleet.worker import Worker
from proxy.flights.flight import Flight
from proxy.flights.waiting import ANSWER_COST, Ahead, Waiting
from proxy.spec import Deadlines, Limits

RETRY_AFTER_S = 5
MOST_RETRY_AFTER_S = 300


class Admission:
    def __init__(self, queue: Waiting, fleet: Fleet, limits: Limits, deadlines: Deadlines) -> None:
        self._queue = queue
        self._fleet = fleet
        self._limits = limits
        self._deadlines = deadlines

    def admit(self, flight: Flight, now: float) -> Iterator[tuple[Flight, QueueFull]]:
        """It joins the queue. Who is turned away for that, perhaps itself, and why."""
        lane = self._queue.of(flight)
        late_s = self._late_s(flight, now)
        if late_s > 0:
            after_s = min(MOST_RETRY_AFTER_S, max(1, math.ceil(late_s)))
            yield flight, TooBusy("its turn would come after its deadline", retry_after_s=after_s)
            return
        lane.add(flight)
        if len(lane) > self._limits.max_queued:
            refused = lane.greediest()
            lane.remove(refused)
            yield refused, QueueFull(f"{len(lane)} requests wait already", retry_after_s=RETRY_AFTER_S)

    def _late_s(self, flight: Flight, now: float) -> float:
        """By how much its turn would come too late, as far as that can be known."""
        if flight.of_batch or not len(self._queue.of(flight)):
            return 0.0
        wait_s = expected_wait_s(self._fleet, self._queue.of(flight).ahead_of(flight), now)
        return 0.0 if wait_s is None else wait_s - self._deadlines.queue_s


def expected_wait_s(fleet: Fleet, ahead: Ahead, now: float) -> float | None:
    """Until so much work has found places, on workers that are as busy as they may be. None: that cannot be said."""
    decoders = [worker for worker in fleet.decoders if worker.caps.max_decodes]
    if not decoders or not all(worker.rates.answer_tokens.known for worker in decoders):
        return None
    answers_per_s = sum(worker.caps.max_decodes / _holds_s(worker, now) for worker in decoders)
    prefillers = {worker.key: worker for workers in fleet.prefillers.values() for worker in workers}
    computing = [one for one in ({w.key: w for w in decoders} | prefillers).values() if one.caps.max_prefill_tokens]
    num_tokens = max(0.0, ahead.cost / max(1.0, ahead.num) - ANSWER_COST)
    prompts_per_s = sum(1 / max(1e-6, worker.rates.prefill.seconds(num_tokens)) for worker in computing)
    slowest_per_s = min(answers_per_s, prompts_per_s)
    return ahead.num / slowest_per_s if slowest_per_s else None


def _holds_s(worker: Worker, now: float) -> float:
    """How long an answer keeps its place."""
    itl_s = worker.rates.itl_s(worker.held_tokens, now)
    return max(1e-3, worker.rates.answer_tokens.value * itl_s)
