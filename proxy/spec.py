"""What one proxy runs: frozen, complete, written by the launcher as JSON.

Owns the shape only. Keys are read from the run folder's `keys/`, never from here.
"""

from __future__ import annotations

import msgspec


class PoolCaps(msgspec.Struct, frozen=True, kw_only=True):
    """A role is these two numbers per worker; the router filters by them."""

    max_prefill_tokens: int  # prompt tokens in flight for prefill legs and whole requests; 0: none
    max_decodes: int  # concurrent decode legs and whole requests; 0: none


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing that a client controls grows without one of these. Each process has them for itself."""

    max_connections: int = 16384
    max_header_bytes: int = 32 << 10
    max_body_bytes: int = 32 << 20
    max_total_body_bytes: int = 512 << 20  # of all requests that are not answered yet
    max_total_resumable_bytes: int = 512 << 20  # bodies of streams that could go on elsewhere; beyond, they cannot
    max_queued: int = 1024
    max_prompt_trace_bytes: int = 256 << 20  # what is remembered of prompts, for policies that look at caches
    stream_buffer_bytes: int = 1 << 20  # unsent bytes of one slow client before it is cut off
    max_total_unsent_bytes: int = 512 << 20  # of all clients; the slowest are cut off first
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """Every wait has one."""

    queue_s: float = 30.0
    prefill_s: float = 120.0
    first_token_s: float = 120.0
    answer_s: float = 1800.0  # of an answer that does not stream: nothing is heard of it before its end
    between_tokens_s: float = 60.0
    node_silence_s: float = 2.5  # of agent and host alike: their node is gone. One alone may be starved on it


class LatencyTargets(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer should keep to; where both cannot be had they are weighed by these."""

    ttft_s: float = 2.0
    itl_s: float = 0.05


class RoutingSpec(msgspec.Struct, frozen=True, kw_only=True):
    policy: str = "least_loaded"
    whole_below_tokens: int = 64  # shorter prompts are not worth a hand-over
    bytes_per_token: float = 4.0  # prompt bytes stand for tokens until an engine has counted them
    pinned_fraction: float = 0.5  # of a prefill worker's blocks that open tickets may hold
    targets: LatencyTargets = LatencyTargets()
    allow_override: bool = False  # a request may name another policy


class ProxySpec(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    run_dir: str
    proxy: str  # id; its file is proxies/<id>.json
    code: str
    models: tuple[str, ...]
    interface: str | None
    http_port: int  # 0: any free one, kept over restarts
    tls_cert: str | None
    tls_key: str | None
    pools: dict[str, PoolCaps]
    pairs: tuple[tuple[str, str], ...]  # (prefill pool, decode pool) that may exchange KV
    workers: dict[str, str]  # worker -> pool: what the run wants, for `ready`
    redeem_s: float
    limits: Limits
    deadlines: Deadlines
    routing: RoutingSpec
    processes: int = 1
    max_loading: int = 0  # workers that read their model at once; 0: nobody asks for a turn
