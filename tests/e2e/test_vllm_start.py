"""What a real vLLM's start leaves behind: its times, stage by stage, and caches where they belong."""

from __future__ import annotations

import os

import pytest

from tests.e2e.conftest import Real
from workers.stages import IMPORT, LOAD, PREFLIGHT, PROOF, REGISTER, WARM_UP, WEIGHTS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_every_stage_of_the_start_is_told(real: Real) -> None:
    """Weights and warm-up are in vLLM's log only: a version that words them differently fails here."""
    for worker in real.run.fleet()["workers"]:
        stages = worker["stages"]
        assert list(stages) == [PREFLIGHT, IMPORT, LOAD, WEIGHTS, WARM_UP, REGISTER, PROOF]
        assert all(stages[name] > 0 for name in (PREFLIGHT, IMPORT, LOAD, PROOF))
        assert stages[WEIGHTS] < stages[LOAD], "a model of two layers"


def test_engines_keep_what_they_compile_by_version_and_device(real: Real) -> None:
    cache = real.run.path / "cache" / "vllm-0.32.0" / f"cpu-{os.uname().machine.replace('_', '-')}"
    assert any((cache / "vllm").iterdir()), "vLLM has written into it"
    assert list((real.run.path / "home").rglob("*")) == [], "and nothing into a home"
