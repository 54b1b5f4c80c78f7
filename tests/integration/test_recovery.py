"""Streams that outlive their worker, with real processes and simulated engines: the client sees one answer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.integration.test_path import quiet
from tests.live import Live, live, sim_engine, wait_for
from tests.streaming import Streaming

WORDS = "the quick brown fox jumps over the lazy dog "
STEP = {"timing": {"prefill_ms": [0, 0, 1], "decode_ms": [0, 0, 10]}}
WORKERS = ("prefill-0", "decode-0", "decode-1")
LONG: dict[str, Any] = {"max_tokens": 150, "temperature": 0, "stream_options": {"include_usage": True}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": WORDS * 10}]}),
    "a completion": ("/v1/completions", {"prompt": WORDS * 10}),
    "a short prompt": ("/v1/completions", {"prompt": "once"}),
    "token ids": ("/v1/completions", {"prompt": list(range(300, 400))}),
    "a stop string that is always about to come": ("/v1/completions", {"prompt": WORDS * 10, "stop": ["zzzzzzzz"]}),
    "without usage": ("/v1/completions", {"prompt": WORDS * 10, "stream_options": None}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("recovery") / "run"
    engine = sim_engine(args={"num_blocks": 2048, **STEP})
    with live(path, dict.fromkeys(WORKERS, engine)) as started:
        yield started


@pytest.fixture
def whole(run: Live) -> Iterator[Live]:
    """All workers are there; afterwards nothing is left of any request."""
    for name in WORKERS:
        restore(run, name)
    run.wait_ready()
    yield run
    wait_for(lambda: quiet(run), "requests and tickets to end")


def restore(run: Live, worker: str, **changes: Any) -> None:
    """A new life of a worker that has ended."""
    process = run.processes.get(worker)
    if process is None or process.poll() is not None:
        generation = len(list((run.path / "specs").glob(f"{worker}.*.json")))
        engine = sim_engine(args={"num_blocks": 2048, **STEP})
        run.start_worker(worker, engine, generation=generation, index=WORKERS.index(worker), **changes)


def kill_engine(run: Live, worker: str) -> None:
    os.kill(run.engine_pid(worker), signal.SIGKILL)


def kill_agent(run: Live, worker: str) -> None:
    run.kill(worker)


def stop_engine(run: Live, worker: str) -> None:
    """As one that hangs: the process is there and does nothing."""
    os.kill(run.engine_pid(worker), signal.SIGSTOP)


def stop_agent(run: Live, worker: str) -> None:
    """As a node that cannot be reached for a while, its engine included: what it has sent arrives late."""
    pids = (run.processes[worker].pid, run.engine_pid(worker))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def resume() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    threading.Timer(4.0, resume).start()


def drain(run: Live, worker: str) -> None:
    """Its time for that is too short for its streams."""
    run.processes[worker].send_signal(signal.SIGTERM)


def go_on_elsewhere(run: Live, kind: str, strike: Callable[[Live, str], None], **more: Any) -> None:
    path, asked = KINDS[kind]
    body = LONG | asked | more
    undisturbed = Streaming(run, path, **body).end()
    streams = [Streaming(run, path, after=10 + 9 * n, **body) for n in range(6)]
    victim = streams[0].decode
    assert all(stream.begun.wait(30) for stream in streams)
    strike(run, victim)
    for stream in streams:
        answer = stream.end()
        assert answer.as_in_one_piece == undisturbed.as_in_one_piece
        assert len(answer.ids) == len(answer.created) == 1
        told = {"resumed": 1, "resampled": False} if stream.decode == victim else None
        assert answer.last.get("sluice") == told


@pytest.mark.parametrize("kill", [kill_engine, kill_agent])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_elsewhere_as_in_one_piece(whole: Live, kind: str, kill: Callable[[Live, str], None]) -> None:
    go_on_elsewhere(whole, kind, kill)


def test_an_engine_that_hangs_loses_no_stream_and_is_ended(whole: Live) -> None:
    go_on_elsewhere(whole, "a chat", stop_engine, max_tokens=300)
    (ended,) = [
        name for name in WORKERS if whole.processes[name].poll() is not None or "stood still" in whole.log(name)
    ]
    assert whole.processes[ended].wait(30) == 1


def test_a_worker_that_is_back_late_begins_anew(whole: Live) -> None:
    before = {w["worker"]: w["generation"] for w in whole.fleet()["workers"]}
    go_on_elsewhere(whole, "a completion", stop_agent)
    whole.wait_ready()
    assert {w["worker"]: w["generation"] for w in whole.fleet()["workers"]} == before


def test_streams_leave_a_worker_whose_time_to_drain_is_over(whole: Live) -> None:
    for name in ("decode-0", "decode-1"):
        whole.kill(name)
        restore(whole, name, drain_timeout_s=0.3)
    whole.wait_ready()
    go_on_elsewhere(whole, "a chat", drain)
    codes = [whole.processes[name].poll() for name in WORKERS]
    wait_for(lambda: 0 in [whole.processes[name].poll() for name in WORKERS], f"one to have ended as asked: {codes}")


def test_a_stream_that_nobody_can_take_up_waits_for_a_worker(whole: Live) -> None:
    path, asked = KINDS["a completion"]
    undisturbed = Streaming(whole, path, **(LONG | asked)).end()
    stream = Streaming(whole, path, after=10, **(LONG | asked))
    assert stream.begun.wait(30)
    for name in WORKERS:
        whole.kill(name)
    for name in WORKERS:
        restore(whole, name)
    assert stream.end().as_in_one_piece == undisturbed.as_in_one_piece


def test_a_sampled_stream_says_that_it_goes_on_otherwise(whole: Live) -> None:
    stream = Streaming(whole, after=10, prompt=WORDS * 10, max_tokens=150, seed=3)
    kill_engine(whole, stream.decode)
    answer = stream.end()
    assert answer.done and answer.last["sluice"] == {"resumed": 1, "resampled": True}


def test_a_stream_survives_several_losses(whole: Live) -> None:
    path, asked = KINDS["a chat"]
    body = LONG | asked | {"max_tokens": 400}
    undisturbed = Streaming(whole, path, **body).end()
    stream = Streaming(whole, path, after=10, **body)
    first = stream.decode
    second = "decode-0" if first == "decode-1" else "decode-1"
    kill_engine(whole, first)
    assert whole.processes[first].wait(30) == 1
    restore(whole, first)
    whole.wait_ready()
    kill_engine(whole, second)
    answer = stream.end()
    assert answer.as_in_one_piece == undisturbed.as_in_one_piece
    assert answer.last["sluice"] == {"resumed": 2, "resampled": False}


def test_what_does_not_stream_is_asked_again(whole: Live) -> None:
    body = {"model": "tiny", "prompt": WORDS * 10, "max_tokens": 150, "temperature": 0}

    def ask() -> httpx.Response:
        with whole.client() as client:
            return client.post("/v1/completions", json=body)

    undisturbed = ask()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(ask) for _ in range(4)]
        wait_for(lambda: whole.fleet()["open_requests"] == 4, "the requests to be under way")
        kill_engine(whole, "decode-1")
        for answer in answers:
            assert answer.result().json()["choices"] == undisturbed.json()["choices"]
            assert answer.result().headers["x-sluice-decode"] == "decode-0"
