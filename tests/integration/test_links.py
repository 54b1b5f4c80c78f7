"""Who may join a run, and what happens when a party of it dies: real sockets, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import zmq

from tests.integration.test_path import PROMPT, completion, open_stream, quiet
from tests.live import API_KEY, Live, live, sim_engine, wait_for
from tests.unit.proxies import register
from workers.controller_messages import Jobs
from workers.links.link import Link
from workers.links.wire import decode_to_worker, identity
from workers.links.zmq_loop import CurveKeys, read_keys
from workers.message import Message
from workers.protocol import Part


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    engines = {"prefill-0": sim_engine(), "decode-0": sim_engine()}
    with live(tmp_path_factory.mktemp("links") / "run", engines) as started:
        yield started


def knock(run: Live, keys: CurveKeys, *messages: Message) -> tuple[str, bool]:
    """Open a link and say something. Returns (reason, final) of its loss."""
    (file,) = run.proxy_files()

    async def attempt() -> tuple[str, bool]:
        lost: asyncio.Future[tuple[str, bool]] = asyncio.get_running_loop().create_future()
        context: zmq.Context[Any] = zmq.Context()
        link = Link(
            context,
            file.addresses[0],
            identity=identity("decode-9", 0, os.urandom(4).hex()),
            server_public=file.public_key,
            keys=keys,
            hello=messages[0],
            decode=decode_to_worker,
            on_message=lambda message: None,
            on_lost=lambda reason, final: lost.set_result((reason, final)),
            silence_s=60.0,
        )
        for message in messages[1:]:
            link.send(message)
        try:
            return await asyncio.wait_for(lost, 10)
        finally:
            link.close("done")
            context.destroy(linger=0)

    return asyncio.run(attempt())


def test_a_strangers_key_never_gets_in_and_is_seen(run: Live) -> None:
    public, secret = zmq.curve_keypair()
    stranger = CurveKeys(public.decode(), secret.decode())
    reason, _ = knock(run, stranger, register("decode-9", Part.AGENT))
    assert "does not take this connection" in reason
    assert any("not on the allow-list" in refusal for refusal in run.fleet()["refusals"])
    assert {w["worker"] for w in run.fleet()["workers"]} == {"prefill-0", "decode-0"}


def test_another_protocol_is_refused_with_the_reason(run: Live) -> None:
    keys = read_keys(str(run.path), "worker")
    reason, final = knock(run, keys, register("decode-9", Part.AGENT, pool="decode", protocol=9))
    assert final
    assert "protocol 9" in reason
    assert any("protocol 9" in refusal for refusal in run.fleet()["refusals"])


def test_who_does_not_register_first_is_told_to(run: Live) -> None:
    reason, final = knock(run, read_keys(str(run.path), "worker"), Jobs(()))
    assert not final
    assert "register" in reason


def test_a_worker_cannot_speak_as_the_controller(run: Live) -> None:
    keys = read_keys(str(run.path), "worker")
    reason, final = knock(run, keys, register("decode-9", Part.AGENT, pool="decode"), Jobs(()))
    assert final
    assert "Jobs" in reason
    wait_for(lambda: "decode-9" not in {w["worker"] for w in run.fleet()["workers"]}, "it to be gone")


def test_a_second_worker_with_a_used_identity_is_refused_and_ends_with_the_reason(run: Live) -> None:
    first = run.processes.pop("decode-0")
    run.start_worker("decode-0", sim_engine())
    second = run.processes["decode-0"]
    run.processes["decode-0"] = first
    assert second.wait(30) == 1
    assert "registered already" in run.log("decode-0")
    assert any("registered already" in refusal for refusal in run.fleet()["refusals"])
    assert completion(run).status_code == 200


def test_a_killed_engine_ends_what_cannot_go_on_elsewhere_with_a_clear_error(run: Live) -> None:
    run.start_worker("decode-1", sim_engine(), index=5)
    wait_for(lambda: sum(pair["proven"] for pair in run.fleet()["pairs"]) == 2, "decode-1 to be proven")
    streams = [open_stream(run, {"prompt": [PROMPT, "and another prompt"], "max_tokens": 3000}) for _ in range(4)]
    heads = [stream.recv(2048) for stream in streams]
    os.kill(run.engine_pid("decode-1"), signal.SIGKILL)
    killed_at = time.monotonic()
    hit = [s for s, head in zip(streams, heads, strict=True) if b"x-sluice-decode: decode-1" in head]
    assert 0 < len(hit) < 4
    for stream in hit:
        told = read_to_end(stream)
        assert b'"error"' in told and b"decode-1" in told and b"[DONE]" not in told
    print(f"told {time.monotonic() - killed_at:.2f} s after the kill")
    assert completion(run).headers["x-sluice-decode"] == "decode-0"
    for stream in streams:
        stream.close()
    assert run.processes.pop("decode-1").wait(30) == 1
    wait_for(lambda: quiet(run), "the other streams to be cancelled")


def read_to_end(stream: Any) -> bytes:
    stream.settimeout(20)
    data = b""
    while piece := stream.recv(65536):
        data += piece
    return data


def test_a_killed_agent_takes_its_engine_along(run: Live) -> None:
    run.start_worker("decode-2", sim_engine(), index=6)
    wait_for(lambda: sum(pair["proven"] for pair in run.fleet()["pairs"]) == 2, "decode-2 to be proven")
    engine = run.engine_pid("decode-2")
    run.kill("decode-2")
    wait_for(lambda: not Path(f"/proc/{engine}").exists(), "its engine process to end")
    wait_for(lambda: "decode-2" not in {w["worker"] for w in run.fleet()["workers"]}, "its record to go")


def test_a_killed_proxy_comes_back_at_its_address_and_the_workers_by_themselves(run: Live) -> None:
    url = run.url
    connection = open_stream(run, {"max_tokens": 3000})
    connection.recv(4096)
    run.kill("proxy")
    connection.close()
    run.start_proxy({"prefill-0": "prefill", "decode-0": "decode"})
    run.wait_ready()
    assert run.url == url
    assert completion(run).status_code == 200
    wait_for(lambda: quiet(run), "the orphaned stream to be cancelled", 30)
    assert run.metric("vllm:num_requests_running", "decode-0") == 0


def test_a_worker_that_stands_still_leaves_and_comes_back(run: Live) -> None:
    agent = run.processes["decode-0"]
    agent.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: "decode-0" not in {w["worker"] for w in run.fleet()["workers"]}, "its silence to be noticed")
        assert completion(run).headers["x-sluice-decode"] == "prefill-0", "it stands in"
    finally:
        agent.send_signal(signal.SIGCONT)
    run.wait_ready()
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY) as client:
        assert client.completions.create(model="tiny", prompt="x " * 200, max_tokens=2).choices[0].text


def test_keys_and_folders_are_private(run: Live) -> None:
    for path in (run.path / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (run.path / "proxies").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    with httpx.Client(base_url=run.url) as client:
        assert client.post("/v1/completions", json={}).status_code == 401
