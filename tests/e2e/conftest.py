"""One set of real engines for the whole session: a prefill and a decode worker behind a proxy, and a plain vLLM."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.spec import Deadlines, RoutingSpec
from tests.live import SOURCE, Live, end_tree, live, sim_engine, wait_for
from workers.spec import EngineSpec

BEFORE_THE_OTHERS = ("test_vllm_push.py", "test_vllm_tools_recovery.py")
VLLM_FLAGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 268435456,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 4096,
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
    # A random model would fill an object with blanks for ever.
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
VLLM_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
# Several engines that load and compute on few cores starve all else there for seconds.
PATIENT = Deadlines(node_silence_s=10.0)
ANY_POLICY = RoutingSpec(allow_override=True)
PLAIN_SERVER = """
import sys, uvloop
from vllm.entrypoints.launchers.api_server.entry import run_server
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    uvloop.run(run_server(make_arg_parser(FlexibleArgumentParser()).parse_args()))
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines of a module end before those of the session start."""
    items.sort(key=lambda item: item.path.name not in BEFORE_THE_OTHERS)


def vllm_engine(model: Path, **changes: Any) -> EngineSpec:
    fields: dict[str, Any] = {
        "kind": "vllm",
        "model_path": str(model),
        "block_size": 32,
        "args": VLLM_FLAGS,
        "environment": VLLM_ENVIRONMENT,
    }
    return sim_engine(**{**fields, **changes})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


def write_tiny(folder: Path) -> Path:
    """In a process of its own: it needs torch."""
    path = folder / "tiny"
    subprocess.run([sys.executable, "-m", "workers.engines.tiny_model", str(path)], check=True, cwd=SOURCE)
    return path


@dataclass
class PlainServer:
    """vLLM's own server, on its way up."""

    url: str
    log: Path

    def wait(self) -> None:
        wait_for(lambda: answers(self.url), f"vLLM's own server, see {self.log}", 240.0)


@dataclass
class Real:
    """`plain` is the base URL of vLLM's own server, which knows nothing of us."""

    run: Live
    plain: str
    model: Path


@pytest.fixture(scope="session")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    with plain_server(model, tmp_path_factory.mktemp("plain") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def real(model: Path, plain: PlainServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    engines = {"prefill-0": vllm_engine(model), "decode-0": vllm_engine(model)}
    with live(tmp_path_factory.mktemp("real") / "run", engines, deadlines=PATIENT, routing=ANY_POLICY) as run:
        plain.wait()
        yield Real(run, plain.url, model)


@contextmanager
def plain_server(model: Path, log: Path) -> Iterator[PlainServer]:
    server, url = start_plain(model, log)
    try:
        yield PlainServer(url, log)
    finally:
        end_tree(server)


def start_plain(model: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = log.with_name("plain_vllm.py")
    script.write_text(PLAIN_SERVER)
    flags = ["--model", str(model), "--served-model-name", "tiny", "--max-model-len", "4096", "--block-size", "32"]
    flags += ["--host", "127.0.0.1", "--port", str(port)]
    for name, value in VLLM_FLAGS.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(script), *flags],
            stdout=file,
            stderr=file,
            env={**os.environ, **VLLM_ENVIRONMENT},
            start_new_session=True,
        )
    return process, f"http://127.0.0.1:{port}"


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
