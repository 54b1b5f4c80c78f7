"""A run that moves roles while users read: nothing fails, and a planner that is killed comes back with what it knew."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.control.kept_process import living
from launcher.planner.roles import Role
from launcher.planner.word import Word
from launcher.rundir import RunDir, read_optional
from launcher.view.live_status import ask_fleet
from tests.launching import Launch, launch, nothing_left
from tests.live import wait_for

NUM_WORKERS = 3
ARGUMENTS = (
    "+cluster=local",
    "engine=sim",
    "run=demo",
    "planner=on",
    "~pools.prefill",
    "~pools.decode",
    f"+pools.any={{role: any, replicas: {NUM_WORKERS}}}",
    "routing.targets.itl_s=0.004",  # below what the simulated engines need: roles are apart under any load
)
BODY = {"model": "tiny", "max_tokens": 40, "stream": True, "ignore_eos": True}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        yield run


def word(run: RunDir) -> Word:
    return read_optional(run.planner, Word) or Word()


def caps(run: RunDir) -> list[tuple[bool, bool]]:
    """Who computes prompts and who decodes, by the proxy."""
    fleet: dict[str, Any] = ask_fleet(run) or {"workers": []}
    return [(bool(w["max_prefill_tokens"]), bool(w["max_decodes"])) for w in fleet["workers"]]


async def ask(url: str, key: str, until: asyncio.Event, faults: list[str]) -> None:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        while not until.is_set():
            answer = await client.post(f"{url}/completions", json={**BODY, "prompt": "word " * 600})
            if answer.status_code != 200 or not answer.text.endswith("data: [DONE]\n\n") or "error" in answer.text:
                faults.append(f"{answer.status_code}: {answer.text[-300:]}")


async def under_load(run: RunDir, url: str) -> list[str]:
    """Until roles are apart, the planner has been killed, and another has taken its place."""
    until, faults = asyncio.Event(), list[str]()
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask(url, (run.keys / "api_key").read_text().strip(), until, faults))
        try:
            await asyncio.to_thread(wait_for, lambda: moved(run), "roles to be moved", 60)
            before = word(run)
            pid = living("launcher.planner", run.path)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(wait_for, lambda: another(run, pid, before), "another planner to go on", 60)
            assert word(run).decisions[: len(before.decisions)] == before.decisions
        finally:
            until.set()
    return faults


def moved(run: RunDir) -> bool:
    seen = caps(run)
    return (True, True) in seen and (False, True) in seen


def another(run: RunDir, pid: int, before: Word) -> bool:
    return living("launcher.planner", run.path) not in (None, pid) and word(run).written_at > before.written_at


def test_roles_move_under_load_and_a_killed_planner_comes_back(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        url = launched.wait_ready()
        starts = [worker["stages"] for worker in (ask_fleet(run) or {})["workers"]]
        assert asyncio.run(under_load(run, url)) == []
        told = word(run)
        assert Role.DECODE in {decision.role for decision in told.decisions}
        assert all(decision.done and decision.pressure.num_workers == NUM_WORKERS for decision in told.decisions)
        assert [worker["stages"] for worker in (ask_fleet(run) or {})["workers"]] == starts, "nobody started anew"
        status = json.loads(launch(tmp_path, "action=status", "run=demo", "output=json").stdout)
        assert {worker["generation"] for worker in status["workers"]} == {0}
        launched.interrupt()
        assert launched.wait() == 0
