"""How many workers a demand takes, by what this run's own workers have shown.

Pure. Owns the costs of a token and the question whether so many workers keep to the targets with it. Roles may mix or
be apart; the fewer workers count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from launcher.planner.roles import Sight
from proxy.spec import LatencyTargets
from workers.spec import Role

UTILISATION = 0.5  # of the time by prompts, of the KV cache, of places, of the target for times between tokens
FADE = 0.8  # of what was known of costs, per minute with requests


class Demand(NamedTuple):
    """Per second."""

    computed: float  # tokens of prompts that are not cached
    output: float  # tokens of answers


@dataclass(slots=True)
class Costs:
    """`look` is called with every sight of the fleet, `learn` when a minute's tokens are known."""

    held: float = 0.0  # tokens that an answer's prompt holds
    kv_each: float = 0.0  # the part of a worker's KV cache that it holds
    max_running: int = 1
    step_s: float = 0.0  # of one token: without any held, and per token held
    step_each_s: float = 0.0
    prompt_each_s: float = 0.0  # of a worker's time, per token computed
    queued_s: float = 0.0  # of prompts that workers have been given
    _computed_s: dict[int, float] = field(default_factory=dict)  # by minute, until its tokens are known
    _seconds: float = 0.0  # that fade, and the tokens they were for
    _tokens: float = 0.0
    _before: dict[str, float] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return self.prompt_each_s > 0 and self.step_s > 0

    def look(self, workers: Sequence[Sight], minute: int) -> None:
        done_s = [max(0.0, one.computed_s - self._before.get(one.worker, one.computed_s)) for one in workers]
        self._computed_s[minute] = self._computed_s.get(minute, 0.0) + sum(done_s)
        self._before = {sight.worker: sight.computed_s for sight in workers}
        self.queued_s = sum(sight.queue_s for sight in workers)
        if not workers:
            return
        if not self._tokens:
            self.prompt_each_s = min(sight.prompt_each_s for sight in workers)
        self.max_running = workers[0].max_running
        running = sum(sight.running for sight in workers)
        if running and (decodes := sum(sight.decodes for sight in workers)):
            self.held = sum(sight.held_tokens for sight in workers) / decodes
            self.kv_each = sum(sight.kv_used for sight in workers) / running
        clean = min(workers, key=lambda sight: sight.step_s + sight.step_each_s * sight.held_tokens)
        self.step_s, self.step_each_s = clean.step_s, clean.step_each_s

    def learn(self, minute: int, computed_tokens: float) -> None:
        seconds = self._computed_s.get(minute, 0.0)
        self._computed_s = {later: value for later, value in self._computed_s.items() if later > minute}
        if computed_tokens > 0 and seconds > 0:
            self._seconds = FADE * self._seconds + seconds
            self._tokens = FADE * self._tokens + computed_tokens
            self.prompt_each_s = self._seconds / self._tokens

    # ------------------------------------------------------------ what they come to

    def workers(self, role: Role, demand: Demand, targets: LatencyTargets, within_s: float, most: int) -> int:
        """The fewest. `within_s`: in which workers' queues are to be worked off. `most`, where none is enough."""
        prompts = demand.computed * self.prompt_each_s + self.queued_s / within_s
        itl_s = targets.itl_s if self.step_s < UTILISATION * targets.itl_s else float("inf")  # else nothing holds it

        def computes(number: int) -> bool:
            return prompts <= UTILISATION * number

        def answers(number: int) -> bool:
            return self._answers(demand.output / number, 0.0, itl_s)

        def both(number: int) -> bool:
            return computes(number) and self._answers(demand.output / number, prompts / number, itl_s)

        if role is not Role.ANY:
            return _first(computes if role is Role.PREFILL else answers, most)
        return min(_first(computes, most) + _first(answers, most), _first(both, most))

    def _answers(self, per_s: float, busy: float, itl_s: float) -> bool:
        """Whether a worker makes so many tokens per second, with prompts between them for a part of the time."""
        if not per_s:
            return True
        rate = per_s / (1 - busy)
        room = 1 - rate * self.step_each_s * self.held
        if room <= 0:
            return False
        running = rate * self.step_s / room
        step_s = (self.step_s + self.step_each_s * self.held * running) / (1 - busy)
        fills = max(running / self.max_running, running * self.kv_each)
        return fills <= UTILISATION and step_s <= UTILISATION * itl_s


def _first(fits: Callable[[int], bool], most: int) -> int:
    return next((number for number in range(1, most) if fits(number)), most)
