"""Roles follow the pressure on prompts and on answers; what was told is told again to whoever comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.planner.roles import SLACK, Looked, Moved, Role, Roles, Sight
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
            sights = [
                Sight(
                    worker=name,
                    queue_s=queued_s / len(NAMES),
                    computed_s=self.computed_s,
                    decodes=answers // len(NAMES),
                    held_tokens=1000 * (answers // len(NAMES)),
                    running=answers // len(NAMES),
                    max_running=256,
                    kv_used=answers / 16_000,
                    prompt_each_s=2e-5,
                    step_s=0.008,
                    step_each_s=5e-8,
                )
                for name in NAMES
            ]
            self.moves += self.core.apply(Looked(sights), self.now)

    @property
    def num_clear(self) -> int:
        return sum(role is Role.DECODE for role in self.core.roles.values())


def test_with_headroom_everybody_does_both() -> None:
    load = Load(LatencyTargets(ttft_s=2.0, itl_s=0.1))
    load.pass_s(60, prompts=3.0, answers=100)
    assert load.moves == []
    assert set(load.core.roles.values()) == {Role.BOTH}


def test_workers_are_kept_clear_as_prompts_need_fewer_and_given_back() -> None:
    load = Load()
    load.pass_s(30, prompts=5.5, answers=40)
    assert load.num_clear == 0
    load.pass_s(30, prompts=1.5, answers=1200)
    assert 4 <= load.num_clear <= 6
    load.pass_s(30, prompts=5.5, answers=40)
    assert load.num_clear == 0


def test_a_queue_takes_workers_back_before_the_next_second_is_over() -> None:
    load = Load()
    load.pass_s(30, prompts=1.5, answers=1000)
    before = load.num_clear
    load.pass_s(1, prompts=1.5, answers=1000, queued_s=4.0)
    assert load.num_clear < before
    load.pass_s(1, prompts=1.5, answers=1000, queued_s=20.0)
    assert load.num_clear == 0


def test_few_answers_keep_one_clear() -> None:
    load = Load()
    load.pass_s(30, prompts=0.2, answers=40)
    assert load.num_clear == 1


def test_nobody_moves_without_need() -> None:
    load = Load()
    load.pass_s(30, prompts=2.0, answers=1000)
    number = len(load.moves)
    load.pass_s(60, prompts=2.0, answers=1000)
    assert len(load.moves) == number > 0


def test_the_work_of_before_a_planners_life_is_not_what_arrives() -> None:
    """Workers that have computed for hours are nothing new."""
    load = Load()
    load.computed_s = 1e5
    load.pass_s(20)
    assert load.core.pressure is not None and load.core.pressure.arriving == 0.0
    assert load.moves == []


@given(st.lists(st.floats(-SLACK / 4, SLACK / 4), min_size=20, max_size=60))
def test_noise_within_the_slack_moves_nobody_there_and_back(noise: list[float]) -> None:
    load = Load()
    for off in noise:
        load.pass_s(1, prompts=2.0 + off, answers=1000)
    directions = [move.role for move in load.moves]
    assert directions == sorted(directions, key=lambda role: role is Role.BOTH), (
        "kept clear first, given back at most once"
    )
    assert load.num_clear < len(NAMES)


def test_one_worker_alone_has_no_role() -> None:
    core = Roles(TARGETS)
    assert core.apply(Looked([]), 1.0) == []
    assert core.roles == {}


def test_what_the_proxy_is_told() -> None:
    word = Word(written_at=100.0, mode="on", roles={"any-0": Role.DECODE, "any-1": Role.DECODE, "any-2": Role.BOTH})
    workers = dict.fromkeys(("any-0", "any-1", "any-2"), "any")
    told = caps_of(word, workers, POOLS, 101.0)
    assert told.workers == (WorkerCaps("any-0", 0, 64), WorkerCaps("any-1", 0, 64))
    assert caps_of(word, {"any-1": "any"}, POOLS, 101.0).workers == (WorkerCaps("any-1", 0, 64),), "any-0 is no more"


def test_nobody_is_obeyed_who_only_advises_or_is_silent() -> None:
    roles = {"any-0": Role.DECODE}
    for word, now in (
        (None, 0.0),
        (Word(written_at=100.0, mode="advise", roles=roles), 101.0),
        (Word(written_at=100.0, mode="on", roles=roles), 101.0 + STALE_S),
    ):
        assert caps_of(word, {"any-0": "any"}, POOLS, now).workers == ()


def test_only_workers_that_do_both_for_each_other_are_moved() -> None:
    workers = {"any-0": "any", "any-1": "any", "decode-0": "decode"}
    assert movable(workers, POOLS, (("any", "any"), ("any", "decode"))) == {"any-0", "any-1"}
