"""Roles of real engines move while users read: nothing fails, and every answer is what a plain vLLM says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import msgspec
import openai
import pytest

from launcher.control.proxy_links import ProxyLinks
from launcher.planner.roles import Looked, Roles, Sight
from launcher.planner.word import ON, Word, caps_of
from launcher.rundir import RunDir
from proxy.spec import LatencyTargets, PoolCaps
from tests.e2e.conftest import Real
from tests.e2e.test_vllm_answers import prompt, tokens
from tests.live import API_KEY, Live, wait_for
from workers.controller_messages import SetCaps

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

WORKERS = {"prefill-0": "prefill", "decode-0": "decode"}
POOLS = dict.fromkeys(WORKERS.values(), PoolCaps(max_prefill_tokens=65536, max_decodes=16))
PAIRS = (("prefill", "decode"), ("decode", "prefill"))
TIGHT = LatencyTargets(ttft_s=2.0, itl_s=0.0)  # no engine keeps to that: one is kept clear of prompts
NUM_READERS = 3


@pytest.fixture(scope="module")
def run(real: Real) -> Iterator[Live]:
    """The session's engines, each of them able to do both."""
    live, before = real.run, dict(real.run.proxy_changes)
    restart_proxy(live, {**before, "pools": POOLS, "pairs": PAIRS})
    yield live
    restart_proxy(live, before)


def restart_proxy(run: Live, changes: dict[str, object]) -> None:
    run.proxy_changes = changes
    run.kill("proxy")
    run.start_proxy(WORKERS)
    run.wait_ready(240.0)


def caps(run: Live) -> set[tuple[bool, bool]]:
    """Who computes prompts, and who decodes."""
    return {(bool(w["max_prefill_tokens"]), bool(w["max_decodes"])) for w in run.fleet()["workers"]}


async def move(run: Live, links: ProxyLinks) -> None:
    """As the planner and the controller do, until cancelled."""
    core = Roles(TIGHT)
    while True:
        fleet = await asyncio.to_thread(run.fleet)
        sights = [msgspec.convert(worker["pressure"], Sight) for worker in fleet["workers"] if worker["up"]]
        core.apply(Looked(sights, fleet["queued_tokens"]), time.monotonic())
        links.set_caps(caps_of(Word(written_at=0.0, mode=ON, roles=core.roles), WORKERS, POOLS, 0.0))
        await asyncio.sleep(1.0)


async def read(client: openai.OpenAI, first_seed: int, until: asyncio.Event, got: dict[str, list[int]]) -> None:
    while not until.is_set():
        first_seed += 1
        text = prompt(first_seed, 50 + first_seed % 7 * 60)
        got[text] = await asyncio.to_thread(tokens, client, text)


async def asked_while_roles_move(run: Live, ours: openai.OpenAI) -> dict[str, list[int]]:
    links = ProxyLinks(RunDir(run.path), "test", "p0", lambda view: None)
    linked = asyncio.create_task(links.run())
    until, got = asyncio.Event(), dict[str, list[int]]()
    try:
        async with asyncio.TaskGroup() as readers:
            for number in range(NUM_READERS):
                readers.create_task(read(ours, 5000 + 1000 * number, until, got))
            try:
                moving = asyncio.create_task(move(run, links))
                await until_caps(run, {(True, True), (False, True)})
                enough = len(got) + 2 * NUM_READERS
                await asyncio.to_thread(wait_for, lambda: len(got) >= enough, "answers with one kept clear", 240.0)
                moving.cancel()
                links.set_caps(SetCaps(()))
                await until_caps(run, {(True, True)})
            finally:
                until.set()
    finally:
        linked.cancel()
        links.close("the test ends")
    return got


async def until_caps(run: Live, wanted: set[tuple[bool, bool]]) -> None:
    await asyncio.to_thread(wait_for, lambda: caps(run) == wanted, f"caps to be {wanted}", 120.0)


def test_caps_move_under_load_and_every_answer_is_right(run: Live, real: Real) -> None:
    assert caps(run) == {(True, True)}
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY, timeout=120) as ours:
        got = asyncio.run(asked_while_roles_move(run, ours))
    with openai.OpenAI(base_url=f"{real.plain}/v1", api_key="none", timeout=120) as theirs:
        assert got == {text: tokens(theirs, text) for text in got}
    assert len(got) >= 2 * NUM_READERS
