"""What the tests of the planning half share: a config with overrides, planned with paths of nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import load
from launcher.job import Plan
from launcher.models import resolve
from launcher.plan import PlanRefused, make_plan

NOWHERE = Path("/nowhere")


def planned(*overrides: str) -> Plan:
    config = load(overrides)
    model = resolve(config.model, NOWHERE / "cache", NOWHERE / "hub")
    run_dir = f"/runs/{config.run}"
    return make_plan(config, model=model, code="c0de", interpreter="/venv/bin/python", run_dir=run_dir)


def refusals(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(PlanRefused) as refused:
        planned(*overrides)
    return refused.value.faults
