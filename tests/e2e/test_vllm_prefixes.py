"""Conversations on real vLLM go where their KV lies, by the engines' own counters, whatever is restarted meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from proxy.spec import RoutingSpec
from tests.e2e.conftest import VLLM_ENVIRONMENT, Real, vllm_engine
from tests.e2e.test_vllm_answers import prompt, tokens
from tests.live import API_KEY, OPERATOR_KEY, SOURCE, Live, wait_for
from workers.spec import EngineSpec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BLOCK_SIZE = 32
WORKERS = ("prefill-0", "decode-0", "decode-1")
HITS = "vllm:prefix_cache_hits_total"
NUM_TURNS = 4
NUM_WORDS = 1500  # of a conversation's beginning: to compute it anew must take longer than chance decides
LOSSY_VLLM = "[vllm.general_plugins]\nlossy = tests.e2e.lossy_kv_events:register\n"
Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def run(real: Real) -> Iterator[Live]:
    """The session's engines, with one more that decodes, behind a proxy that routes by what they hold."""
    live, before = real.run, dict(real.run.proxy_changes)
    live.proxy_changes = {**before, "routing": RoutingSpec(policy="kv")}
    restart_proxy(live)
    live.start_worker("decode-1", lossy_engine(real), index=20)
    live.wait_ready(240.0)
    warm_up(live)
    yield live
    live.kill("decode-1")
    live.proxy_changes = before
    live.kill("proxy")
    live.start_proxy({"prefill-0": "prefill", "decode-0": "decode"})
    live.wait_ready()


def restart_proxy(run: Live) -> None:
    run.kill("proxy")
    run.start_proxy({name: name.rsplit("-", 1)[0] for name in WORKERS})


def lossy_engine(real: Real) -> EngineSpec:
    """Its KV events are lost while the file `lost` is there."""
    plugin = real.run.path / "lossy-1.dist-info"
    plugin.mkdir(exist_ok=True)
    (plugin / "entry_points.txt").write_text(LOSSY_VLLM)
    changes = {"PYTHONPATH": f"{SOURCE}:{plugin.parent}", "LOST_KV_EVENTS": str(real.run.path / "lost")}
    return vllm_engine(real.model, environment={**VLLM_ENVIRONMENT, **changes})


def warm_up(run: Live) -> None:
    """A worker is as fast as it was seen to be, and an engine's first prompts are slow."""
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY, timeout=120) as client, ThreadPoolExecutor(4) as pool:
        sizes = [100, 1000, 500, 1500] * 6
        list(pool.map(lambda job: tokens(client, prompt(9000 + job[0], job[1])), enumerate(sizes)))


@pytest.fixture
def ours(run: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(real: Real) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.plain}/v1", api_key="none", timeout=120) as client:
        yield client


class Conversation:
    """It asks us and a plain vLLM the same, and counts what of its prompts was in a cache."""

    def __init__(self, run: Live, theirs: openai.OpenAI, seed: int) -> None:
        self._run = run
        self._theirs = theirs
        self._seed = seed
        self._messages: Messages = [{"role": "system", "content": prompt(seed, NUM_WORDS)}]
        self.num_turns = self.num_blocks = 0  # full blocks of the last prompt

    def turn(self, ours: openai.OpenAI) -> float:
        """The part of the previous prompt's full blocks that the engines' counters show as hits."""
        self.num_turns += 1
        self._messages.append({"role": "user", "content": prompt(1000 * self._seed + self.num_turns, 40)})
        before = self._hits()
        answer = self._ask(ours)
        hits = max(now - then for now, then in zip(self._hits(), before, strict=True))
        text = answer.choices[0].message.content
        assert text == self._ask(self._theirs).choices[0].message.content
        self._messages.append({"role": "assistant", "content": text})
        expected = self.num_blocks * BLOCK_SIZE
        self.num_blocks = answer.usage.prompt_tokens // BLOCK_SIZE
        return hits / expected if expected else 0.0

    def _ask(self, client: openai.OpenAI) -> Any:
        return client.chat.completions.create(
            model="tiny",
            messages=self._messages,  # type: ignore[arg-type]
            max_tokens=8,
            temperature=0,
        )

    def _hits(self) -> list[float]:
        return [self._run.metric(HITS, worker) for worker in WORKERS if worker in self._run.processes]


