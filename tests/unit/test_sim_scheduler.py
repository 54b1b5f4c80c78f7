"""The simulator's scheduler: many passes planned at once end requests when they end pass by pass."""

from __future__ import annotations

import heapq
import random
from array import array
from dataclasses import dataclass

import pytest

from workers.engines.sim.events import CoreConfig, Timing
from workers.engines.sim.passes import MAX_PLANNED, NEVER
from workers.engines.sim.scheduler import Scheduler
from workers.engines.sim.steps import SimSteps
from workers.engines.sim.work import Abort, Arrive, Ended, Event, Fetch, Read, Release, Tick, Work

SIZE = 16
TRANSFER_S = 0.013


@dataclass(frozen=True)
class Ask:
    at_s: float
    prompt: tuple[int, ...]  # one number per block of tokens, then what is left
    num_prompt: int
    num_output: int
    hold: bool
    remote: bool
    abort_s: float | None


def asks(seed: int, num: int, gap_s: float, legs: bool) -> list[Ask]:
    """Prompts that share leading blocks."""
    rng = random.Random(seed)
    stems = [tuple(rng.randrange(1, 10**9) for _ in range(rng.randrange(1, 12))) for _ in range(4)]
    found, at_s = [], 0.0
    for _ in range(num):
        at_s += rng.choice((0.0, rng.expovariate(1 / gap_s)))
        stem = rng.choice(stems)[: rng.randrange(1, 13)]
        prompt = (*stem, *(rng.randrange(1, 10**9) for _ in range(rng.randrange(8))))
        if rng.random() < 0.3:
            stems[rng.randrange(4)] = prompt
        hold, remote = legs and rng.random() < 0.3, legs and rng.random() < 0.4
        num_output = 1 if hold else rng.randrange(1, 60)
        abort_s = rng.random() if rng.random() < 0.2 else None
        num_prompt = len(prompt) * SIZE + rng.randrange(SIZE)
        found.append(Ask(at_s, prompt, num_prompt, num_output, hold, remote and not hold, abort_s))
    return found


Times = dict[int, tuple[int, float, float]]  # request -> cached tokens, first token, end


def served(config: CoreConfig, asked: list[Ask], max_planned_passes: int) -> tuple[Times, int, int]:
    """Also: preemptions, and steps."""
    scheduler = Scheduler(config, SimSteps(config.timing), max_planned_passes)
    first: dict[int, tuple[int, float]] = {}
    ends: dict[int, float] = {}
    todo: list[tuple[float, int, Event]] = []
    hashes: dict[tuple[int, ...], int] = {}
    for id, ask in enumerate(asked):
        prefixes = [ask.prompt[: end + 1] for end in range(len(ask.prompt))]
        chain = array("Q", [hashes.setdefault(prefix, len(hashes) + 1) for prefix in prefixes])
        todo.append((ask.at_s, 2 * id, Work(id, chain, ask.num_prompt, ask.num_output, ask.hold, ask.remote)))
        if ask.abort_s is not None:
            todo.append((ask.at_s + ask.abort_s, 2 * id + 1, Abort(id)))
    heapq.heapify(todo)
    num_steps = 0
    while todo or scheduler.next_at != NEVER:
        event: Event = Tick()
        if scheduler.next_at <= (todo[0][0] if todo else NEVER):
            now = scheduler.next_at
        else:
            now, _, event = heapq.heappop(todo)
        num_steps += 1
        for effect in scheduler.apply(event, now):
            if isinstance(effect, Read) and not effect.again:
                first[effect.id] = (effect.num_cached, now)
            elif isinstance(effect, Ended):
                ends[effect.id] = now
                if asked[effect.id].hold:
                    heapq.heappush(todo, (now + TRANSFER_S, 2 * effect.id, Release(effect.id)))
            elif isinstance(effect, Fetch):
                heapq.heappush(todo, (now + TRANSFER_S, 2 * effect.id, Arrive(effect.id)))
    assert scheduler.cache.num_used == 0 and scheduler.unread_tokens == 0
    assert scheduler.num_running == scheduler.num_waiting == 0
    return {id: (*first[id], ends[id]) for id in ends}, scheduler.num_preemptions, num_steps


@pytest.mark.parametrize("legs", [False, True])
@pytest.mark.parametrize("model", ["additive", "mixed"])
@pytest.mark.parametrize(("num_blocks", "max_num_seqs", "gap_s"), [(400, 256, 0.1), (90, 256, 0.3), (400, 4, 0.1)])
@pytest.mark.parametrize("seed", range(2))
def test_many_passes_at_once_end_as_one_by_one(
    num_blocks: int, max_num_seqs: int, gap_s: float, model: str, legs: bool, seed: int
) -> None:
    config = CoreConfig(
        block_size=SIZE,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=200,
        lease_s=0.0,
        timing=Timing(model=model),  # type: ignore[arg-type]
    )
    asked = asks(seed, 150, gap_s, legs)
    expected, preemptions, num_passes = served(config, asked, 1)
    found, ours, num_steps = served(config, asked, MAX_PLANNED)
    assert expected.keys() == found.keys() >= {id for id, ask in enumerate(asked) if ask.abort_s is None}
    assert ours == preemptions and num_steps < num_passes
    for id, times in expected.items():
        assert found[id] == pytest.approx(times), id
