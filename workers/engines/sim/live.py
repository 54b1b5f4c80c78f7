"""The simulated engine's core on the event loop's clock: applies events, keeps its timer, sorts its effects.

Owns the core's one timer and the queue of each live request. Decides nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from workers.engines.sim import events as ev
from workers.engines.sim.core import Core


class Output(msgspec.Struct, frozen=True):
    """A token, the end, or both. `num_cached_tokens` comes with the first one."""

    id: int
    token: int | None
    ended: ev.Ended | None
    num_cached_tokens: int = 0


Outputs = asyncio.Queue[ev.Fetch | Output]
OnKvEvents = Callable[[list[ev.KvEvent]], None]  # all of one step, in their order; never an empty list


class LiveCore:
    def __init__(self, config: ev.CoreConfig, on_kv_events: OnKvEvents) -> None:
        self.core = Core(config)
        self._on_kv_events = on_kv_events
        self._loop = asyncio.get_running_loop()
        self._queues: dict[int, Outputs] = {}
        self._num_cached: dict[int, int] = {}  # of requests without an output yet
        self._ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None

    def new_id(self) -> int:
        return next(self._ids)

    def submit(self, submit: ev.Submit, outputs: Outputs) -> None:
        self._queues[submit.id] = outputs
        self.apply(submit)

    def apply(self, event: ev.Event) -> None:
        self._apply(event, self._loop.time())

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _apply(self, event: ev.Event, now: float) -> None:
        self._sort(self.core.apply(event, now))
        if self.core.next_at != self._due:
            self._arm(self.core.next_at)

    def _arm(self, due: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = None if due is None else self._loop.call_at(due, self._tick, due)

    def _tick(self, due: float) -> None:
        self._due = self._timer = None
        # The loop's clock is coarser than ours: it may call a little early.
        self._apply(ev.Tick(), max(due, self._loop.time()))

    def _sort(self, effects: list[ev.Effect]) -> None:
        ended = {effect.id: effect for effect in effects if type(effect) is ev.Ended}
        kv_events: list[ev.KvEvent] = []
        for effect in effects:
            if type(effect) is ev.Tokens:
                for id, token in zip(effect.ids, effect.tokens, strict=True):
                    end = ended.pop(id, None)
                    self._put(Output(id, token, end, self._num_cached.pop(id, 0)))
            elif type(effect) is ev.Scheduled:
                self._num_cached[effect.id] = effect.num_cached_tokens
            elif type(effect) is ev.Fetch:
                self._queues[effect.id].put_nowait(effect)
            elif type(effect) is ev.Stored or type(effect) is ev.Removed:
                kv_events.append(effect)
        for id, end in ended.items():
            self._num_cached.pop(id, None)
            self._put(Output(id, None, end))
        if kv_events:
            self._on_kv_events(kv_events)

    def _put(self, output: Output) -> None:
        queue = self._queues[output.id] if output.ended is None else self._queues.pop(output.id)
        queue.put_nowait(output)
