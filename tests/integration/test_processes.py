"""A proxy of two processes: one port, one truth, and processes that die or are exchanged under load."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from proxy.spec import PoolCaps, RoutingSpec
from tests.integration.test_path import PROMPT, open_stream, quiet
from tests.live import API_KEY, Live, live, sim_engine, wait_for
from workers.spec import write_json

NUM_USERS = 16
BODY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "stream": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    engines = {"prefill-0": sim_engine(), "decode-0": sim_engine()}
    with live(tmp_path_factory.mktemp("processes") / "run", engines, processes=2) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_left(run: Live) -> Iterator[None]:
    """After any test: two processes that see everything, no request, no ticket."""
    yield
    wait_for(lambda: len(run.proxy_files()) == 2 and quiet(run), "requests and tickets to end")


def shown(run: Live) -> dict[str, dict[str, Any]]:
    """What each process shows of itself, whichever is asked."""
    return {process["process"]: process for process in run.fleet()["processes"]}


def pids(run: Live) -> dict[str, int]:
    return {file.id: file.pid for file in run.proxy_files()}


def text_of(answer: str) -> str:
    """Of a whole stream."""
    assert answer.endswith("data: [DONE]\n\n") and '"error"' not in answer, answer[-300:]
    return "".join(re.findall(r'"text":"(.*?)"', answer))


class Users:
    """Each asks, reads the stream, asks again on the same connection; whoever gets no whole answer is noted."""

    def __init__(self, run: Live) -> None:
        self.run = run
        self.texts: list[str] = []
        self.faults: list[str] = []
        self.enough = asyncio.Event()

    async def __aenter__(self) -> Users:
        self._tasks = [asyncio.ensure_future(self._ask_again_and_again()) for _ in range(NUM_USERS)]
        await self.answered(2 * NUM_USERS)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.enough.set()
        await asyncio.gather(*self._tasks)

    async def answered(self, number: int) -> None:
        """So many more."""
        wanted = len(self.texts) + number
        async with asyncio.timeout(60):
            while len(self.texts) < wanted:  # noqa: ASYNC110 (each user notes its own)
                await asyncio.sleep(0.05)

    async def _ask_again_and_again(self) -> None:
        headers = {"authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=self.run.url, headers=headers, timeout=60) as client:
            while not self.enough.is_set():
                try:
                    answer = await client.post("/v1/completions", json=BODY)
                    self.texts.append(text_of(answer.text))
                except (httpx.HTTPError, AssertionError) as fault:
                    self.faults.append(f"{type(fault).__name__}: {fault}")


async def until(condition: Any, what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what)


def test_both_take_connections_on_one_port_and_give_the_same_answers(run: Live) -> None:
    async def scenario() -> None:
        async with Users(run) as users:
            await until(lambda: all(p["open_requests"] for p in shown(run).values()), "requests on both")
            busy = shown(run)
        assert set(busy) == {"p0.0", "p0.1"} and {p["pid"] for p in busy.values()} == set(pids(run).values())
        assert all(p["takes_connections"] and p["connections"] > 0 for p in busy.values())
        assert all(p["workers"] == 2 and p["memory_mib"] > 10 for p in busy.values())
        assert all(p["open_requests"] >= p["open_streams"] for p in busy.values())
        assert users.faults == [] and len(set(users.texts)) == 1

    answered = run.metric("sluice_requests_total")
    asyncio.run(scenario())
    with run.client() as client:
        whole = client.post("/v1/completions", json={**BODY, "stream": False, "echo": False, "prompt": [PROMPT]})
        streamed = client.post("/v1/completions", json=BODY)
    assert whole.json()["choices"][0]["text"] == text_of(streamed.text).encode().decode("unicode_escape")
    assert run.metric("sluice_requests_total") > answered + 2 * NUM_USERS


def test_a_killed_process_breaks_its_own_streams_only_and_comes_back(run: Live) -> None:
    streams = [open_stream(run, {"max_tokens": 1500, "ignore_eos": True}) for _ in range(NUM_USERS)]
    wait_for(lambda: sum(p["open_requests"] for p in shown(run).values()) == NUM_USERS, "all streams to be open")
    before, counted = shown(run), run.metric("sluice_chunks_total")
    victim = next(id for id, process in before.items() if process["open_requests"])
    os.kill(pids(run)[victim], signal.SIGKILL)
    for _ in range(10):  # at once, on new connections: also to the socket of the one that is dead
        with run.client() as client:
            assert text_of(client.post("/v1/completions", json={**BODY, "max_tokens": 2}).text)
    wait_for(lambda: len(shown(run)) == 2 and victim not in shown(run), "another in its place")
    wait_for(lambda: all(p["takes_connections"] for p in shown(run).values()), "it to see all workers")
    assert sum(map(is_broken, streams)) == before[victim]["open_requests"]
    for stream in streams:
        stream.close()
    assert run.metric("sluice_chunks_total") >= counted, "what it had counted stays counted"


def test_one_that_hangs_is_replaced_and_the_other_answers_for_it(run: Live) -> None:
    """Stopped, it holds its share of new connections: they wait until the other has taken over its socket."""
    before = shown(run)
    victim = next(iter(before))
    os.kill(before[victim]["pid"], signal.SIGSTOP)
    for _ in range(12):  # some wait in its socket
        with run.client() as client:
            assert text_of(client.post("/v1/completions", json={**BODY, "max_tokens": 2}).text)
    wait_for(lambda: victim not in pids(run) and len(pids(run)) == 2, "another in its place")
    wait_for(lambda: all(p["takes_connections"] for p in shown(run).values()), "it to see all workers")
    assert f"killing {victim}: it hangs" in run.log("proxy")


def is_broken(stream: socket.socket) -> bool:
    """Its connection has ended; one that goes on has nothing more to say for a moment, or always has."""
    stream.setblocking(False)
    try:
        return any(not stream.recv(1 << 20) for _ in range(100))
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_hand_over_under_load_loses_nothing(run: Live) -> None:
    before = set(pids(run))
    long_body = {"max_tokens": 400, "ignore_eos": True}

    async def scenario() -> None:
        async with Users(run) as users:
            streams = [await asyncio.to_thread(open_stream, run, long_body) for _ in range(4)]
            idle = httpx.AsyncClient(base_url=run.url, headers={"authorization": f"Bearer {API_KEY}"}, timeout=60)
            async with idle:
                await asyncio.gather(*(idle.get("/v1/models") for _ in range(4)))  # and keeps its connections
                run.processes["proxy"].send_signal(signal.SIGHUP)
                await until(lambda: not before & set(pids(run)), "all processes to be exchanged")
                await users.answered(NUM_USERS)
                answers = await asyncio.gather(*(idle.get("/v1/models") for _ in range(4)))
                assert {answer.status_code for answer in answers} == {200}
            wholes = await asyncio.gather(*(asyncio.to_thread(read_whole, stream) for stream in streams))
        assert users.faults == []
        assert len(set(users.texts)) == 1
        assert len(set(wholes)) == 1

    asyncio.run(scenario())
    assert len(pids(run)) == 2
    assert run.metric("sluice_open_tickets") == 0


def read_whole(stream: Any) -> bytes:
    """The text of a stream on a raw socket."""
    data = b""
    with stream:
        stream.settimeout(60)
        while not data.endswith(b"0\r\n\r\n"):
            piece = stream.recv(1 << 16)
            assert piece, data[-300:]
            data += piece
    assert b"data: [DONE]" in data and b'"error"' not in data
    return b"".join(re.findall(rb'"text":"(.*?)"', data))


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    pools = {"decode": PoolCaps(max_prefill_tokens=1 << 20, max_decodes=4)}
    path = tmp_path_factory.mktemp("capped") / "run"
    with live(path, {"decode-0": sim_engine()}, processes=2, pools=pools, pairs=()) as started:
        yield started


def test_caps_hold_over_both_processes(capped: Live) -> None:
    """Four places, asked for by both: those in excess wait."""
    first = [open_stream(capped, {"max_tokens": 3000, "ignore_eos": True}) for _ in range(4)]
    wait_for(lambda: bool(capped.fleet()["workers"][0]["running"] == 4), "four to run")
    more = [open_stream(capped, {"max_tokens": 2}) for _ in range(12)]
    wait_for(lambda: bool(capped.fleet()["queued"] == 12), "the others to wait")
    assert all(process["open_requests"] for process in shown(capped).values())
    assert capped.fleet()["workers"][0]["decodes"] == 4
    for stream in first:
        stream.close()
    for stream in more:
        stream.settimeout(30)
        assert b" 200 OK" in stream.recv(1 << 16)
        stream.close()


@pytest.fixture
def informed(tmp_path: Path) -> Iterator[Live]:
    workers = {f"decode-{number}": sim_engine() for number in range(2)}
    with live(tmp_path / "run", workers, processes=2, pairs=(), routing=RoutingSpec(policy="kv")) as started:
        yield started


def ask_anew(run: Live, key: str = API_KEY) -> httpx.Response:
    """On a connection of its own: any of the processes may get it."""
    with run.client(key) as client:
        body = {"model": "tiny", "prompt": list(range(640)), "max_tokens": 1}
        return client.post("/v1/completions", json=body, headers={"x-sluice-explain": "1"})


def test_what_is_cached_and_which_keys_are_valid_all_processes_know(informed: Live) -> None:
    place = ask_anew(informed).headers["x-sluice-decode"]

    def each_finds_it() -> bool:
        found = set()
        for _ in range(16):
            headers = ask_anew(informed).headers
            if headers["x-sluice-decode"] == place and headers["x-sluice-route-cached-tokens"] != "0":
                found.add(headers["x-sluice-request-id"].partition("-")[0])
        return len(found) == 2

    wait_for(each_finds_it, "both to know where it lies")
    path = informed.path / "keys" / "api_keys.json"
    keys = msgspec.json.decode(path.read_bytes())
    new = {"name": "new", "hash": hashlib.sha256(b"sk-new").hexdigest(), "class": "user"}
    write_json(path, [key for key in keys if key["name"] != "test"] + [new])

    def each_has_read_it() -> bool:
        statuses = {(ask_anew(informed, "sk-new").status_code, ask_anew(informed).status_code) for _ in range(16)}
        return statuses == {(200, 401)}

    wait_for(each_has_read_it, "the new table to hold for both")


def test_when_it_stops_what_runs_is_finished_and_nothing_is_left(capped: Live) -> None:
    stream = open_stream(capped, {"max_tokens": 20})
    assert b" 200 OK" in stream.recv(1 << 10)
    children = list(pids(capped).values())
    proxy = capped.processes.pop("proxy")
    proxy.send_signal(signal.SIGTERM)
    assert read_whole(stream)
    assert proxy.wait(30) == 0
    assert not list((capped.path / "proxies").iterdir())
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
