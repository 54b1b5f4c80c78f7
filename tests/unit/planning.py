"""What the tests of the planning half share: a config with overrides, planned with paths of nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import load
from launcher.job import Allocation, Plan
from launcher.planning.folders import Folders
from launcher.planning.models import resolve
from launcher.planning.plan import PlanRefused, make_plan
from launcher.schema import Config

NOWHERE = Path("/nowhere")


def planned(*overrides: str, allocation: Allocation | None = None) -> Plan:
    return plan_of(load(overrides), allocation)


def plan_of(config: Config, allocation: Allocation | None = None) -> Plan:
    given = config.cluster.cache_dir if config.cluster else None
    where = Folders(cache=Path(given or NOWHERE / "cache"), hub=NOWHERE / "hub", home=Path("/home/user"))
    model = resolve(config.model, where.cache, where.hub)
    run_dir = f"/runs/{config.run}"
    return make_plan(
        config,
        model=model,
        folders=where,
        code="c0de",
        interpreter="/venv/bin/python",
        run_dir=run_dir,
        allocation=allocation,
    )


def refusals(*overrides: str, allocation: Allocation | None = None) -> tuple[str, ...]:
    with pytest.raises(PlanRefused) as refused:
        planned(*overrides, allocation=allocation)
    return refused.value.faults
