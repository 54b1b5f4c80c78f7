"""Roles follow the pressure on prompts and on answers; what was told is told again to whoever comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.planner.roles import DWELL_S, Looked, Moved, Role, Roles, Sight
from launcher.planner.word import STALE_S, Word, caps_of, movable
from proxy.spec import LatencyTargets, PoolCaps
from workers.controller_messages import WorkerCaps

NAMES = tuple(f"any-{number}" for number in range(8))
TARGETS = LatencyTargets(ttft_s=2.0, itl_s=0.025)
POOLS = {
    "any": PoolCaps(max_prefill_tokens=4096, max_decodes=64),
    "decode": PoolCaps(max_prefill_tokens=9, max_decodes=9),
}


class Load:
    """What workers would show if so much of each second of one worker were prompts, and so many answers were made."""

    def __init__(self, targets: LatencyTargets = TARGETS) -> None:
        self.core = Roles(targets)
        self.now = 0.0
        self.computed_s = 0.0
        self.moves: list[Moved] = []

    def pass_s(self, seconds: int, *, prompts: float = 0.0, answers: int = 0, queued_s: float = 0.0) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.computed_s += prompts / len(NAMES)
            roles = self.core.roles
            decoding = [name for name in NAMES if roles.get(name) is not Role.PREFILL]
            sights = [
                Sight(
                    worker=name,
                    queue_s=queued_s / len(NAMES),
                    computed_s=self.computed_s,
                    decodes=answers // len(decoding) if name in decoding else 0,
                    held_tokens=1000 * (answers // len(decoding)) if name in decoding else 0,
                    running=answers // len(decoding) if name in decoding else 0,
                    max_running=256,
                    kv_used=0.1,
                    prompt_each_s=2e-5,
                    step_s=0.008,
                    step_each_s=5e-8,
                )
                for name in NAMES
            ]
            self.moves += self.core.apply(Looked(sights), self.now)

    @property
    def num_prefill(self) -> int:
        return sum(role is Role.PREFILL for role in self.core.roles.values())


def test_with_headroom_everybody_does_both() -> None:
    load = Load(LatencyTargets(ttft_s=2.0, itl_s=0.1))
    load.pass_s(60, prompts=3.0, answers=100)
    assert load.moves == []
    assert set(load.core.roles.values()) == {Role.BOTH}


def test_roles_follow_the_traffic_there_and_back() -> None:
    load = Load()
    load.pass_s(30, prompts=5.5, answers=40)
    heavy = load.num_prefill
    load.pass_s(30, prompts=1.5, answers=1200)
    light = load.num_prefill
    load.pass_s(30, prompts=5.5, answers=40)
    assert heavy >= 6
    assert 1 <= light <= 4
    assert load.num_prefill == heavy


def test_a_queue_moves_a_worker_before_the_next_second_is_over() -> None:
    load = Load()
    load.pass_s(30, prompts=2.0, answers=1000)
    before = load.num_prefill
    load.pass_s(1, prompts=2.0, answers=1000, queued_s=20.0)
    assert load.num_prefill > before


def test_who_decodes_least_goes_first_and_nobody_moves_without_need() -> None:
    load = Load()
    load.pass_s(30, prompts=5.5, answers=40)
    number = len(load.moves)
    load.pass_s(60, prompts=5.5, answers=40)
    assert len(load.moves) == number


def test_the_work_of_before_a_planners_life_is_not_what_arrives() -> None:
    """Workers that have computed for hours are nothing new."""
    load = Load()
    load.computed_s = 1e5
    load.pass_s(20)
    assert load.core.pressure is not None and load.core.pressure.arriving == 0.0
    assert load.moves == []


@given(st.lists(st.tuples(st.floats(0, 8), st.integers(0, 2000), st.floats(0, 3)), min_size=20, max_size=60))
def test_noise_moves_nobody_back_within_the_dwell(seconds: list[tuple[float, int, float]]) -> None:
    """Unless there is more to do than can be done, and never so that one side has nobody."""
    load, grew, moved_at = Load(), False, 0.0
    for prompts, answers, queued_s in seconds:
        before, was_apart = load.num_prefill, Role.BOTH not in load.core.roles.values()
        load.pass_s(1, prompts=prompts, answers=answers, queued_s=queued_s)
        after, pressure = load.num_prefill, load.core.pressure
        assert pressure is not None
        if Role.BOTH in load.core.roles.values():
            continue
        assert 0 < after < len(NAMES)
        if was_apart and after != before and grew is not (after > before) and load.now - moved_at < DWELL_S:
            assert max(pressure.prefill / before, pressure.decode / (len(NAMES) - before)) >= 1.0
        if after != before:
            grew, moved_at = after > before, load.now


def test_one_worker_alone_has_no_role() -> None:
    core = Roles(TARGETS)
    assert core.apply(Looked([]), 1.0) == []
    assert core.roles == {}


def test_what_the_proxy_is_told() -> None:
    word = Word(written_at=100.0, mode="on", roles={"any-0": Role.PREFILL, "any-1": Role.DECODE, "any-2": Role.BOTH})
    workers = dict.fromkeys(("any-0", "any-1", "any-2"), "any")
    told = caps_of(word, workers, POOLS, 101.0)
    assert told.workers == (WorkerCaps("any-0", 4096, 0), WorkerCaps("any-1", 0, 64))
    assert caps_of(word, {"any-1": "any"}, POOLS, 101.0).workers == (WorkerCaps("any-1", 0, 64),), "any-0 is no more"


def test_nobody_is_obeyed_who_only_advises_or_is_silent() -> None:
    roles = {"any-0": Role.PREFILL}
    for word, now in (
        (None, 0.0),
        (Word(written_at=100.0, mode="advise", roles=roles), 101.0),
        (Word(written_at=100.0, mode="on", roles=roles), 101.0 + STALE_S),
    ):
        assert caps_of(word, {"any-0": "any"}, POOLS, now).workers == ()


def test_only_workers_that_do_both_for_each_other_are_moved() -> None:
    workers = {"any-0": "any", "any-1": "any", "decode-0": "decode"}
    assert movable(workers, POOLS, (("any", "any"), ("any", "decode"))) == {"any-0", "any-1"}
