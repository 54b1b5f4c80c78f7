"""How long each stage of a start took, and what vLLM's log tells of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engines import stages_told
from workers.engines.sim.log import WEIGHTS_READ
from workers.stages import ORDER, StageClock, in_words

STEPS = st.lists(st.tuples(st.sampled_from(["enter", "tell"]), st.sampled_from(ORDER), st.floats(0, 100)), max_size=20)


def test_stages_follow_one_another() -> None:
    clock = StageClock()
    clock.add("environment", 2.0)
    clock.enter("preflight", 10.0)
    clock.enter("import", 11.5)
    assert clock.times == (("environment", 2.0), ("preflight", 1.5)), "only what has ended"
    clock.end(20.0)
    clock.end(30.0)
    assert clock.times == (("environment", 2.0), ("preflight", 1.5), ("import", 8.5))
    assert in_words(clock.times) == "environment 2.0 s, preflight 1.5 s, import 8.5 s"


def test_what_an_engine_tells_apart_is_taken_out_of_the_stage_around_it() -> None:
    clock = StageClock()
    clock.enter("load", 0.0)
    for rank_s in (10.0, 12.0, 11.0):
        clock.tell("weights", rank_s)
    clock.tell("warm-up", 5.0)
    clock.end(20.0)
    assert clock.times == (("load", 3.0), ("weights", 12.0), ("warm-up", 5.0)), "the slowest rank counts"


def test_clocks_that_disagree_make_no_negative_times() -> None:
    clock = StageClock()
    clock.add("environment", -3.0)
    clock.enter("load", 5.0)
    clock.tell("weights", 9.0)
    clock.end(6.0)
    assert clock.times == (("environment", 0.0), ("load", 0.0), ("weights", 9.0))


@given(STEPS)
def test_no_stage_is_negative_and_none_is_told_twice(steps: list[tuple[str, str, float]]) -> None:
    clock, now = StageClock(), 0.0
    for what, name, seconds in steps:
        now += seconds
        if what == "enter":
            clock.enter(name, now)
        else:
            clock.tell(name, seconds)
    clock.end(now)
    names = [name for name, _ in clock.times]
    assert len(set(names)) == len(names) and all(seconds >= 0 for _, seconds in clock.times)


def test_vllm_s_lines_are_understood() -> None:
    told = stages_told("vllm")
    prefix = "(EngineCore pid=9) INFO 10-01 12:00:00 [core.py:386] "
    took = "init engine (profile, create kv cache, warmup model) took "
    assert told("(Worker_TP1 pid=9) INFO Loading weights took 12.34 seconds") == {"weights": 12.34}
    assert told(f"{prefix}{took}3.50 s") == {"warm-up": 3.5}
    assert told(f"{prefix}{took}35.50 s (compilation: 20.25 s)") == {"compile": 20.25, "warm-up": 15.25}
    split = " (compilation: 20.25 s — language_model: 18.00 s, encoder: 2.20 s)"
    assert told(f"{prefix}{took}35.50 s{split}") == {"compile": 20.25, "warm-up": 15.25}
    assert told("INFO Model loading took 14.9 GiB memory and 12.5 seconds") == {}
    assert stages_told("sim")("Loading weights took 12.34 seconds") == {}


def test_so_are_the_simulator_s() -> None:
    assert stages_told("sim")(f"I engine sluice.sim: {WEIGHTS_READ % 12.34}") == {"weights": 12.34}
