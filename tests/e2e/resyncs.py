"""Conversations on real vLLM, and what makes the proxy's index of their KV wrong: how soon it is right again.

Every case here fails unless conversations go where their KV lies after it, by the engines' own counters, and unless
every text is that of a plain vLLM. It returns how many seconds it took, and owns no bound on them.
`python -m tests.e2e.resyncs FOLDER REPEATS` does all of them with engines of its own: a line of JSON for each.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from proxy.spec import RoutingSpec
from tests.e2e.conftest import PATIENT, VLLM_ENVIRONMENT, Real, plain_server, vllm_engine, write_tiny
from tests.e2e.test_vllm_answers import prompt, tokens
from tests.live import API_KEY, OPERATOR_KEY, SOURCE, live, wait_for
from workers.spec import EngineSpec

BLOCK_SIZE = 32
OTHERS, LOSSY = ("prefill-0", "decode-0"), "decode-1"
WORKERS = (*OTHERS, LOSSY)
NUM_TURNS = 4
NUM_WORDS = 1500  # of a conversation's beginning: to compute it anew must take longer than chance decides
NUM_CONVERSATIONS = 3
HITS = "vllm:prefix_cache_hits_total"
CACHED = "x-sluice-route-cached-tokens"
LOST, GONE = "lost", "gone"  # on the way, and from the engine's memory too
LOSSY_VLLM = "[vllm.general_plugins]\nlossy = tests.e2e.lossy_kv_events:register\n"
FILLING_TOKENS = 1000
FILLING, MORE = range(72), range(72, 80)  # the first are more than a cache holds; each a batch of events of its own
Seconds = dict[str, float]  # by what happened


class Routed:
    """Real engines behind a proxy that routes by what they hold; the KV events of one are lost when we say so."""

    def __init__(self, real: Real, theirs: openai.OpenAI) -> None:
        self.run = real.run
        self.theirs = theirs
        self._model = real.model
        self._generation = -1

    def restart_proxy(self) -> None:
        self.run.kill("proxy")
        self.run.start_proxy({name: name.rsplit("-", 1)[0] for name in WORKERS})

    def start_lossy(self) -> None:
        self._generation += 1
        index = 20 + self._generation  # ports of its own
        self.run.start_worker(LOSSY, self._lossy_engine(), index=index, generation=self._generation)
        self.run.wait_ready(240.0)

    def _lossy_engine(self) -> EngineSpec:
        plugin = self.run.path / "lossy-1.dist-info"
        plugin.mkdir(exist_ok=True)
        (plugin / "entry_points.txt").write_text(LOSSY_VLLM)
        files = {f"{what.upper()}_KV_EVENTS": str(self.run.path / what) for what in (LOST, GONE)}
        changes = {"PYTHONPATH": f"{SOURCE}:{plugin.parent}", **files}
        return vllm_engine(self._model, environment={**VLLM_ENVIRONMENT, **changes})

    @contextmanager
    def losing(self, what: str) -> Iterator[Callable[[], list[float]]]:
        """Batches of the lossy one: what is yielded tells when each was lost."""
        path = self.run.path / what
        path.touch()
        try:
            yield lambda: [float(line) for line in path.read_text().splitlines()]
        finally:
            path.unlink()

    # ------------------------------------------------------------ asking

    @contextmanager
    def client(self, worker: str | None = None) -> Iterator[openai.OpenAI]:
        """Of a user, or of an operator who says where requests go."""
        key, headers = (API_KEY, {}) if worker is None else (OPERATOR_KEY, {"x-sluice-worker": worker})
        headers |= {"x-sluice-explain": "1"}
        with openai.OpenAI(base_url=f"{self.run.url}/v1", api_key=key, default_headers=headers, timeout=120) as client:
            yield client

    def warm_up(self) -> None:
        """A worker is as fast as it was seen to be, and an engine's first prompts are slow."""
        with self.client() as client, ThreadPoolExecutor(4) as pool:
            sizes = [100, 1000, 500, 1500] * 6
            list(pool.map(lambda job: tokens(client, prompt(9000 + job[0], job[1])), enumerate(sizes)))

    def conversations(self, seed: int, number: int = NUM_CONVERSATIONS) -> list[Conversation]:
        return [Conversation(self, 10 * seed + each) for each in range(number)]

    def fill(self, seed: int, worker: str, numbers: Iterable[int]) -> None:
        """With all of FILLING everything else leaves its cache."""
        with self.client(worker) as client:
            for number in numbers:
                ids = [100 + seed, 100 + number] + [7 + place % 50 for place in range(FILLING_TOKENS)]
                client.completions.create(model="tiny", prompt=ids, max_tokens=1)

    # ------------------------------------------------------------ looking

    def digests(self) -> dict[str, dict[str, Any]]:
        """By worker, of those that the index has all of."""
        told = {worker["worker"]: worker["digests"] for worker in self.run.fleet()["workers"]}
        return {worker: digests[0] for worker, digests in told.items() if digests and digests[0]["whole"]}

    def blocks(self) -> dict[str, int]:
        return {worker: digest["blocks"] for worker, digest in self.digests().items()}

    def hits(self) -> dict[str, float]:
        """Tokens that engines have found in their caches so far, by their own count."""
        return {worker: self.run.metric(HITS, worker) for worker in WORKERS if worker in self.run.processes}


