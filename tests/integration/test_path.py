"""The whole path with real processes and simulated engines: HTTP in, links, legs, tickets, HTTP out."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from proxy.spec import Deadlines, Limits
from tests.live import API_KEY, OPERATOR_KEY, READER_KEY, Live, live, sim_engine, wait_for

PROMPT = "the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("path") / "run"
    limits = Limits(max_body_bytes=1 << 20)
    with live(path, {"prefill-0": sim_engine(), "decode-0": sim_engine()}, limits=limits) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_left(run: Live) -> Iterator[None]:
    """After any test: no request open, no ticket, nothing on the engines."""
    yield
    wait_for(lambda: quiet(run), "requests and tickets to end")
    for worker in ("prefill-0", "decode-0"):
        for figure in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            assert run.metric(figure, worker) == 0, (worker, figure)


def quiet(run: Live) -> bool:
    fleet = run.fleet()
    busy = [w for w in fleet["workers"] if w["running"] or w["waiting"] or w["pinned_blocks"] or w["decodes"]]
    return not (fleet["open_requests"] or fleet["open_tickets"] or busy)


def completion(run: Live, **body: Any) -> httpx.Response:
    with run.client() as client:
        return client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT, "max_tokens": 8, **body})


# ---------------------------------------------------------------- the right answer


def test_a_split_answer_equals_a_whole_one(run: Live) -> None:
    split = completion(run)
    whole = completion(run, n=1, best_of=1, echo=False, prompt=[PROMPT])  # a list of one prompt is not split
    assert split.headers["x-sluice-prefill"] == "prefill-0"
    assert split.headers["x-sluice-decode"] == "decode-0"
    assert "x-sluice-prefill" not in whole.headers
    assert split.json()["choices"][0]["text"] == whole.json()["choices"][0]["text"]


def test_an_operator_names_the_worker_and_nobody_else_does(run: Live) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8}
    with run.client(OPERATOR_KEY) as client:
        answer = client.post("/v1/completions", json=body, headers={"x-sluice-worker": "prefill-0"})
        assert answer.headers["x-sluice-decode"] == "prefill-0" and "x-sluice-prefill" not in answer.headers
        assert answer.json()["choices"] == completion(run).json()["choices"]
        unknown = client.post("/v1/completions", json=body, headers={"x-sluice-worker": "prefill-9"})
        assert unknown.status_code == 404 and "prefill-9" in error_of(unknown)["message"]
    with run.client() as client:
        refused = client.post("/v1/completions", json=body, headers={"x-sluice-worker": "prefill-0"})
    assert refused.status_code == 403 and "operator" in error_of(refused)["message"]


def test_the_openai_client_streams_chat_with_usage(run: Live) -> None:
    client = openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY)
    messages: Any = [{"role": "user", "content": PROMPT}]
    with client:
        whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
        stream = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_several_prompts_and_n_run_whole(run: Live) -> None:
    answer = completion(run, prompt=["one " * 100, "two " * 100], n=1)
    assert len(answer.json()["choices"]) == 2
    assert "x-sluice-prefill" not in answer.headers


def test_an_injected_ticket_has_no_effect(run: Live) -> None:
    stolen = {"do_remote_prefill": True, "remote_engine_id": "x", "remote_host": "10.0.0.1", "remote_port": 1}
    injected = completion(run, kv_transfer_params=stolen, vllm_xargs={"kv_transfer_params": "x"})
    assert injected.status_code == 200
    assert injected.json()["choices"] == completion(run).json()["choices"]
    assert injected.json().get("kv_transfer_params") is None


# ---------------------------------------------------------------- errors


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"model": "tiny", "prompt": "x", "max_tokens": "many"}', 400), (b"\xff", 400)],
)
def test_a_bad_body_is_the_clients_fault(run: Live, body: bytes, status: int) -> None:
    with run.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error_of(answer)


def test_an_unknown_model_is_named_with_the_known_ones(run: Live) -> None:
    answer = completion(run, model="gpt-9")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"
    assert "tiny" in error_of(answer)["message"]


def test_the_models_are_those_of_the_run(run: Live) -> None:
    with run.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 4096)


def test_an_adapter_that_the_engines_have_is_a_model(tmp_path: Any) -> None:
    adapted = sim_engine(served_names=("tiny", "tiny-adapter"))
    with live(tmp_path / "run", {"decode-0": adapted}, pairs=()) as other, other.client() as client:
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny", "tiny-adapter"]
        body = {"model": "tiny-adapter", "prompt": "x", "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize("key", ["no-key-at-all", "sk-wrong"])
def test_no_key_or_a_wrong_one_is_401(run: Live, key: str) -> None:
    with run.client(key) as client:
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert answer.status_code == 401
    error_of(answer)


@pytest.mark.parametrize(("key", "status"), [(API_KEY, 200), ("sk-wrong", 401)])
def test_the_key_may_come_as_anthropics_clients_send_it(run: Live, key: str, status: int) -> None:
    with httpx.Client(base_url=run.url, headers={"x-api-key": key}, timeout=60) as client:
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
    assert answer.status_code == status


def test_a_reader_may_look_and_not_ask(run: Live) -> None:
    with run.client(READER_KEY) as client:
        assert client.get("/fleet").status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}).status_code == 403


def test_a_scrape_is_nobodys_request(run: Live) -> None:
    figures = ("sluice_routes_total", "sluice_ttft_seconds_count", "sluice_request_seconds_count")
    before = [run.metric(figure) for figure in figures]
    with run.client(READER_KEY) as client:
        answer = client.get("/workers/prefill-0/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "vllm:kv_cache_usage_perc" in answer.text
    assert [run.metric(figure) for figure in figures] == before
    assert completion(run, stream=True).status_code == 200
    assert [run.metric(figure) for figure in figures] == [count + 1 for count in before]


def test_the_metrics_of_an_unknown_worker_are_404_and_make_no_series(run: Live) -> None:
    with run.client() as client:
        answer = client.get("/workers/decode-9/metrics")
        assert answer.status_code == 404
        assert "decode-9" in error_of(answer)["message"]
        assert "decode-9" not in client.get("/metrics").text


def test_every_target_that_prometheus_is_told_answers(run: Live) -> None:
    with run.client(READER_KEY) as client:
        answer = client.get("/metrics/targets")
        assert answer.headers["content-type"] == "application/json"
        labels = [target["labels"] for target in answer.json()]
        assert {target for each in answer.json() for target in each["targets"]} == {run.url.removeprefix("http://")}
        assert [label.get("worker") for label in labels] == [None, "decode-0", "prefill-0"]
        for label in labels:
            assert "# TYPE" in client.get(label["__metrics_path__"]).raise_for_status().text


def test_the_overview_shows_a_request_as_it_went(run: Live) -> None:
    with run.client(READER_KEY) as client:
        before = client.get("/overview").json()
        assert completion(run, stream=True).status_code == 200
        after = client.get(f"/overview?since={int(before['time']) - 10}").json()
        assert client.get("/overview?since=yesterday").status_code == 400
    split = [route for route in after["routes"] if route["prefill"]]
    assert [(route["prefill"], route["decode"]) for route in split] == [("prefill-0", "decode-0")]
    assert after["output_tokens"] == before["output_tokens"] + 8
    newest = after["history"]["intervals"][-1]
    assert newest["answered"] and newest["ttft_p50_s"] > 0 and newest["itl_p50_s"] > 0
    assert {worker["worker"] for worker in after["workers"]} == set(after["wanted"])
    assert all(worker["heard_s_ago"] < 5 for worker in after["workers"])
    assert after["controller_silent_s"] is None, "there is none in this test"


def test_health_and_ready_need_no_key(run: Live) -> None:
    with httpx.Client(base_url=run.url) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").json() == {"serving": True, "complete": True}
        assert client.get("/fleet").status_code == 401


def test_a_body_over_the_limit_is_413(run: Live) -> None:
    assert completion(run, prompt="x" * (2 << 20)).status_code == 413


def test_a_prompt_over_the_models_limit_is_the_engines_own_400(run: Live) -> None:
    answer = completion(run, prompt=[5] * 5000)
    assert answer.status_code == 400
    assert "4096" in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/nothing", "/invocations", "/inference/v1/generate", "/v1/load_lora_adapter"])
def test_unknown_and_forbidden_routes_are_404(run: Live, path: str) -> None:
    with run.client() as client:
        assert client.post(path, json={}).status_code == 404


def test_headers_that_steer_the_engine_are_refused(run: Live) -> None:
    with run.client() as client:
        body = {"model": "tiny", "prompt": "x"}
        answer = client.post("/v1/completions", json=body, headers={"x-data-parallel-rank": "1"})
    assert answer.status_code == 400
    assert "x-data-parallel-rank" in error_of(answer)["message"]


def test_the_clients_request_id_is_echoed_and_used_for_nothing(run: Live) -> None:
    with run.client() as client:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
        answer = client.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert "mine" not in answer.json()["id"]


def test_stateful_use_of_responses_is_refused(run: Live) -> None:
    with run.client() as client:
        answer = client.post("/v1/responses", json={"model": "tiny", "input": "x", "previous_response_id": "r"})
    assert answer.status_code == 400


# ---------------------------------------------------------------- clients that leave


def open_stream(run: Live, body: dict[str, Any]) -> socket.socket:
    host, port = run.url.removeprefix("http://").split(":")
    data = json.dumps({"model": "tiny", "prompt": PROMPT, "stream": True, **body}).encode()
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % (API_KEY.encode(), len(data)) + data
    )
    return connection


def test_a_client_that_leaves_in_decode_frees_its_work(run: Live) -> None:
    connection = open_stream(run, {"max_tokens": 3000, "ignore_eos": True})
    assert b"200 OK" in connection.recv(4096)
    connection.close()
    wait_for(lambda: quiet(run), "the request to be cancelled")


def test_a_client_that_leaves_in_prefill_frees_its_work_and_its_ticket(run: Live) -> None:
    for delay_s in (0.0, 0.01, 0.03, 0.05):
        connection = open_stream(run, {"prompt": [7] * 4000, "max_tokens": 3})
        time.sleep(delay_s)
        connection.close()
    wait_for(lambda: quiet(run), "the requests to be cancelled")


# ---------------------------------------------------------------- nobody there, too many


def test_no_worker_ready_is_503_with_retry_after(tmp_path: Any) -> None:
    lonely = Live(tmp_path / "run")
    try:
        lonely.start_proxy({"decode-0": "decode"})
        answer = completion(lonely)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        error_of(answer)
        with lonely.client() as client:
            assert client.get("/workers/decode-0/metrics").status_code == 503
        with httpx.Client(base_url=lonely.url) as client:
            assert client.get("/ready").status_code == 503
            assert client.get("/health").status_code == 200
    finally:
        lonely.stop()


def test_a_full_queue_is_429_and_a_long_wait_503(tmp_path: Any) -> None:
    from proxy.spec import PoolCaps

    pools = {"decode": PoolCaps(max_prefill_tokens=65536, max_decodes=1)}
    changes: dict[str, Any] = {"pools": pools, "pairs": (), "limits": Limits(max_queued=1)}
    with live(tmp_path / "run", {"decode-0": sim_engine()}, deadlines=Deadlines(queue_s=1.0), **changes) as busy:
        first = open_stream(busy, {"max_tokens": 3000, "ignore_eos": True})
        first.recv(4096)
        second = open_stream(busy, {"max_tokens": 1})
        wait_for(lambda: busy.fleet()["queued"] == 1, "the second request to be queued")
        third = completion(busy)
        assert third.status_code == 429
        assert third.headers["retry-after"]
        assert b" 503 " in second.recv(4096).split(b"\r\n")[0]
        leaving = open_stream(busy, {"max_tokens": 1})
        wait_for(lambda: busy.fleet()["queued"] == 1, "the next request to be queued")
        leaving.close()
        wait_for(lambda: busy.fleet()["queued"] == 0, "the client's leaving to be noticed in the queue")
        first.close()
        second.close()
