"""`action=capacity`: the fewest GPUs that serve a workload within its targets, and how they are best divided.

Thin: bounds by arithmetic, the search, and replays in virtual time put together. All faults are told at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from launcher.planning.models import ResolvedModel
from launcher.refusal import Refused
from launcher.schema import Config, Output
from launcher.twin.capacity_search import Found, Question, Tried, find
from launcher.twin.capacity_text import answer_text, draw
from launcher.twin.card import Card
from launcher.twin.cards import Profiles, engine_faults, read_profiles
from launcher.twin.crew import Crew, num_useful
from launcher.twin.families import Family, families
from launcher.twin.needs import FULLEST, Idle, Needs, idle, load_of, needs
from launcher.twin.prediction import source_of
from launcher.twin.recipe import recipe_faults, write_recipe
from launcher.twin.simulate import read_workload, resolved, save, say_whose_shape
from launcher.twin.splits import Layout, Part, Split, faults_of, layouts, setup_of_split
from launcher.twin.steady import num_underway, underway
from launcher.twin.trial import Trial
from launcher.twin.verdict import late, slow, verdict
from launcher.twin.workload import Workload, workload_faults
from proxy.spec import LatencyTargets

# Long enough for queues to show, short enough for a hundred replays.
LEAST_REQUESTS, MOST_REQUESTS, SPAN_S = 600, 3000, 30.0
# Requests times GPUs: a replay of so many takes about as long as a process takes to start.
WORTH_A_PROCESS = 40_000


class Answer(Found, frozen=True, kw_only=True):
    at_least: dict[str, int]  # GPUs that a kind of split takes by arithmetic; none: however many there are
    idle: Idle  # the best of all layouts; no number of GPUs is faster
    gpus_per_node: int
    requests: int
    span_s: float  # in which they come
    num_output: float  # tokens of an answer, in the mean
    rate: float
    max_gpus: int
    percentile: float
    ttft_s: float
    itl_s: float
    source: str
    took_s: float


class Capacity:
    """Of one workload, model and cluster."""

    def __init__(self, config: Config, model: ResolvedModel, found: Profiles, workload: Workload) -> None:
        self.config, self.model, self._found, self.workload = config, model, found, workload
        targets = config.routing.targets
        self._targets = LatencyTargets(ttft_s=targets.ttft_s, itl_s=targets.itl_s)
        self._fraction = config.predict.percentile / 100
        self._load = load_of(workload)

    def card(self, layout: Layout) -> Card:
        setup = setup_of_split(self.config, self.model, self._found, self.workload.block_size, Split(Part(layout, 1)))
        return setup.pools["any"].card

    def needs(self, layout: Layout) -> Needs:
        return needs(layout, self.card(layout), self._load, self._targets, self._fraction)

    def idle(self, able: Sequence[Layout]) -> Idle:
        """The best of each, of all layouts."""
        found = [idle(self.card(layout), self._load, self._fraction) for layout in able]
        return Idle(min(each.ttft_s for each in found), min(each.itl_s for each in found))

    def try_split(self, split: Split) -> Tried:
        return self.replay(Question(split))

    def replay(self, question: Question) -> Tried:
        split, load = question
        requests = self.workload.requests
        if load != 1:
            requests = [replace(request, at_s=request.at_s / load) for request in requests]
        setup = setup_of_split(self.config, self.model, self._found, self.workload.block_size, split)
        targets, fraction = self._targets, self._fraction
        trial = Trial(
            setup,
            requests,
            underway=underway(requests, self._num_underway(split, load)),
            late=late(requests, targets.ttft_s, fraction),
            slow=[slow(requests, targets.itl_s, fraction)],
        )
        ttft_s, itl_s = verdict(trial, targets, fraction)
        return Tried(
            split=split,
            ttft_s=ttft_s,
            itl_s=itl_s,
            ttft_of_target=ttft_s / targets.ttft_s,
            itl_of_target=itl_s / targets.itl_s,
        )

    def _num_underway(self, split: Split, rate: float) -> int:
        load, prompts = self._load.times(rate), 1.0
        if split.prefill is not None:
            prompts = max(0.0, 1 - split.prefill.replicas / (rate * self.needs(split.prefill.layout).prefill))
        return num_underway(self.card(split.decode.layout), load, split.decode.replicas, prompts)

    def hands_over(self, split: Split) -> bool:
        return not faults_of(self.config, self.model, split)

    def answer(self, max_gpus: int, sizes: Sequence[int] = ()) -> Answer:
        """`sizes`: tensor parallel, of the layouts to look at; none: all."""
        started = time.monotonic()
        assert self.config.cluster is not None
        able = [each for each in able_layouts(self.config, self.model) if not sizes or each.tensor_parallel in sizes]
        ordered = families([self.needs(layout).times(1 / FULLEST) for layout in able], self.hands_over)
        small = len(self.workload.requests) * max_gpus < WORTH_A_PROCESS
        with Crew(self.replay, 1 if small else num_useful()) as crew:
            found = crew.run(partial(find, ordered=ordered, max_gpus=max_gpus))
        return Answer(
            **msgspec.structs.asdict(found),
            at_least=_at_least(ordered),
            idle=self.idle(able),
            gpus_per_node=self.config.cluster.gpus_per_node,
            requests=len(self.workload.requests),
            span_s=self.workload.span_s,
            num_output=self._load.num_output,
            rate=self.workload.rate,
            max_gpus=max_gpus,
            percentile=self.config.predict.percentile,
            ttft_s=self._targets.ttft_s,
            itl_s=self._targets.itl_s,
            source=source_of(self.card(able[0])),
            took_s=time.monotonic() - started,
        )


def able_layouts(config: Config, model: ResolvedModel) -> list[Layout]:
    """Without a data sheet only those that have been measured, if any has."""
    assert config.cluster is not None
    found, profiled = list(layouts(config, model)), config.predict.profiles
    measured = [layout for layout in found if layout.name in profiled]
    return measured if config.cluster.gpu is None and measured else found


def _at_least(ordered: list[Family]) -> dict[str, int]:
    found: dict[str, int] = {}
    for family in ordered:
        assert family.least is not None
        found.setdefault("disaggregated" if family.prefill else "aggregated", family.least.gpus)
    return found


# ---------------------------------------------------------------- the action


def capacity(config: Config) -> int:
    """Status 1: nothing within the cluster keeps to the targets. Raises Refused."""
    found, faults = read_profiles(config)
    faults += [*capacity_faults(config), *recipe_faults(config)]
    model = resolved(config)
    able: list[Layout] = []
    if not faults:
        able = able_layouts(config, model)
        faults += engine_faults(config, model, [layout.name for layout in able])
    if not faults and not able:
        assert config.cluster is not None
        faults = faults_of(config, model, Split(Part(Layout(config.cluster.gpus_per_node), 1)))
    if faults:
        raise Refused(faults)
    say_whose_shape(config, model)
    workload = read_workload(replace(config.workload, requests=_num_requests(config)), config.model.max_model_len)
    answer = Capacity(config, model, found, workload).answer(_max_gpus(config))
    save(config, "capacity.json", answer)
    print(msgspec.json.encode(answer).decode() if config.output is Output.json else answer_text(answer))
    if config.predict.output is not None and not draw(answer, config.predict.output):
        print("no picture: matplotlib is not installed", file=sys.stderr)
    if config.name is not None and answer.chosen is not None:
        path = write_recipe(config, answer.chosen.split)
        print(f"{path}\nnext: python -m launcher +recipe={config.name} action=plan", file=sys.stderr)
    return 0 if answer.chosen else 1


def capacity_faults(config: Config) -> Iterator[str]:
    targets, cluster = config.routing.targets, config.cluster
    yield from workload_faults(config.workload)
    for name, most in (("ttft_s", 3600), ("itl_s", 60)):
        value = getattr(targets, name)
        if not 0 < value <= most:
            yield f"routing.targets.{name}: {value:g} is absurd; use more than 0, at most {most}"
    if not 1 <= config.predict.percentile < 100:
        yield f"predict.percentile: {config.predict.percentile:g} is none; use 1 or more, less than 100"
    if config.engine.simulated:
        yield "engine.simulated: the simulator takes no GPUs; use engine=vllm"
    if cluster is not None and cluster.gpus_per_node < 1:
        yield f"cluster.gpus_per_node: {cluster.name} has no GPUs; choose another cluster"
    elif cluster is not None and not 1 <= _max_gpus(config) <= cluster.nodes * cluster.gpus_per_node:
        yield f"predict.max_gpus: {_max_gpus(config)} of {cluster.nodes} x {cluster.gpus_per_node}; raise cluster.nodes"


def _max_gpus(config: Config) -> int:
    assert config.cluster is not None
    given = config.predict.max_gpus
    return config.cluster.nodes * config.cluster.gpus_per_node if given is None else given


def _num_requests(config: Config) -> int:
    workload = config.workload
    if workload.requests is not None:
        return workload.requests
    return (
        MOST_REQUESTS
        if workload.trace
        else round(min(MOST_REQUESTS, max(LEAST_REQUESTS, SPAN_S * (workload.rate or 1))))
    )