class Conversation:
    """It asks us and a plain vLLM the same, and counts what of its prompts was in a cache."""

    def __init__(self, routed: Routed, seed: int) -> None:
        self._routed = routed
        self._seed = seed
        self._messages: list[Any] = [{"role": "system", "content": prompt(seed, NUM_WORDS)}]
        self.num_turns = self.num_blocks = 0  # full blocks of the last prompt
        self.num_expected = self.num_found = 0  # of its tokens, in a cache: by the router and by the engine

    def turn(self, ours: openai.OpenAI) -> float:
        """The part of the previous prompt's full blocks that the engines' counters show as hits."""
        self.num_turns += 1
        self._messages.append({"role": "user", "content": prompt(1000 * self._seed + self.num_turns, 40)})
        before = self._routed.hits()
        headers, answer = self._ask(ours)
        self.num_expected = int(headers.get(CACHED, 0))
        self.num_found = int(max(now - before[worker] for worker, now in self._routed.hits().items()))
        text = answer.choices[0].message.content
        assert text == self._ask(self._routed.theirs)[1].choices[0].message.content
        self._messages.append({"role": "assistant", "content": text})
        before_it, self.num_blocks = self.num_blocks, answer.usage.prompt_tokens // BLOCK_SIZE
        return self.num_found / (before_it * BLOCK_SIZE) if before_it else 0.0

    def _ask(self, client: openai.OpenAI) -> tuple[Any, Any]:
        said = client.chat.completions.with_raw_response.create(
            model="tiny", messages=self._messages, max_tokens=8, temperature=0
        )
        return said.headers, said.parse()


def go_on(conversations: Sequence[Conversation], client: openai.OpenAI) -> None:
    """Each where its last turn was."""
    assert min(conversation.turn(client) for conversation in conversations) >= 0.9


@contextmanager
def routed(real: Real) -> Iterator[Routed]:
    """The same engines, with one more that decodes. What there was before comes back."""
    run, before = real.run, dict(real.run.proxy_changes)
    run.proxy_changes = {**before, "routing": RoutingSpec(policy="kv")}
    with openai.OpenAI(base_url=f"{real.plain}/v1", api_key="none", timeout=120) as theirs:
        ours = Routed(real, theirs)
        ours.restart_proxy()
        ours.start_lossy()
        ours.warm_up()
        yield ours
    run.kill(LOSSY)
    run.proxy_changes = before
    run.kill("proxy")
    run.start_proxy({name: name.rsplit("-", 1)[0] for name in OTHERS})
    run.wait_ready()


# ---------------------------------------------------------------- what happens


def events_lost(ours: Routed, seed: int) -> Seconds:
    """The engine's listener asks again for what it has not heard, though nothing follows that would show the gap."""
    before, conversations = ours.blocks()[LOSSY], ours.conversations(seed)
    with ours.losing(LOST) as lost, ours.client(LOSSY) as there:
        for conversation in conversations:
            conversation.turn(there)
        times = lost()
    assert len(times) >= len(conversations)
    wanted = before + sum(conversation.num_blocks for conversation in conversations)
    wait_for(lambda: ours.blocks()[LOSSY] >= wanted, "what was lost to be in the index")
    took_s = time.time() - times[-1]
    with ours.client() as client:
        go_on(conversations, client)
    return {"events_lost": took_s}


