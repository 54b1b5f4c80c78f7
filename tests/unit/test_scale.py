"""How many workers there are follows need, ahead of it, within bounds and budget; and it never flaps."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.job import Scaling
from launcher.planner import roles
from launcher.planner.forecast import Bucket, Forecast
from launcher.planner.need import Costs, Demand
from launcher.planner.roles import Sight
from launcher.planner.scale import HOLD_S, Looked, Need, PoolLook, Scaled, Scaler, Stands, WorkerLook
from launcher.planner.word import Word, caps_of, read_word, wanted_workers
from launcher.rundir import SERVE, Desired, RunDir
from launcher.view.planned import draw, planner_lines
from proxy.monitoring.counsel import counsel_gauges
from proxy.spec import LatencyTargets
from tests.unit.planning import planned, refusals
from workers.spec import Role

MOST, STEP_S, DRAIN_S = 6, 5.0, 60.0
NAMES = tuple(f"any-{number}" for number in range(MOST))
SCALED = (
    "+cluster=onebox",
    "engine=sim",
    "~pools.prefill",
    "pools.decode.role=any",
    "pools.decode.replicas=1",
    "planner=on",
)


def scaling(**changes: object) -> Scaling:
    return msgspec.structs.replace(
        Scaling(initial={"any": 2}, least={"any": 1}, most={"any": MOST}),
        **changes,
    )


class Site:
    """A queue that gives each job what it asks for after a while, and takes back what is not wanted."""

    def __init__(self, asked: Scaling, queue_s: float = 60.0, start_s: float = 120.0) -> None:
        self.core = Scaler(asked, DRAIN_S)
        self.queue_s, self.lead_s = queue_s, queue_s + start_s
        self.now = 0.0
        self.jobs: dict[str, float] = {}  # worker -> submitted at
        self.leaving: dict[str, float] = {}  # its GPU is held until then
        self.gpu_s = 0.0
        self.young = 0  # told to go while it started
        self.scaled: list[Scaled] = []

    def stands(self, worker: str) -> WorkerLook:
        if worker not in self.jobs or worker in self.leaving:
            return WorkerLook(worker)
        age_s = self.now - self.jobs[worker]
        stands = Stands.PENDING if age_s < self.queue_s else Stands.STARTED if age_s < self.lead_s else Stands.PROVEN
        return WorkerLook(worker, stands, self.jobs[worker])

    def pass_s(self, seconds: float, need: Need | None, *, asked: bool = True, waiting: bool = False) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            looks = tuple(self.stands(worker) for worker in NAMES)
            pool = PoolLook(pool="any", workers=looks, need=need, lead_s=self.lead_s, gpus_each=1)
            looked = Looked(
                pools=[pool], gpu_hours=self.gpu_s / 3600, live_gpus=len(self.jobs), asked=asked, waiting=waiting
            )
            self.scaled += self.core.apply(looked, self.now)
            self.obey({look.worker: look for look in looks})

    def obey(self, looks: dict[str, WorkerLook]) -> None:
        wanted = self.core.wanted["any"]
        for worker in NAMES:
            stands = looks[worker].stands
            if worker in wanted and worker not in self.jobs:
                self.jobs[worker] = self.now
            elif worker not in wanted and worker in self.jobs and worker not in self.leaving:
                self.young += stands is not Stands.PENDING and self.now - self.jobs[worker] < self.lead_s
                self.leaving[worker] = self.now + (DRAIN_S if stands is Stands.PROVEN else 0.0)
            if worker in self.leaving and self.now >= self.leaving[worker]:
                del self.leaving[worker], self.jobs[worker]
        held = [w for w, at in self.jobs.items() if self.now - at >= self.queue_s or w in self.leaving]
        self.gpu_s += STEP_S * len(held)

    @property
    def size(self) -> int:
        return len(self.core.wanted["any"])


def need(now: int, ahead: int | None = None) -> Need:
    return Need(now=now, ahead=now if ahead is None else ahead)


def test_a_forecast_brings_workers_before_they_are_needed_and_a_hold_lets_them_go() -> None:
    site = Site(scaling())
    site.pass_s(60, need(2, ahead=5))
    assert site.size == 5
    assert site.scaled[-1].why == "forecast"
    site.pass_s(2 * HOLD_S, need(2, ahead=5))
    assert site.size == 5
    site.pass_s(HOLD_S - STEP_S, need(1, ahead=3))
    assert site.size == 5, "not before the hold is over"
    site.pass_s(2 * STEP_S, need(2, ahead=2))
    assert site.size == 3, "the most of that time"


def test_jobs_that_wait_go_before_workers_that_serve() -> None:
    site = Site(scaling(), queue_s=10 * HOLD_S)
    site.lead_s = HOLD_S  # as it was until now
    site.core = Scaler.restore(scaling(), DRAIN_S, {"any": NAMES[:4]}, 0.0)
    site.jobs = {"any-0": 0.0, "any-1": -1e6, "any-2": 0.0, "any-3": -1e6}
    site.pass_s(2 * HOLD_S, need(2))
    assert site.core.wanted["any"] == ("any-1", "any-3")
    assert site.young == 0


def test_idle_runs_go_to_zero_and_come_back_when_somebody_asks() -> None:
    site = Site(scaling(idle_to_zero_s=600.0))
    site.pass_s(site.lead_s + 595, need(2), asked=False)
    assert site.size == 2, "what starts is not idle yet"
    site.pass_s(60, need(1), asked=False)
    assert site.size == 0
    site.pass_s(1200, need(3), asked=False)
    assert site.size == 0, "a forecast alone wakes nobody"
    site.pass_s(STEP_S, need(1), waiting=True)
    assert site.size == 1


def test_nothing_is_known_nothing_changes() -> None:
    site = Site(scaling())
    site.pass_s(3600, None)
    assert site.size == 2 and site.scaled == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=60, max_size=60),
    st.floats(5, 900),
    st.floats(5, 900),
    st.floats(0.2, 5),
)
def test_an_hour_of_noise_drains_nobody_who_still_starts_and_keeps_the_budget(
    minutes: list[tuple[int, int]], queue_s: float, start_s: float, budget: float
) -> None:
    site = Site(scaling(budget_gpu_hours=budget), queue_s, start_s)
    for now, ahead in minutes:
        site.pass_s(60, need(now, ahead))
        assert site.size <= MOST
    site.pass_s(3600, need(9))
    spent = [one for one in site.scaled if one.after == 0]
    assert site.gpu_s / 3600 <= budget
    assert site.young == 0 or spent, "only a budget that ends spares nobody"
    without = Site(scaling(), queue_s, start_s)
    for now, ahead in minutes:
        without.pass_s(60, need(now, ahead))
        assert 1 <= without.size <= MOST
    assert without.young == 0


# ---------------------------------------------------------------- what a demand takes

TARGETS = LatencyTargets(ttft_s=2.0, itl_s=0.025)


def costs() -> Costs:
    known = Costs()
    for second in range(60):
        sight = Sight(
            worker="any-0",
            queue_s=0.0,
            computed_s=0.5 * second,
            decodes=10,
            held_tokens=10_000,
            running=10,
            max_running=256,
            kv_used=0.02,
            prompt_each_s=9.0,
            step_s=0.008,
            step_each_s=5e-8,
        )
        known.look([sight], 0)
    known.learn(0, 29.5 / 5e-5)
    return known


def test_costs_are_what_the_workers_have_shown() -> None:
    assert abs(costs().prompt_each_s - 5e-5) < 1e-9
    assert costs().held == 1000


@given(st.floats(0, 1e5), st.floats(0, 2e4))
def test_more_demand_never_takes_fewer_workers(computed: float, output: float) -> None:
    for role in Role:
        one, more = (
            costs().workers(role, Demand(factor * computed, factor * output), TARGETS, 60.0, 50) for factor in (1, 2)
        )
        assert 1 <= one <= more <= 50


def test_prompts_and_answers_each_take_theirs() -> None:
    known = costs()
    prompts = known.workers(Role.ANY, Demand(55_000, 0), TARGETS, 60.0, 50)
    assert prompts == known.workers(Role.PREFILL, Demand(55_000, 0), TARGETS, 60.0, 50) == 6
    answers = known.workers(Role.ANY, Demand(0, 20_000), TARGETS, 60.0, 50)
    assert answers == known.workers(Role.DECODE, Demand(0, 20_000), TARGETS, 60.0, 50) > 1
    known.queued_s = 120.0
    assert known.workers(Role.PREFILL, Demand(55_000, 0), TARGETS, 60.0, 50) == 10


# ---------------------------------------------------------------- what may be asked for, and who obeys


def test_a_plan_has_all_workers_that_there_may_be() -> None:
    plan = planned(*SCALED, "planner.max_replicas=3", "planner.budget_gpu_hours=5")
    assert list(plan.proxy.workers) == ["decode-0", "decode-1", "decode-2"]
    assert plan.scaling is not None and plan.scaling.initial == {"decode": 1} and plan.scaling.most == {"decode": 3}
    desired = Desired(target=SERVE, workers=tuple(plan.proxy.workers), since=7.0)
    word = Word(mode="on", since=7.0, wanted={"decode": ("decode-0", "decode-2")})
    assert wanted_workers(None, plan, desired) == ("decode-0",)
    assert wanted_workers(word, plan, desired) == ("decode-0", "decode-2")
    for other in (msgspec.structs.replace(word, mode="advise"), msgspec.structs.replace(word, since=6.0)):
        assert wanted_workers(other, plan, desired) == ("decode-0",), "neither advice nor an earlier start is obeyed"


def test_what_cannot_be_is_refused_with_its_key() -> None:
    for asked, told in (
        (("planner=off", "planner.max_replicas=3"), "planner.max_replicas: nobody plans"),
        (("planner.max_replicas=0",), "planner.max_replicas: 0 is too little"),
        (("planner.min_replicas=2",), "planner.min_replicas: 2, but pools.decode.replicas is 1"),
        (("planner.max_replicas=99",), "pools: all workers together take 99 GPUs"),
        (("planner.budget_gpu_hours=-1",), "planner.budget_gpu_hours: -1 is too little"),
        (("planner.idle_to_zero_s=nan",), "planner.idle_to_zero_s: nan is too little"),
        (("routing.targets.ttft_s=nan",), "routing.targets.ttft_s: nan is too little"),
    ):
        assert any(fault.startswith(told) for fault in refusals(*SCALED, *asked)), asked
    mixed = ("+cluster=onebox", "engine=sim", "pools.decode.role=any", "planner=on", "planner.max_replicas=2")
    assert any(
        "decode and prefill share the prefills" in f or "prefill and decode share the" in f for f in refusals(*mixed)
    )


# ---------------------------------------------------------------- what people see


def word() -> Word:
    rising = Forecast()
    for minute in range(60):
        rising.add(Bucket(100.0 + 20 * minute, 10.0, 50.0))
    ahead = {kind: dict(forecast) for kind, forecast in rising.ahead().items()}
    buckets = tuple(Bucket(100.0 + 20 * minute, 10.0, 50.0) for minute in range(60))
    one = Scaled(at=0.0, pool="any", before=1, after=2, why="forecast", need=need(1, 2), lead_s=60.0, gpu_hours=0.5)
    return Word(
        written_at=100.0,
        mode="on",
        roles={"any-0": roles.Role.DECODE, "any-1": roles.Role.BOTH},
        demand=ahead,
        drift=rising.drift(),
        buckets=buckets,
        wanted={"any": NAMES[:2]},
        gpu_hours=0.5,
        scaled=(one,),
    )


def test_the_forecast_is_shown_with_its_drift_in_text_picture_and_metrics(tmp_path: Path) -> None:
    told = "\n".join(planner_lines(word()))
    assert "prompts 1240, " in told and "the mix becomes prefill-heavy" in told
    assert "the planner wants any 2 workers; 0.50 GPU-hours so far" in told
    assert "any from 1 to 2 workers: forecast; 1 needed now, at most 2 in 60 s" in told
    assert "the planner keeps clear of prompts: any-0\n" in told
    assert planner_lines(None) == []
    assert draw(word(), tmp_path / "demand.png")
    assert (tmp_path / "demand.png").read_bytes().startswith(b"\x89PNG")
    shown = {name: samples for name, _, samples in counsel_gauges(caps_of(word(), {}, {}, 101.0))}
    assert ({"pool": "any"}, 2.0) in shown["sluice_planner_wanted_workers"]
    assert shown["sluice_planner_drift"] == [({"towards": "prefill-heavy"}, 1.0)]
    demand = {(s["kind"], s["minutes"], s["bound"]): v for s, v in shown["sluice_planner_demand_tokens_per_second"]}
    assert 1240 < demand["computed", "15", "mean"] <= demand["computed", "15", "high"]
    assert counsel_gauges(caps_of(None, {}, {}, 0.0)) == []


def test_a_word_that_is_broken_is_no_word(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.planner.write_text('{"mode": 7')
    assert read_word(run) is None
