"""Prompts between real processes: what a host tells of one is what the proxy knows of the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proxy.spec import RoutingSpec
from tests.live import Live, live, sim_engine, wait_for

WORDS = "the quick brown fox jumps over the lazy dog "
NUM_SESSIONS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("prompts") / "run"
    workers = {f"decode-{number}": sim_engine() for number in range(3)}
    with live(path, workers, routing=RoutingSpec(policy="kv")) as started:
        yield started


def chat(client: httpx.Client, messages: list[dict[str, str]], **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": messages, "max_tokens": 4, "temperature": 0, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def hits(run: Live) -> float:
    return sum(run.metric("vllm:prefix_cache_hits_total", f"decode-{number}") for number in range(3))


def test_each_turn_of_a_conversation_goes_where_the_one_before_was(run: Live) -> None:
    """Sampling fields may change from turn to turn. What is cached is worth more than what a busy machine adds."""
    sessions = [[{"role": "user", "content": f"{number} {WORDS * 200}"}] for number in range(NUM_SESSIONS)]
    places: list[list[str]] = [[] for _ in sessions]
    with run.client() as client:
        for turn in range(4):
            for messages, place in zip(sessions, places, strict=True):
                answer = chat(client, messages, seed=turn)
                place.append(answer.headers["x-sluice-decode"])
                messages.append(answer.json()["choices"][0]["message"])
                messages.append({"role": "user", "content": f"and {turn}? {WORDS}"})
    assert all(len(set(place)) == 1 for place in places)


def test_token_ids_go_where_they_were_and_nothing_is_told_of_them(run: Live) -> None:
    with run.client() as client:
        for number in range(NUM_SESSIONS):
            ids = [number, *range(1000, 3000)]
            places = set()
            for more in range(3):
                body = {"model": "tiny", "prompt": [*ids, *range(more * 16)], "max_tokens": 2, "seed": more}
                answer = client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                places.add(answer.headers["x-sluice-decode"])
            assert len(places) == 1


def test_bodies_without_a_key_are_served_all_the_same(run: Live) -> None:
    with run.client() as client:
        for fields in ({"truncate_prompt_tokens": 5}, {"prompt": ["one", "two"]}, {"prompt": [1 << 20]}):
            answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1, **fields})
            assert answer.status_code in (200, 400), answer.text
    wait_for(lambda: not run.fleet()["open_requests"], "requests to end")
