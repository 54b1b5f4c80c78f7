"""A replay of a split that cannot keep up is given up, and the verdict is the one that its end would give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar
from unittest.mock import patch

import pytest

from launcher.config import load
from launcher.schema import WorkloadConfig
from launcher.twin import capacity
from launcher.twin.capacity import Capacity
from launcher.twin.capacity_search import Question, Tried
from launcher.twin.records import Replayed
from launcher.twin.replay import Patience, Replay
from launcher.twin.simulate import resolved
from launcher.twin.splits import Layout, Part, Split
from launcher.twin.traces import Request
from launcher.twin.workload import make_workload


class Noting(Replay):
    ended: ClassVar[list[Replayed]] = []

    def run(self) -> Replayed:
        self.ended.append(super().run())
        return self.ended[-1]


class Patient(Capacity):
    def _patience(self, requests: Sequence[Request]) -> tuple[Patience, ...]:
        return ()


@cache
def judged(num_workers: int, kind: type[Capacity]) -> tuple[Tried, Replayed]:
    config = load(["+cluster=h100x1", "model=llama-3.1-8b", "action=capacity", "routing.targets.ttft_s=1"])
    workload = WorkloadConfig(rate=60, requests=900, prompt_tokens=4000, output_tokens=100)
    split = Split(Part(Layout(1), num_workers))
    with patch.object(capacity, "Replay", Noting):
        tried = kind(config, resolved(config), {}, make_workload(workload, 65536)).replay(Question(split))
    return tried, Noting.ended[-1]


@pytest.mark.parametrize("num_workers", [4, 6, 7, 8, 9])
def test_patience_changes_no_verdict(num_workers: int) -> None:
    usual, replayed = judged(num_workers, Capacity)
    patient, _ = judged(num_workers, Patient)
    assert (usual.good, usual.ttft_s) == (patient.good, patient.ttft_s)
    assert usual == patient or not replayed.complete


def test_who_cannot_keep_up_is_given_up_before_the_end() -> None:
    ended = {count: judged(count, Capacity)[1] for count in (4, 7, 8)}
    assert {count: replayed.complete for count, replayed in ended.items()} == {4: False, 7: False, 8: True}
    assert ended[7].end_s < 0.8 * judged(7, Patient)[1].end_s
