"""The push connector: prefill over two pipeline stages, decode in one, as right and as tidy as by pull.

It comes before the tests that keep two real engines for the session: on two cores all of them would starve each other.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import ANY_POLICY, PATIENT, VLLM_FLAGS, PlainServer, vllm_engine
from tests.e2e.test_vllm_answers import prompt, tokens
from tests.e2e.test_vllm_faults import assert_at_rest
from tests.integration.test_path import open_stream
from tests.live import API_KEY, Live, live, wait_for
from workers.spec import HandoffSpec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LEASE_S = 30.0
PUSH = HandoffSpec(connector="NixlPushConnector", buffer_device="cpu", lease_s=LEASE_S, redeem_s=20.0)
STAGED_FLAGS = {name: value for name, value in VLLM_FLAGS.items() if name != "enforce_eager"}  # eager has no stages


@pytest.fixture(scope="module")
def push(model: Path, plain: PlainServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    engines = {
        "prefill-0": vllm_engine(model, args=STAGED_FLAGS, pipeline_parallel=2, handoff=PUSH),
        "decode-0": vllm_engine(model, handoff=PUSH),
    }
    with live(tmp_path_factory.mktemp("push") / "run", engines, deadlines=PATIENT, routing=ANY_POLICY) as run:
        plain.wait()
        yield run


@pytest.fixture(scope="module")
def ours(push: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{push.url}/v1", api_key=API_KEY, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(plain: PlainServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{plain.url}/v1", api_key="none", timeout=120) as client:
        yield client


def test_the_answers_are_those_of_one_plain_engine(push: Live, ours: openai.OpenAI, theirs: openai.OpenAI) -> None:
    texts = [prompt(seed, 40 + seed * 23) for seed in range(30)]
    received = push.metric("vllm:external_prefix_cache_hits_total", "decode-0")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda text: tokens(ours, text), texts))
        expected = list(pool.map(lambda text: tokens(theirs, text), texts))
    assert got == expected
    assert push.metric("vllm:external_prefix_cache_hits_total", "decode-0") - received > 10_000
    assert_at_rest(push, "prefill-0", "decode-0")


def test_clients_that_leave_at_any_time_leave_no_block_on_either_side(push: Live, ours: openai.OpenAI) -> None:
    """Through prefill, the hand-over and decode; and what comes after them gets its own answer."""
    expected = tokens(ours, prompt(500, 300))
    for seed in range(24):
        connection = open_stream(push, {"prompt": prompt(500 + seed, 600), "max_tokens": 8})
        time.sleep(seed * 0.02)
        connection.close()
    assert tokens(ours, prompt(500, 300)) == expected
    assert_at_rest(push, "prefill-0", "decode-0")


def test_a_lost_prefill_engine_costs_no_answer_and_no_block(
    push: Live, ours: openai.OpenAI, theirs: openai.OpenAI
) -> None:
    """The last test: the engine does not come back. Nobody ever writes what decode waits for."""
    texts = [prompt(700 + seed, 900) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(tokens, ours, text) for text in texts]
        wait_for(lambda: push.fleet()["open_tickets"] > 0, "a hand-over")
        os.kill(push.engine_pid("prefill-0"), signal.SIGKILL)
        got = [answer.result() for answer in answers]
        expected = list(pool.map(lambda text: tokens(theirs, text), texts))
    assert got == expected
    assert_at_rest(push, "decode-0", timeout_s=2 * LEASE_S)
