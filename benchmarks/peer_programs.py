"""Other relays as they come from the package index: how each is installed, and how it is started.

Each lives in an environment of its own, made once below a folder that outlives the benchmark. Owns the pinned
versions and the command lines; knows nothing of what is measured. Each is set up at its cheapest: round robin, its
fastest tokenizer, and as quiet as it can be (Dynamo's frontend cannot be told not to log every request).
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.floor import MODEL
from workers.engines.tiny_model import write_model

STAMP = "installed"
INSTALL_TIMEOUT_S = 600


class PeerFault(Exception):
    """A peer cannot be measured; the message says why, in one line."""


class Surroundings(NamedTuple):
    """What a peer is told of where it runs. URLs are of the engines that speak HTTP: those that serve whole
    requests or decode, and the one that prefills."""

    folder: Path  # its own, gone after the benchmark
    port: int
    other_port: int
    whole: tuple[str, ...]
    prefill: str
    step_ms: float


Commands = list[list[str]]  # the relay's, then those of engines that it brings along


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    package: str
    commands: Callable[[str, Surroundings], Commands]  # from the case
    requirements: tuple[str, ...] = ()  # in place of those that the package declares
    environment: Callable[[Path], dict[str, str]] = lambda folder: {}
    own_engines: bool = False
    closing_chunks: int = 0

    @property
    def version(self) -> str:
        return self.package.partition("==")[2]


def _vllm_router(case: str, around: Surroundings) -> Commands:
    if case == "split":
        behind = ["--vllm-pd-disaggregation", "--kv-connector", "nixl"]
        behind += ["--prefill", around.prefill, "--decode", around.whole[0]]
    else:
        behind = ["--worker-urls", *around.whole]
    return [["vllm-router", *_routing(around), "--log-level", "warning", *behind]]


def _sglang_router(case: str, around: Surroundings) -> Commands:
    if case == "split":
        behind = ["--pd-disaggregation", "--prefill", around.prefill, "--decode", around.whole[0]]
    else:
        behind = ["--worker-urls", *around.whole]
    return [["sglang-router", "launch", *_routing(around), "--log-level", "warn", *behind]]


def _routing(around: Surroundings) -> list[str]:
    """The cheapest policy that they have."""
    listening = ["--host", "127.0.0.1", "--port", str(around.port)]
    metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(around.other_port)]
    return [*listening, *metrics, "--policy", "round_robin", "--worker-startup-check-interval", "1"]


FASTEST_TOKENIZER = ("--tokenizer", "fastokens")
_ROUND_ROBIN = ("--router-mode", "round-robin", *FASTEST_TOKENIZER)


def _dynamo(case: str, around: Surroundings, router: Sequence[str] = _ROUND_ROBIN) -> Commands:
    """Its frontend has engines of its own kind only: mockers, here without a limit but the length of a step."""
    discovery = ["--discovery-backend", "file"]
    listening = ["--http-host", "127.0.0.1", "--http-port", str(around.port)]
    model, timing = _model(around.folder.parent / "model"), _timing(around.folder, around.step_ms)
    serving = ["--model-path", str(model), "--model-name", MODEL, "--planner-profile-data", str(timing)]
    sizes = ["--block-size", "16", "--max-num-batched-tokens", str(1 << 30), "--num-gpu-blocks-override", str(1 << 20)]
    mocker = ["python", "-m", "dynamo.mocker", *discovery, *serving, *sizes, "--kv-transfer-bandwidth", "0"]
    roles = [["--num-workers", "2"]]
    if case == "split":
        prefill = ["--disaggregation-mode", "prefill", "--bootstrap-ports", str(around.other_port)]
        roles = [prefill, ["--disaggregation-mode", "decode"]]
    frontend = ["python", "-m", "dynamo.frontend", *discovery, *listening, *router]
    return [frontend, *([*mocker, *role] for role in roles)]


def _model(folder: Path) -> Path:
    """It tokenizes, so it needs a model's files, and one for long prompts."""
    try:
        write_model(folder)
    except ImportError as missing:
        raise PeerFault(f"it needs a model's files, and {missing.name} is not here to write them") from None
    config = folder / "config.json"
    values = msgspec.json.decode(config.read_bytes())
    config.write_bytes(msgspec.json.encode(values | {"max_position_embeddings": 1 << 20}))
    return folder


def _timing(folder: Path, step_ms: float) -> Path:
    """Every step takes as long, a prefill no time."""
    path = folder / "timing.npz"
    sizes = np.array([1.0, 1e4, 1e8])
    np.savez(
        path,
        prefill_isl=sizes,
        prefill_ttft_ms=np.full(3, 0.01),
        decode_active_kv_tokens=sizes,
        decode_context_length=sizes,
        decode_itl=np.full((3, 3), step_ms),
    )
    return path


def _dynamo_environment(folder: Path) -> dict[str, str]:
    hosts = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST")
    told = {"HOME": str(folder), "DYN_FILE_KV": str(folder / "discovery"), "DYN_LOG": "error", "HF_HUB_OFFLINE": "1"}
    return told | dict.fromkeys(hosts, "127.0.0.1")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("sglang-router", "sglang-router==0.3.2", _sglang_router),
        Peer("vllm-router", "vllm-router==0.1.17", _vllm_router),
        Peer(
            "dynamo",
            "ai-dynamo==1.6.1",
            _dynamo,
            # What it declares includes a package that is only on a vendor's own index, and that is not needed here.
            requirements=(
                "ai-dynamo-runtime==1.6.1",
                *("aiohttp", "msgspec", "numpy", "packaging", "prometheus-client", "pydantic<=2.13.5", "pyyaml"),
                *("pyzmq", "tqdm", "typing-extensions", "uvloop", "zstandard"),
            ),
            environment=_dynamo_environment,
            own_engines=True,
            closing_chunks=1,
        ),
    )
}

_KV_ROUTER = ("--router-mode", "kv", "--kv-cache-block-size", "16")
# Dynamo's frontend as it knows where the KV lies: it tokenizes each prompt and listens to the engines' events.
KV_PEERS = {
    "dynamo": replace(PEERS["dynamo"], commands=lambda case, around: _dynamo(case, around, _KV_ROUTER)),
    "dynamo_fastest": replace(
        PEERS["dynamo"], commands=lambda case, around: _dynamo(case, around, (*_KV_ROUTER, *FASTEST_TOKENIZER))
    ),
}


def install(peer: Peer, venvs: Path) -> Path:
    """Its folder of programs. Raises PeerFault."""
    folder = venvs / peer.name
    stamp = folder / STAMP
    wanted = "\n".join((peer.package, *peer.requirements))
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet"]
        if peer.requirements:
            _run([*pip, *peer.requirements])
            pip.append("--no-deps")
        _run([*pip, peer.package])
        stamp.write_text(wanted)
    return folder / "bin"


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PeerFault(f"not installed within {INSTALL_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as failed:
        raise PeerFault(f"not installed: {failed.stderr.strip().splitlines()[-1]}") from None


def free_ports() -> tuple[int, int]:
    """These programs do not say which port they took, so they are given ones that are free now."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]
