"""Tools that others measure and ask with, as they come from the package index, on simulated engines.

They are pinned in `tests/tools.txt` and live in an environment of their own, which is made once and then kept in the
user's cache. It sees what the tests' own environment has, so that torch is not downloaded a second time.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.benching import processes_of
from tests.integration.test_path import quiet
from tests.live import API_KEY, SOURCE, Live, live, sim_engine, wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]  # they are large, and the first test installs them

PINS = SOURCE / "tests" / "tools.txt"
NUM_REQUESTS, NUM_TOKENS = 20, 16
LANGCHAIN = """
import asyncio, json, sys
from langchain_openai import ChatOpenAI
model = ChatOpenAI(model="tiny", base_url=sys.argv[1], max_tokens=12, max_retries=0, stream_usage=True)
whole = model.invoke("Hello")
chunks = list(model.stream("Hello"))
async def gathered():
    return [chunk.content async for chunk in model.astream("Hello")]
texts = [whole.content, "".join(c.content for c in chunks), "".join(asyncio.run(gathered()))]
texts += [answer.content for answer in model.batch(["Hello"] * 4)]
usage = [whole.usage_metadata, sum(chunks[1:], chunks[0]).usage_metadata]
print(json.dumps({"texts": texts, "tokens": [u["output_tokens"] for u in usage]}))
"""
LITELLM = """
import asyncio, json, os, sys
import litellm
asked = {"model": "openai/tiny", "api_base": sys.argv[1], "api_key": os.environ["OPENAI_API_KEY"], "max_tokens": 12}
asked |= {"messages": [{"role": "user", "content": "Hello"}], "num_retries": 0}
def joined(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
async def gathered():
    return [chunk async for chunk in await litellm.acompletion(stream=True, **asked)]
whole = litellm.completion(**asked)
chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **asked))
texts = [whole.choices[0].message.content, joined(chunks), joined(asyncio.run(gathered()))]
print(json.dumps({"texts": texts, "tokens": [whole.usage.completion_tokens, chunks[-1].usage.completion_tokens]}))
"""


def install(folder: Path) -> None:
    """Again where the pins or the packages that it leans on have changed."""
    wanted = "\n".join([PINS.read_text(), sys.prefix, *sorted(f"{d.name}=={d.version}" for d in distributions())])
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--requirement", str(PINS)], check=True)
    stamp.write_text(wanted)


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of their programs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "sluice-tools.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        install(cache / "sluice-tools")
    return cache / "sluice-tools" / "bin"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("tools") / "run"
    with live(path, {"prefill-0": sim_engine(), "decode-0": sim_engine()}) as started:
        yield started


@pytest.fixture
def use(run: Live, programs: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """use(program, arguments): its output. It leaves no process, and no request with the proxy."""

    def used(program: str, *arguments: str) -> str:
        told = {"OPENAI_API_KEY": API_KEY, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        told["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks for one on the Internet
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
        command = [str(programs / program), *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=clean | told, capture_output=True, text=True)
        assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
        return ended.stdout

    yield used
    wait_for(lambda: quiet(run), "requests and tickets to end")
    wait_for(lambda: processes_of(tmp_path) == [], "its processes to end")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tiny"
    subprocess.run([sys.executable, "-m", "workers.engines.tiny_model", str(path)], check=True, cwd=SOURCE)
    return str(path)


def test_guidellm(run: Live, use: Callable[..., str], tokenizer: str, tmp_path: Path) -> None:
    use(
        *("guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={run.url},model=tiny,api_key={API_KEY}"),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=200,output_tokens={NUM_TOKENS}"),
        *("--output", f"kind=json,path={tmp_path / 'result.json'}"),
    )
    [benchmark] = json.loads((tmp_path / "result.json").read_text())["benchmarks"]
    metrics: dict[str, Any] = benchmark["metrics"]
    assert metrics["request_totals"] == {
        "successful": NUM_REQUESTS,
        "errored": 0,
        "incomplete": 0,
        "total": NUM_REQUESTS,
    }
    assert metrics["output_token_count"]["successful"]["total_sum"] == NUM_REQUESTS * NUM_TOKENS


def test_aiperf(run: Live, use: Callable[..., str], tokenizer: str, tmp_path: Path) -> None:
    use(
        *("aiperf", "profile", "--model", "tiny", "--url", run.url, "--api-key", API_KEY),
        *("--endpoint-type", "chat", "--streaming", "--tokenizer", tokenizer, "--use-server-token-count"),
        *("--isl", "200", "--osl", str(NUM_TOKENS), "--request-count", str(NUM_REQUESTS), "--concurrency", "4"),
        *("--num-dataset-entries", str(NUM_REQUESTS), "--random-seed", "1", "--workers-max", "1"),
        *("--ui", "none", "--no-gpu-telemetry", "--artifact-dir", str(tmp_path / "out")),
    )
    result = json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text())
    assert result["request_count"]["avg"] == NUM_REQUESTS
    assert result["error_summary"] == [] and result["is_complete"] and not result["was_cancelled"]
    assert result["total_osl"]["avg"] == NUM_REQUESTS * NUM_TOKENS


@pytest.mark.parametrize("script", [LANGCHAIN, LITELLM], ids=["langchain", "litellm"])
def test_openai_clients_of_frameworks(run: Live, use: Callable[..., str], script: str) -> None:
    answer = json.loads(use("python", "-c", script, f"{run.url}/v1"))
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY) as client:
        asked = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=12
        )
    assert len(answer["texts"]) >= 3
    assert set(answer["texts"]) == {asked.choices[0].message.content}
    assert answer["tokens"] == [12, 12]
