"""Which workers only decode, as the pressure on both kinds of work moves.

Pure: one mutator, `apply(event, now) -> effects`. While times between tokens are far from their target every worker
does both and the router chooses for each request. Else workers are kept clear of prompts ahead of what answers fill,
but none that prompts need: the seconds of work that arrive per second and lie in queues, SHARED times over. Nobody is
kept clear of answers. Nothing restarts: what a worker has begun it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from proxy.spec import LatencyTargets

APART = 0.3  # of the target for times between tokens, were all mixed: from here on roles are apart
TOGETHER = 0.2  # and below this they are not any more
SHARED = 1.6  # workers that do both, for each that prompts alone would fill
SLACK = 0.5  # workers: one is given back when so much of it is needed, so that noise moves nobody
AHEAD = 3.0  # workers kept clear, at most and beside one more, for each that answers fill
MEMORY_S = 3.0  # of how much work arrives, and of what answers fill
MAX_MIXED = 0.95


class Role(StrEnum):
    BOTH = "both"
    DECODE = "decode"


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that may do both, as the proxy sees it."""

    worker: str
    queue_s: float  # of prompts that it has been given
    computed_s: float  # that prompts have taken since its start
    decodes: int  # that it has a place for, also while their prompts are computed elsewhere
    held_tokens: int  # of their prompts
    running: int  # in its engine
    max_running: int
    kv_used: float
    prompt_each_s: float  # of a prompt, per token
    step_s: float  # of one token, nobody else's prompt in between: without any held, and per token held
    step_each_s: float

    @property
    def decoding_tokens(self) -> float:
        """Of prompts whose answers are being made."""
        return self.held_tokens * min(1.0, self.running / self.decodes) if self.decodes else 0.0

    @property
    def filled(self) -> float:
        return max(self.kv_used, self.running / self.max_running)


@dataclass(frozen=True, slots=True)
class Looked:
    workers: Sequence[Sight]
    waiting_tokens: int = 0  # of prompts that no worker has been given yet


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision was made of."""

    prefill: float  # workers that prompts alone would fill
    filled: float  # workers that answers alone fill
    arriving: float  # seconds of prompts per second
    queued_s: float
    mixed_itl_s: float  # if all did both
    num_workers: int


@dataclass(frozen=True, slots=True)
class Moved:
    worker: str
    before: Role
    role: Role
    pressure: Pressure


@dataclass(slots=True)
class Roles:
    """`roles`: of the workers that were seen last."""

    targets: LatencyTargets
    roles: dict[str, Role] = field(default_factory=dict)
    pressure: Pressure | None = None
    _arriving: float = 0.0
    _filled: float = 0.0
    _waiting_s: float = 0.0
    _before: dict[str, Sight] = field(default_factory=dict)
    _looked_at: float | None = None
    _began: float = 0.0

    def apply(self, event: Looked, now: float) -> list[Moved]:
        workers = {sight.worker: sight for sight in event.workers}
        waiting_s = event.waiting_tokens * min((sight.prompt_each_s for sight in event.workers), default=0.0)
        self._learn(workers, waiting_s, now)
        self.roles = {name: self.roles.get(name, Role.BOTH) for name in workers}
        if len(workers) < 2:
            self.pressure = None
            return self._deal(dict.fromkeys(workers, Role.BOTH))
        self.pressure = pressure = self._press(list(workers.values()), waiting_s)
        if now - self._began < MEMORY_S:
            return []
        return self._deal(self._wanted(pressure, workers))

    def _learn(self, workers: dict[str, Sight], waiting_s: float, now: float) -> None:
        """Work arrives as queues grow and as it is done."""
        if self._looked_at is None:
            self._began = now
        elif now > self._looked_at:
            passed_s = now - self._looked_at
            known = [(self._before[name], sight) for name, sight in workers.items() if name in self._before]
            done_s = sum(max(0.0, after.computed_s - before.computed_s) for before, after in known)
            grown_s = sum(after.queue_s - before.queue_s for before, after in known) + waiting_s - self._waiting_s
            share = 1 - math.exp(-passed_s / MEMORY_S)
            self._arriving += share * (max(0.0, done_s + grown_s) / passed_s - self._arriving)
            self._filled += share * (sum(sight.filled for sight in workers.values()) - self._filled)
        self._before, self._waiting_s, self._looked_at = workers, waiting_s, now

    def _press(self, workers: list[Sight], waiting_s: float) -> Pressure:
        held = sum(sight.decoding_tokens for sight in workers)
        queued_s = waiting_s + sum(sight.queue_s for sight in workers)
        # Whoever computes prompts as well has learned its steps with those in between.
        step_s = min(sight.step_s + sight.step_each_s * held / len(workers) for sight in workers)
        prefill = self._arriving + queued_s / self.targets.ttft_s
        return Pressure(
            prefill=prefill,
            filled=self._filled,
            arriving=self._arriving,
            queued_s=queued_s,
            mixed_itl_s=step_s / (1 - min(MAX_MIXED, prefill / len(workers))),
            num_workers=len(workers),
        )

    def _wanted(self, pressure: Pressure, workers: dict[str, Sight]) -> dict[str, Role]:
        """Who has its role keeps it; who decodes most goes first to decode only."""
        clear = sum(role is Role.DECODE for role in self.roles.values())
        if not pressure.filled or pressure.mixed_itl_s < (TOGETHER if clear else APART) * self.targets.itl_s:
            return dict.fromkeys(workers, Role.BOTH)
        by_prompts = _kept(clear, max(0.0, len(workers) - SHARED * pressure.prefill))
        by_answers = max(1, _kept(clear, 1 + AHEAD * pressure.filled))
        clear = min(len(workers) - 1, by_prompts, by_answers)
        order = sorted(workers, key=lambda name: (self.roles[name] is Role.BOTH, -workers[name].held_tokens, name))
        return {name: Role.DECODE if n < clear else Role.BOTH for n, name in enumerate(order)}

    def _deal(self, wanted: dict[str, Role]) -> list[Moved]:
        changed = [name for name in self.roles if wanted[name] is not self.roles[name]]
        if not changed or self.pressure is None:
            return []
        moves = [Moved(name, self.roles[name], wanted[name], self.pressure) for name in changed]
        self.roles = wanted
        return moves


def _kept(clear: int, free: float) -> int:
    return clear if free - 1 < clear <= free + SLACK else int(free)
