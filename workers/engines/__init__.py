"""The engines a host can run, by name. An unknown name lists the known ones.

An engine is an ASGI app plus the few things below HTTP that the host needs of it. Adapters import
their engine inside the function that starts it: this package imports neither torch nor vllm.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from workers.host.calls import Call
from workers.protocol import Capabilities
from workers.spec import EngineSpec

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where this process of the engine stands: known only inside the job."""

    worker: str
    generation: int
    session: str  # random per start: an engine id or address is never used twice
    address: str  # of this node on the chosen interface
    interface: str | None  # its name, where the configuration gives one
    handoff_port: int  # NIXL side channel, rank 0's
    head_address: str  # rank 0's, for the engine's own process group
    head_port: int
    node_rank: int
    num_nodes: int
    local_dir: str  # node-local, 0700, short path
    cache_dir: str  # of this version of the engine on this device
    model_path: str  # the spec's, or where this node has its copy


class Engine(Protocol):
    """A started engine. Its generate calls report to the `workers.host.calls.Call` of their context."""

    app: AsgiApp
    version: str
    capabilities: Capabilities

    def kv_tokens_received(self) -> int:
        """Prompt tokens whose KV came from another worker since start, by the engine's own counter."""

    def kv_used(self) -> float:
        """The part of the KV cache that requests hold, 0 to 1, by the engine's own gauge of its last step."""

    def alive(self) -> bool:
        """False once the engine's own processes are beyond recovery."""

    async def respond(self) -> None:
        """Returns between two steps of the engine; one that hangs in a step never does."""

    async def cancel(self, call: Call) -> None:
        """Nobody waits for this call: when this returns, nothing of it runs, is queued or is pinned."""

    async def release(self, params: bytes) -> None:
        """Free the blocks that a ticket's `params` describe at their holder."""


class EngineStart(Protocol):
    """Loads the model and serves until the context ends; calls `imported` between the two."""

    def __call__(
        self, spec: EngineSpec, placement: Placement, imported: Callable[[], None] = ..., /
    ) -> AbstractAsyncContextManager[Engine]: ...


def _vllm() -> EngineStart:
    from workers.engines.vllm.engine import start

    return start


def _sim() -> EngineStart:
    from workers.engines.sim.engine import start

    return start


ENGINES: dict[str, Callable[[], EngineStart]] = {"vllm": _vllm, "sim": _sim}
# Those that load a model and hand KV over with a library, which the preflight looks for.
REAL_ENGINES = frozenset({"vllm"})


def stages_told(kind: str) -> Callable[[str], dict[str, float]]:
    """What an engine's output tells of its start, line by line: parts of the load and their seconds."""
    if kind == "vllm":
        from workers.engines.vllm.log import stages_told
    else:
        from workers.engines.sim.log import stages_told
    return stages_told


def engine_start(kind: str) -> EngineStart:
    """Raises ValueError naming the known engines."""
    if kind not in ENGINES:
        raise ValueError(f"unknown engine {kind!r}; known: {', '.join(sorted(ENGINES))}")
    return ENGINES[kind]()