def events_gone(ours: Routed, seed: int) -> Seconds:
    """Conversations leave a cache and nobody hears of it; the first gap that is noticed takes them from the index. What
    stays there is not known any more either: it is computed anew, but once at most."""
    left, stays = ours.conversations(seed), Conversation(ours, 10 * seed + NUM_CONVERSATIONS)
    with ours.client(LOSSY) as there:
        for conversation in left:
            conversation.turn(there)
        epoch = ours.digests()[LOSSY]["epoch"]
        with ours.losing(GONE) as gone, ThreadPoolExecutor(1) as pool:
            filling = pool.submit(ours.fill, seed, LOSSY, FILLING)
            wait_for(lambda: ours.digests()[LOSSY]["epoch"] > epoch, "the gap to be noticed")
            noticed_at = time.time()
            filling.result()
            stays.turn(there)
            ours.fill(seed, LOSSY, MORE)
            times = gone()
    with ours.client() as client:
        for conversation in left:
            conversation.turn(client)
            assert conversation.num_expected <= conversation.num_found
        go_on(left, client)
        assert sum(stays.turn(client) < 0.9 for _ in range(NUM_TURNS)) <= 1
    return {"events_gone": noticed_at - times[1]}  # the first alone could still be asked for


def proxy_restarted(ours: Routed, seed: int) -> Seconds:
    """It knows at once what the engines hold, and of a conversation after one turn."""
    (conversation,) = ours.conversations(seed, 1)
    ids = [7 + number % 50 for number in range(100 * BLOCK_SIZE)]
    asked: Any = {"model": "tiny", "prompt": [100 + seed, *ids], "max_tokens": 2, "temperature": 0}
    with ours.client() as client:
        conversation.turn(client)
        client.completions.create(**asked)
    before = ours.blocks()
    ours.restart_proxy()
    ours.run.wait_ready()
    up_at = time.monotonic()
    # Not to the block: what full engines gave up for the last prompt may not have been told when it was counted.
    wait_for(lambda: all(ours.blocks().get(worker, 0) >= 0.9 * held for worker, held in before.items()), "the index")
    took_s = time.monotonic() - up_at
    ours.warm_up()  # the new proxy has yet to learn how fast each is
    with ours.client() as client:
        hits = ours.hits()
        client.completions.create(**asked)
        assert max(now - hits[worker] for worker, now in ours.hits().items()) >= 0.9 * len(ids)
        conversation.turn(client)
        go_on([conversation], client)
    return {"proxy_restarted": took_s}


def worker_restarted(ours: Routed, seed: int) -> Seconds:
    """What it held is gone from the index with it; its successor starts from nothing, and conversations go on."""
    conversations = ours.conversations(seed, NUM_CONVERSATIONS + 1)
    with ours.client() as client:
        for conversation in conversations:
            conversation.turn(client)
        before = max(ours.blocks().values())
        ours.run.kill(LOSSY)
        killed_at = time.monotonic()
        wait_for(lambda: LOSSY not in ours.blocks(), "its loss to be noticed", 10.0)
        lost_s = time.monotonic() - killed_at
        ours.start_lossy()
        ready_at = time.monotonic()
        wait_for(lambda: LOSSY in ours.blocks(), "what its successor holds")
        back_s = time.monotonic() - ready_at
        assert ours.blocks()[LOSSY] < 0.1 * before, "but for the proofs it holds nothing"
        for conversation in conversations:
            conversation.turn(client)
        go_on(conversations, client)
    return {"worker_lost": lost_s, "worker_back": back_s}


CASES = (events_lost, events_gone, proxy_restarted, worker_restarted)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # not without ending what was started
    folder, num_repeats = Path(sys.argv[1]), int(sys.argv[2])
    model = write_tiny(folder)
    engine = vllm_engine(model)
    with (
        plain_server(model, folder / "plain.log") as plain,
        live(folder / "run", dict.fromkeys(OTHERS, engine), deadlines=PATIENT) as run,
    ):
        plain.wait()
        with routed(Real(run, plain.url, model)) as ours:
            for repeat in range(num_repeats):
                for number, case in enumerate(CASES):
                    print(json.dumps(case(ours, 1 + repeat * len(CASES) + number)), flush=True)


if __name__ == "__main__":
    main()
