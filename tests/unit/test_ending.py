"""Why and until when a worker drains, and what Slurm leaves it after a signal."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.agent.ending import Ending
from workers.agent.notice import KILL_WAIT, MARGIN_S, time_left

NOW = 1_767_225_600.0
ASKS = st.lists(st.tuples(st.sampled_from(["SIGTERM", "walltime", "a person"]), st.floats(0, 1e6)), min_size=1)


@given(ASKS)
def test_the_first_gives_the_reason_and_the_nearest_end_counts(asks: list[tuple[str, float]]) -> None:
    async def history() -> None:
        ending, began = Ending(), asyncio.get_running_loop().time()
        for reason, drain_s in asks:
            ending.ask(reason, drain_s)
        stop = await ending.nearer()
        assert stop.reason == ending.reason == asks[0][0]
        nearest_s = min(drain_s for _, drain_s in asks)
        assert began + nearest_s <= stop.until <= asyncio.get_running_loop().time() + nearest_s

    asyncio.run(history())


def test_who_drains_hears_of_a_nearer_end_and_of_no_other() -> None:
    async def history() -> None:
        ending = Ending()
        ending.ask("SIGTERM", 100.0)
        first = await ending.nearer()
        waiting = asyncio.create_task(ending.nearer(first.until))
        ending.ask("a person", 200.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        ending.ask("a signal", 50.0)
        assert (await waiting).until < first.until

    asyncio.run(history())


@pytest.mark.parametrize(
    ("told", "left_s"),
    [
        (f"COMPLETING {NOW:.0f}\n", 30 - MARGIN_S),  # scancel, or a preemption without grace
        (f"RUNNING {NOW + 60:.0f}\n", 60 - MARGIN_S),  # a preemption with grace: Slurm has moved the end
        (f"SIGNALING {NOW + 60:.0f}", 60 - MARGIN_S),
        (f"RUNNING {NOW + 8:.0f}", 8 - 2),  # a quarter where there is little
        (f"RUNNING {NOW - 5:.0f}", 0),
        ("RUNNING N/A", float("inf")),
        ("", 30 - MARGIN_S),  # Slurm does not answer
    ],
)
def test_what_slurm_leaves_is_told_by_the_state_of_the_job(told: str, left_s: float) -> None:
    assert time_left(told, 30.0, NOW) == left_s


def test_killwait_is_found_in_what_scontrol_shows() -> None:
    found = KILL_WAIT.search("JobRequeue              = 1\nKillWait                = 8 sec\nLaunchType  = (null)\n")
    assert found is not None and found[1] == "8"
