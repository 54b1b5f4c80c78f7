"""OpenAI's own client and its batch calls, unchanged: files in, batches, files out, cancel, and whose they are."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from launcher.rundir import RunDir
from launcher.scheduler.local import run_processes
from tests.batching import openai_line, text_of
from tests.launching import Launch, nothing_left
from tests.live import wait_for
from workers.spec import write_json

CHAT = "/v1/chat/completions"
KEYS = {"alice": "sk-alice", "bob": "sk-bob"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunDir, str]]:
    """Two users share it."""
    folder = tmp_path_factory.mktemp("api")
    run = RunDir(folder / "runs" / "demo")
    with nothing_left(run), Launch(folder, "+cluster=local", "engine=sim", "run=demo") as launched:
        url = launched.wait_ready()
        path = run.keys / "api_keys.json"
        entries = json.loads(path.read_text())
        for name, key in KEYS.items():
            entries.append({"name": name, "hash": hashlib.sha256(key.encode()).hexdigest(), "class": "user"})
        write_json(path, entries)
        with openai.OpenAI(base_url=url, api_key=KEYS["bob"]) as client:
            wait_for(lambda: answers(client), "the proxy to read the new keys")
        yield run, url
        launched.interrupt()
        launched.wait()


def answers(client: openai.OpenAI) -> bool:
    try:
        client.files.list()
    except (openai.AuthenticationError, openai.InternalServerError):
        return False
    return True


@pytest.fixture
def client(run: tuple[RunDir, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=run[1], api_key=KEYS["alice"], max_retries=2) as opened:
        yield opened


def chat_lines(num: int, **body: Any) -> list[dict[str, Any]]:
    return [openai_line(3 * number + 1, **body) for number in range(num)]


def upload(client: openai.OpenAI, lines: list[Any]) -> str:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch").id


def started(client: openai.OpenAI, lines: list[Any], **more: Any) -> Any:
    file = upload(client, lines)
    return client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h", **more)


def ended(client: openai.OpenAI, id_: str) -> Any:
    found: list[Any] = []

    def over() -> bool:
        found[:] = [client.batches.retrieve(id_)]
        return found[0].status in ("completed", "failed", "cancelled", "expired")

    wait_for(over, f"batch {id_} to end", 60)
    return found[0]


def lines_of(client: openai.OpenAI, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


def test_a_batch_from_file_to_results(client: openai.OpenAI) -> None:
    lines = [*chat_lines(30), "not json", {**openai_line(0)}]  # the last one is for another endpoint
    batch = started(client, lines, metadata={"what": "test"})
    assert batch.object == "batch" and batch.status in ("validating", "in_progress")
    batch = ended(client, batch.id)
    assert batch.status == "completed" and batch.metadata == {"what": "test"} and batch.errors is None
    assert batch.request_counts.model_dump() == {"total": 32, "completed": 30, "failed": 2}
    assert batch.created_at <= batch.in_progress_at <= batch.completed_at <= batch.expires_at
    results = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in results] == [line["custom_id"] for line in lines[:30]]
    chat = client.chat.completions.create(**lines[4]["body"])
    assert text_of(results[4]) == chat.choices[0].message.content
    errors = lines_of(client, batch.error_file_id)
    assert [line["error"]["code"] for line in errors] == ["invalid_json_line", "invalid_url"]
    listed = client.batches.list(limit=1)
    assert listed.data[0].id == batch.id
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


def test_a_batch_is_cancelled_and_what_was_done_is_there(client: openai.OpenAI) -> None:
    batch = started(client, chat_lines(60, max_tokens=400))
    wait_for(lambda: client.batches.retrieve(batch.id).status == "in_progress", "it to begin")
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert batch.status == "cancelled" and batch.request_counts.completed < 60
    assert (batch.output_file_id is None) == (batch.request_counts.completed == 0)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_its_process_is_killed_and_the_batch_goes_on(run: tuple[RunDir, str], client: openai.OpenAI) -> None:
    lines = chat_lines(200)
    batch = started(client, lines)
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0, "some results")
    os.kill(service_of(run[0]), signal.SIGKILL)
    batch = ended(client, batch.id)
    assert batch.status == "completed" and batch.request_counts.completed == 200
    results = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in results] == [line["custom_id"] for line in lines]


def service_of(run: RunDir) -> int:
    def is_service(pid: int) -> bool:
        return b"launcher.batch.service" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")

    return next(pid for pid in run_processes(run) if is_service(pid))


def test_files_are_listed_read_and_deleted(client: openai.OpenAI) -> None:
    content = json.dumps(openai_line(1)).encode() + b"\r\n--not a boundary\r\n\xff\x00"
    file = client.files.create(file=("odd name.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.status) == (len(content), "odd name.jsonl", "processed")
    assert client.files.content(file.id).read() == content
    assert file.id in [found.id for found in client.files.list(purpose="batch")]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_what_belongs_to_another_key_does_not_exist(run: tuple[RunDir, str], client: openai.OpenAI) -> None:
    file = upload(client, chat_lines(1))
    batch = started(client, chat_lines(1))
    with openai.OpenAI(base_url=run[1], api_key=KEYS["bob"], max_retries=0) as other:
        assert file not in [found.id for found in other.files.list()]
        assert not [found for found in other.batches.list() if found.id == batch.id]
        for call in (
            lambda: other.files.content(file),
            lambda: other.files.delete(file),
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
    assert ended(client, batch.id).status == "completed"


def test_what_cannot_run_is_said(client: openai.OpenAI) -> None:
    file: Any = upload(client, chat_lines(1))
    create: Any = client.batches.create
    for wrong in (
        {"input_file_id": file, "endpoint": "/v1/images", "completion_window": "24h"},
        {"input_file_id": file, "endpoint": CHAT, "completion_window": "1h"},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            create(**wrong)
        assert refused.value.param in ("endpoint", "completion_window")
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.files.create(file=("in.jsonl", b"\n"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("in.jsonl", b"{}"), purpose="assistants")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-" + "0" * 24)


def test_nobody_but_the_proxy_reaches_its_process(run: tuple[RunDir, str]) -> None:
    port = json.loads((run[0].keys / "batch_service.json").read_text())["port"]
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEYS["alice"], max_retries=0) as direct,
        pytest.raises(openai.AuthenticationError),
    ):
        direct.files.list(extra_headers={"x-sluice-client": "alice"})
