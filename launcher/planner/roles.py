"""Which workers prefill and which decode, as the pressure on both moves.

Pure: one mutator, `apply(event, now) -> effects`. While times between tokens are far from their target every worker
does both and the router chooses for each request. Else roles are dealt out so that neither side is pressed harder than
it has to be: prompts by the seconds of work that arrive per second and lie in queues, answers by the time between
tokens and by what their engines hold. Nothing restarts: what a worker has begun it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from proxy.spec import LatencyTargets

APART = 0.5  # of the target for times between tokens, were all mixed: from here on roles are apart
TOGETHER = 0.25  # and below this they are not any more
PREFILL_UTILISATION = 0.85
DECODE_UTILISATION = 0.8  # of the target for times between tokens, and of the KV cache
FULL = 0.9  # of KV cache or places, all decoding workers together: who waits waits for these
MEMORY_S = 3.0  # of how much work arrives
GAIN = 0.1  # a move has to ease the harder pressed side by this part
DWELL_S = 10.0  # before a move back, unless there is more to do than can be done
OVERLOAD = 1.0
MAX_MIXED = 0.95


class Role(StrEnum):
    BOTH = "both"
    PREFILL = "prefill"
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
    """What a decision was made of. In workers: how many of them the work would fill."""

    prefill: float
    decode: float
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
    _waiting_s: float = 0.0
    _before: dict[str, Sight] = field(default_factory=dict)
    _looked_at: float | None = None
    _began: float = 0.0
    _moved_at: float = -math.inf
    _grew: Role = Role.BOTH  # with the last move

    def apply(self, event: Looked, now: float) -> list[Moved]:
        workers = {sight.worker: sight for sight in event.workers}
        waiting_s = event.waiting_tokens * min((sight.prompt_each_s for sight in event.workers), default=0.0)
        self._learn(workers, waiting_s, now)
        self.roles = {name: self.roles.get(name, Role.BOTH) for name in workers}
        if len(workers) < 2:
            self.pressure = None
            return self._deal(dict.fromkeys(workers, Role.BOTH), workers, now)
        self.pressure = pressure = self._press(list(workers.values()), event.waiting_tokens, waiting_s)
        if now - self._began < MEMORY_S:
            return []
        return self._deal(self._wanted(pressure, workers, now), workers, now)

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
        self._before, self._waiting_s, self._looked_at = workers, waiting_s, now

    def _press(self, workers: list[Sight], waiting_tokens: int, waiting_s: float) -> Pressure:
        # What has been moved to prefill ends its answers, and is asked for no more.
        decoding = [sight for sight in workers if self.roles[sight.worker] is not Role.PREFILL]
        held = sum(sight.decoding_tokens for sight in decoding)
        filled = sum(sight.filled for sight in decoding)
        queued_s = sum(sight.queue_s for sight in workers)
        if filled >= FULL * len(decoding) and held:
            filled *= 1 + waiting_tokens / held  # they wait for places to decode, not to prefill
        else:
            queued_s += waiting_s
        # Whoever computes prompts as well has learned its steps with those in between.
        clean = min(workers, key=lambda sight: sight.step_s + sight.step_each_s * held / len(workers))
        step_s, each_s = clean.step_s, clean.step_each_s
        room_s = max(1e-4, DECODE_UTILISATION * self.targets.itl_s - step_s)
        busy = min(MAX_MIXED, (self._arriving + queued_s / self.targets.ttft_s) / len(workers))
        return Pressure(
            prefill=self._arriving / PREFILL_UTILISATION + queued_s / self.targets.ttft_s,
            decode=max(
                held * each_s / room_s,
                filled / DECODE_UTILISATION,
            ),
            arriving=self._arriving,
            queued_s=queued_s,
            mixed_itl_s=(step_s + each_s * held / len(workers)) / (1 - busy),
            num_workers=len(workers),
        )

    def _wanted(self, pressure: Pressure, workers: dict[str, Sight], now: float) -> dict[str, Role]:
        num_prefill = sum(role is Role.PREFILL for role in self.roles.values())
        apart = Role.BOTH not in self.roles.values()
        if pressure.mixed_itl_s < (TOGETHER if apart or num_prefill else APART) * self.targets.itl_s:
            return dict.fromkeys(workers, Role.BOTH)
        best = min(range(1, len(workers)), key=lambda number: _hardest(pressure, number))
        if apart and not self._worth(pressure, num_prefill, best, now):
            best = num_prefill
        return self._divide(best, workers)

    def _worth(self, pressure: Pressure, number: int, best: int, now: float) -> bool:
        if not 0 < number < pressure.num_workers:
            return True
        hardest = _hardest(pressure, number)
        back = self._grew is not (Role.PREFILL if best > number else Role.DECODE)
        if back and now - self._moved_at < DWELL_S and hardest < OVERLOAD:
            return False
        return _hardest(pressure, best) < (1 - GAIN) * hardest

    def _divide(self, num_prefill: int, workers: dict[str, Sight]) -> dict[str, Role]:
        """Who has its role keeps it; who decodes least goes first to prefill."""

        def least(name: str) -> tuple[bool, bool, int, str]:
            role = self.roles[name]
            return role is not Role.PREFILL, role is Role.DECODE, workers[name].held_tokens, name

        order = sorted(workers, key=least)
        return {name: Role.PREFILL if n < num_prefill else Role.DECODE for n, name in enumerate(order)}

    def _deal(self, wanted: dict[str, Role], workers: dict[str, Sight], now: float) -> list[Moved]:
        changed = [name for name in workers if wanted[name] is not self.roles[name]]
        if not changed or self.pressure is None:
            return []
        moves = [Moved(name, self.roles[name], wanted[name], self.pressure) for name in changed]
        before = sum(role is Role.PREFILL for role in self.roles.values())
        after = sum(role is Role.PREFILL for role in wanted.values())
        self._grew = Role.PREFILL if after > before else Role.DECODE
        self._moved_at = now
        self.roles = wanted
        return moves


def _hardest(pressure: Pressure, num_prefill: int) -> float:
    """How hard the harder pressed side is pressed."""
    return max(pressure.prefill / num_prefill, pressure.decode / (pressure.num_workers - num_prefill))
