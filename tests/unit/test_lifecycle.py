"""A worker's phases: every step of the table and no other."""

from itertools import product

import pytest

from workers.agent.lifecycle import DRAINING, FAILED, LOADING, NEXT, READY, STARTING, STOPPED, IllegalStep, Lifecycle

WAY_TO = {
    STARTING: [],
    LOADING: [LOADING],
    READY: [LOADING, READY],
    DRAINING: [LOADING, READY, DRAINING],
    STOPPED: [STOPPED],
    FAILED: [FAILED],
}
FORWARD = {(STARTING, LOADING), (LOADING, READY), (READY, DRAINING)}
ENDS = {STOPPED, FAILED}


def life_at(phase: str) -> Lifecycle:
    life = Lifecycle()
    for step in WAY_TO[phase]:
        life.step(step)
    return life


@pytest.mark.parametrize(("before", "after"), list(product(NEXT, NEXT)))
def test_a_life_goes_forward_stays_or_ends(before: str, after: str) -> None:
    life = life_at(before)
    if after == before or (before, after) in FORWARD or (before not in ENDS and after in ENDS):
        life.step(after, "why")
        assert (life.phase, life.detail) == (after, "why")
    else:
        with pytest.raises(IllegalStep):
            life.step(after)
        assert life.phase == before


@pytest.mark.parametrize("phase", list(NEXT))
def test_only_the_ends_are_ends(phase: str) -> None:
    assert life_at(phase).ended == (phase in ENDS)


def test_an_illegal_step_tells_the_whole_story() -> None:
    life = Lifecycle()
    life.step(LOADING, "engine sim")
    life.step(LOADING, "half of the weights")
    life.step(FAILED, "out of memory")
    with pytest.raises(IllegalStep) as told:
        life.step(READY, "at last")
    assert str(told.value) == (
        "starting -> loading (engine sim) -> loading (half of the weights) -> failed (out of memory): "
        "no step to ready (at last)"
    )