def blocks(run: Live) -> dict[str, int]:
    """By worker, as the index has them."""
    digests = {worker["worker"]: worker["digests"] for worker in run.fleet()["workers"]}
    return {worker: told[0]["blocks"] for worker, told in digests.items() if told and told[0]["whole"]}


def test_from_the_second_turn_on_the_conversation_is_in_the_cache(
    run: Live, ours: openai.OpenAI, theirs: openai.OpenAI
) -> None:
    conversations = [Conversation(run, theirs, seed) for seed in range(1, 5)]
    for number in range(NUM_TURNS):
        parts = [conversation.turn(ours) for conversation in conversations]
        print(f"turn {number + 1}: {[round(part, 3) for part in parts]}")
        assert number == 0 or min(parts) >= 0.9
    assert run.metric("sluice_digest_resyncs_total") == 0


def test_after_events_are_lost(run: Live, ours: openai.OpenAI, theirs: openai.OpenAI) -> None:
    """The engine's listener asks again for what it has not heard, though nothing follows that would show the gap."""
    lost, before = run.path / "lost", blocks(run)["decode-1"]
    conversations = [Conversation(run, theirs, seed) for seed in range(11, 14)]
    there = {"x-sluice-worker": "decode-1"}
    lost.touch()
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=OPERATOR_KEY, default_headers=there, timeout=120) as client:
        for conversation in conversations:
            conversation.turn(client)
    num_lost, ended_at = len(lost.read_text().split()), time.monotonic()
    assert num_lost >= len(conversations)
    lost.unlink()
    wanted = before + sum(conversation.num_blocks for conversation in conversations)
    wait_for(lambda: blocks(run)["decode-1"] >= wanted, "what was lost to be in the index")
    print(f"{num_lost} batches lost, the index is whole {time.monotonic() - ended_at:.2f} s later")
    assert min(conversation.turn(ours) for conversation in conversations) >= 0.9


def test_after_the_proxy_is_restarted(run: Live, ours: openai.OpenAI, theirs: openai.OpenAI) -> None:
    """It knows at once what the engines hold, and of a conversation after one turn."""
    conversation = Conversation(run, theirs, 21)
    conversation.turn(ours)
    ids = [7 + number % 50 for number in range(100 * BLOCK_SIZE)]
    asked: Any = {"model": "tiny", "max_tokens": 2, "temperature": 0}
    ours.completions.create(prompt=ids, **asked)
    before = blocks(run)
    restart_proxy(run)
    run.wait_ready()
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY, timeout=120) as client:
        up_at = time.monotonic()
        # Not to the block: what full engines gave up for the last prompt may not have been told when it was counted.
        wait_for(lambda: all(blocks(run).get(worker, 0) >= 0.9 * held for worker, held in before.items()), "the index")
        print(f"the index is back {time.monotonic() - up_at:.2f} s after the proxy is ready")
        warm_up(run)  # the new proxy has yet to learn how fast each is
        hits = [run.metric(HITS, worker) for worker in WORKERS]
        client.completions.create(prompt=ids, **asked)
        found = max(run.metric(HITS, worker) - then for worker, then in zip(WORKERS, hits, strict=True))
        assert found >= 0.9 * len(ids)
        conversation.turn(client)
        assert conversation.turn(client) >= 0.9


def test_after_a_worker_is_restarted(run: Live, theirs: openai.OpenAI, real: Real) -> None:
    """What it held is gone from the index with it; its successor starts from nothing, and conversations go on."""
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY, timeout=120) as client:
        conversations = [Conversation(run, theirs, seed) for seed in range(31, 35)]
        for conversation in conversations:
            conversation.turn(client)
        before = max(blocks(run).values())
        run.kill("decode-1")
        killed_at = time.monotonic()
        wait_for(lambda: "decode-1" not in blocks(run), "its loss to be noticed", 10.0)
        print(f"the index is without it {time.monotonic() - killed_at:.2f} s later")
        run.start_worker("decode-1", vllm_engine(real.model), index=21, generation=1)
        run.wait_ready(240.0)
        assert blocks(run)["decode-1"] < 0.1 * before, "but for the proofs it holds nothing"
        for conversation in conversations:
            conversation.turn(client)
        assert min(conversation.turn(client) for conversation in conversations) >= 0.9
