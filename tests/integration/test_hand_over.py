"""Workers whose jobs end, and a run that does not notice: real processes, simulated engines, short walltimes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from launcher.config import load
from launcher.control.controller import Controller
from launcher.control.following import see_off
from launcher.control.heir import Heir, followed
from launcher.control.ownership import OwnedByOther, claim, give, is_owner
from launcher.control.restoring import restore
from launcher.rundir import STOP, Desired, Endpoint, Owner, RunDir, read_optional
from launcher.start import plan_run, write_run
from tests.timed_jobs import TimedJobs
from workers.links.proxy_file import read_proxies

LIFE_S = 44.0
NUM_USERS = 6
NUM_HAND_OVERS = 2
TIMEOUT_S = 150.0
BODY = {"model": "tiny", "prompt": "word " * 200, "max_tokens": 160, "stream": True, "ignore_eos": True}


class Users:
    """Each reads one stream after the other, and none waits for another: some are always open."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.url
        self._headers = {"authorization": f"Bearer {Path(endpoint.api_key_file).read_text()}"}
        self.texts: list[str] = []
        self.faults: list[str] = []
        self.enough = asyncio.Event()

    async def ask_on(self) -> None:
        async with httpx.AsyncClient(headers=self._headers, timeout=60) as client:
            while not self.enough.is_set():
                answer = await client.post(f"{self._url}/completions", json=BODY)
                if answer.status_code != 200 or not answer.text.endswith("data: [DONE]\n\n") or "error" in answer.text:
                    self.faults.append(f"{answer.status_code}: {answer.text[-300:]}")
                else:
                    self.texts.append("".join(re.findall(r'"text":"(.*?)"', answer.text)))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    config = load(
        [
            "+cluster=local",
            "engine=sim",
            "routing=least_loaded",
            "run=demo",
            f"runs_dir={tmp_path}",
            "engine.drain_timeout_s=8",
        ]
    )
    made, plan, _ = plan_run(config)
    write_run(made, plan, config)
    return made


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 (files and lists of other tasks)
            await asyncio.sleep(0.1)
    assert condition(), what


def taken_over(run: RunDir) -> dict[str, int]:
    """By worker: how many generations have given their place to the next."""
    ended = [record for record in run.read_jobs() if record.ended_at is not None]
    return {worker: sum(record.worker == worker for record in ended) for worker in ("prefill-0", "decode-0")}


def test_streams_go_on_while_prefill_and_decode_workers_hand_over_twice(run: RunDir) -> None:
    async def scenario() -> Users:
        plan = run.read_plan()
        jobs = TimedJobs(run, LIFE_S)
        controller = Controller(run, plan, await asyncio.to_thread(claim, run, ""), restore(run, plan), jobs)
        running = asyncio.create_task(controller.run())
        try:
            await until(run.endpoint.exists, "the run to serve")
            endpoint = read_optional(run.endpoint, Endpoint)
            assert endpoint is not None
            users = Users(endpoint)
            asking = [asyncio.create_task(users.ask_on()) for _ in range(NUM_USERS)]
            await until(lambda: min(taken_over(run).values()) >= NUM_HAND_OVERS, "two hand-overs of each")
            users.enough.set()
            await asyncio.gather(*asking)
            return users
        finally:
            run.write_desired(Desired(target=STOP, workers=(), since=0.0))
            await running

    users = asyncio.run(scenario())
    assert users.faults == []
    assert len(users.texts) > 10 * NUM_USERS and len(set(users.texts)) == 1, "all as the first, which was undisturbed"
    ended = [record for record in run.read_jobs() if "has taken over" in record.reason]
    assert len(ended) >= 2 * NUM_HAND_OVERS and {record.state for record in ended} == {"COMPLETED"}


@pytest.mark.parametrize("given", [True, False], ids=["given", "left"])
def test_an_heir_keeps_a_proxy_of_its_own_until_the_run_is_its(run: RunDir, given: bool) -> None:
    async def scenario() -> None:
        owner = await asyncio.to_thread(claim, run, "7")
        heir = Heir(run, run.read_plan(), "8", owner)
        inheriting = asyncio.create_task(heir.inherit())
        try:
            await until(lambda: run.heir.exists() and read_proxies(run.proxies), "its proxy")
            assert is_owner(run, owner) and followed(run, "7") is None
            if given:
                give(run, owner, read_optional(run.heir, Owner) or owner)
            else:
                run.owner.unlink()
            found = await inheriting
            assert is_owner(run, found) and followed(run, "7") == found
            assert (found.job, found.proxy) == ("8", "proxy-1") and not run.heir.exists()
            with pytest.raises(OwnedByOther):
                give(run, owner, owner)
            [file] = read_proxies(run.proxies)
            assert file.id == "proxy-1.0", "it goes on"
            os.kill(file.pid, 0)
        finally:
            inheriting.cancel()
            ended = asyncio.Event()
            ended.set()
            await see_off(heir.proxy, ended)
        assert read_proxies(run.proxies) == []

    asyncio.run(scenario())
