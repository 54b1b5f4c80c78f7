"""Streams that outlive their worker, with real processes and simulated engines: the client sees one answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

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
        if name in run.processes and run.processes[name].poll() is not None:
            run.processes.pop(name)
        if name not in run.processes:
            run.generation = getattr(run, "generation", 0) + 1  # type: ignore[attr-defined]
            run.start_worker(name, sim_engine(args={"num_blocks": 2048, **STEP}), generation=run.generation)  # type: ignore[attr-defined]
    run.wait_ready()
    yield run
    wait_for(lambda: quiet(run), "requests and tickets to end")


def kill_engine(run: Live, worker: str) -> None:
    os.kill(run.engine_pid(worker), signal.SIGKILL)


def kill_agent(run: Live, worker: str) -> None:
    run.kill(worker)


@pytest.mark.parametrize("kill", [kill_engine, kill_agent])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_elsewhere_as_in_one_piece(whole: Live, kind: str, kill: Callable[[Live, str], None]) -> None:
    path, body = KINDS[kind]
    undisturbed = Streaming(whole, path, **(LONG | body)).end()
    streams = [Streaming(whole, path, after=10 + 9 * n, **(LONG | body)) for n in range(6)]
    victim = streams[0].decode
    assert all(stream.begun.wait(30) for stream in streams)
    kill(whole, victim)
    for stream in streams:
        answer = stream.end()
        assert answer.as_in_one_piece == undisturbed.as_in_one_piece
        assert len(answer.ids) == len(answer.created) == 1
        told = {"resumed": 1, "resampled": False} if stream.decode == victim else None
        assert answer.last.get("sluice") == told
