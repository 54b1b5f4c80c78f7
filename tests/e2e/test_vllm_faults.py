"""Real vLLM engines, left by clients, stopped or killed: work and blocks come free, answers stay right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import Real, vllm_engine
from tests.e2e.test_vllm_answers import prompt, tokens
from tests.integration.test_path import open_stream, quiet
from tests.live import API_KEY, Live, wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PINNED = "vllm:kv_cache_usage_perc"
IN_TURN = {"x-sluice-policy": "round_robin"}
BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@pytest.fixture(autouse=True)
def nothing_left(real: Real) -> Iterator[None]:
    """After any test: no request, no ticket, and by vLLM's own figures no block in use."""
    yield
    assert_at_rest(real.run, "prefill-0", "decode-0")


def assert_at_rest(run: Live, *workers: str, timeout_s: float = 60.0) -> None:
    """No request, no ticket, and by vLLM's own figures no block in use."""
    wait_for(lambda: quiet(run), "requests and tickets to end", timeout_s)
    wait_for(lambda: idle(run, *workers), f"{workers} to be empty by {(PINNED, *BUSY)}", timeout_s)


def idle(run: Live, *workers: str) -> bool:
    """An idle engine's gauges are those of its last step, in which blocks may have been held: if so, it takes more.

    New prompts, long enough for a hand-over where nobody asks what is cheaper, so that each engine has a part in them.
    """
    asked = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        answers = pool.map(lambda turn: ask(run, prompt(hash((asked, turn)), 200 + 100 * turn), **IN_TURN), range(12))
        assert all(answer.is_success for answer in answers)
    wait_for(lambda: quiet(run), "these requests to end")
    while held := sum(run.metric(figure, worker) for figure in (PINNED, *BUSY) for worker in workers):
        if time.monotonic() > asked + 5.0:
            break
        time.sleep(0.05)
    return not held


def busy(run: Live, worker: str) -> float:
    return sum(run.metric(figure, worker) for figure in BUSY)


def test_a_client_that_leaves_in_decode_frees_the_engine(real: Real) -> None:
    connection = open_stream(real.run, {"prompt": prompt(1, 100), "max_tokens": 3000, "ignore_eos": True})
    assert b" 200 " in connection.recv(4096)
    assert busy(real.run, "decode-0") == 1
    connection.close()
    wait_for(lambda: quiet(real.run), "the request to be cancelled", 5.0)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1, 0.3])
def test_a_client_that_leaves_in_prefill_frees_the_engine_and_the_ticket(real: Real, delay_s: float) -> None:
    for seed in range(3):
        connection = open_stream(real.run, {"prompt": prompt(100 + seed, 1800), "max_tokens": 4})
        time.sleep(delay_s)
        connection.close()
    wait_for(lambda: quiet(real.run), "the requests to be cancelled", 5.0)


def test_abandoned_prefills_never_stall_a_prefill_worker(real: Real) -> None:
    """Together they would pin more blocks than the engine has, if any of them stayed."""
    for seed in range(40):
        connection = open_stream(real.run, {"prompt": prompt(200 + seed, 1500), "max_tokens": 4})
        time.sleep(0.05)
        connection.close()
    with openai.OpenAI(base_url=f"{real.run.url}/v1", api_key=API_KEY, timeout=60) as client:
        assert tokens(client, prompt(300, 300))


@pytest.fixture(scope="module")
def victims(real: Real) -> Iterator[Live]:
    """One more worker of each role, to be killed."""
    run = real.run
    for index, name in enumerate(("prefill-1", "decode-1")):
        run.start_worker(name, vllm_engine(real.model), index=10 + index)
    wait_for(lambda: {"prefill-1", "decode-1"} <= proven(run), "the further workers to be proven", 240.0)
    yield run
    for name in ("prefill-1", "decode-1"):
        if name in run.processes:
            run.kill(name)


def proven(run: Live) -> set[str]:
    pairs = run.fleet()["pairs"]
    names = {pair[side] for pair in pairs for side in ("prefill", "decode")}
    return {name for name in names if all(p["proven"] for p in pairs if name in (p["prefill"], p["decode"]))}


def engine_core(run: Live, worker: str) -> psutil.Process:
    (core,) = [
        child
        for child in psutil.Process(run.engine_pid(worker)).children(recursive=True)
        if "EngineCore" in " ".join(child.cmdline())
    ]
    return core


def test_a_prefill_engine_killed_between_its_answer_and_the_read(victims: Live, real: Real) -> None:
    """The decode engines stand still, so the tickets stay unread; then one of their holders dies."""
    texts = [prompt(400 + i, 200) for i in range(6)]
    with openai.OpenAI(base_url=f"{real.plain}/v1", api_key="none", timeout=120) as plain:
        expected = [tokens(plain, text) for text in texts]
    cores = [engine_core(victims, name) for name in ("decode-0", "decode-1")]
    for core in cores:
        core.suspend()
    try:
        with ThreadPoolExecutor(len(texts)) as pool:
            answers = [pool.submit(ask, victims, text) for text in texts]
            wait_for(lambda: victims.fleet()["open_tickets"] == len(texts), "all tickets to be open")
            os.kill(victims.engine_pid("prefill-1"), signal.SIGKILL)
            wait_for(lambda: "prefill-1" not in workers(victims), "its loss to be noticed", 5.0)
            for core in cores:
                core.resume()
            got = [answer.result() for answer in answers]
    finally:
        for core in cores:
            core.resume()
    for answer, right in zip(got, expected, strict=True):
        assert answer.status_code in (200, 500, 502, 503, 504)
        assert answer.status_code != 200 or answer.json()["choices"][0]["token_ids"] == right
    assert [a.status_code for a in got].count(200) >= 3
    assert victims.processes.pop("prefill-1").wait(30) == 1


def ask(run: Live, text: str, **headers: str) -> httpx.Response:
    body = {"model": "tiny", "prompt": text, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    with run.client() as client:
        return client.post("/v1/completions", json=body, headers=headers)


def workers(run: Live) -> set[str]:
    return {worker["worker"] for worker in run.fleet()["workers"]}


def test_the_proxy_killed_and_started_again(real: Real) -> None:
    """Workers register again by themselves, and serving goes on, at the same address."""
    url = real.run.url
    real.run.kill("proxy")
    real.run.start_proxy({"prefill-0": "prefill", "decode-0": "decode"})
    real.run.wait_ready()
    assert real.run.url == url
    assert ask(real.run, prompt(600, 100)).status_code == 200


def test_nothing_of_a_users_prompt_is_in_the_logs(real: Real) -> None:
    marker = "a-secret-that-must-not-be-logged "
    assert ask(real.run, marker * 20).status_code == 200
    for path in Path(real.run.path, "logs").iterdir():
        assert marker.strip() not in path.read_text(errors="replace")
        assert API_KEY not in path.read_text(errors="replace")
