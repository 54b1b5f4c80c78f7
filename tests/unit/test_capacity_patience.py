"""A replay of a split that cannot keep up is given up, and the verdict is the one that its end would give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from launcher.config import load
from launcher.schema import WorkloadConfig
from launcher.twin import capacity
from launcher.twin.capacity import Capacity
from launcher.twin.capacity_search import Question, Tried
from launcher.twin.records import Replayed
from launcher.twin.setup import Setup
from launcher.twin.simulate import resolved
from launcher.twin.splits import Layout, Part, Split
from launcher.twin.steady import Underway
from launcher.twin.traces import Request
from launcher.twin.trial import Trial
from launcher.twin.workload import make_workload


class Noting(Trial):
    ended: ClassVar[list[Replayed]] = []

    def run(self) -> Replayed:
        self.ended.append(super().run())
        return self.ended[-1]


class Patient(Noting):
    """It gives nothing up."""

    def __init__(self, setup: Setup, requests: Sequence[Request], underway: Sequence[Underway], **limits: Any) -> None:
        super().__init__(setup, requests, underway)


@cache
def judged(num_workers: int, itl_s: float, kind: type[Noting]) -> tuple[Tried, Replayed]:
    targets = ["routing.targets.ttft_s=1", f"routing.targets.itl_s={itl_s}"]
    config = load(["+cluster=h100x1", "model=llama-3.1-8b", "action=capacity", *targets])
    workload = WorkloadConfig(rate=60, requests=900, prompt_tokens=4000, output_tokens=100)
    split = Split(Part(Layout(1), num_workers))
    with patch.object(capacity, "Trial", kind):
        tried = Capacity(config, resolved(config), {}, make_workload(workload, 65536)).replay(Question(split))
    return tried, Noting.ended[-1]


@pytest.mark.parametrize("itl_s", [0.05, 0.02])
@pytest.mark.parametrize("num_workers", [4, 6, 7, 8, 9])
def test_giving_up_changes_no_verdict(num_workers: int, itl_s: float) -> None:
    usual, replayed = judged(num_workers, itl_s, Noting)
    patient, _ = judged(num_workers, itl_s, Patient)
    assert usual.good == patient.good
    assert usual == patient or not replayed.complete


def test_who_cannot_keep_up_or_is_too_slow_is_given_up_before_the_end() -> None:
    ended = {count: judged(count, 0.05, Noting)[1] for count in (4, 9)}
    assert {count: replayed.complete for count, replayed in ended.items()} == {4: False, 9: True}
    assert ended[4].end_s < 0.8 * judged(4, 0.05, Patient)[1].end_s
    slow, patient = (judged(9, 0.008, kind) for kind in (Noting, Patient))
    assert not slow[1].complete and slow[0].misses == "ITL" and "ITL" in patient[0].misses
    assert slow[1].end_s < 0.8 * patient[1].end_s
