"""Who is there: every worker of the run as this proxy sees it, and what it has been given to do.

Pure: one mutator, `apply(event, now) -> effects`; no clock, socket or log. A worker's record is made of
two links: its agent's decides the phase, its host's carries the data. It takes requests only while both
are up, the phase is ready, and a real completion has proven it (`proven`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.spec import PoolCaps, ProxySpec
from workers.lifecycle import NEXT, READY
from workers.protocol import OLDEST_PROTOCOL, PROTOCOL, Capabilities, Load, Part, Register

# (worker, generation): two generations of a worker may live at once.
Key = tuple[str, int]
# A peer of the link layer: its socket identity.
Peer = bytes
# What must have been proven: KV from the first to the second; without a first, a whole completion.
Pair = tuple[Key | None, Key]

MAX_REFUSALS = 32


@dataclass(slots=True)
class Worker:
    """One life of one worker, and the work that this proxy has given it."""

    key: Key
    pool: str
    role: str
    incarnation: str
    caps: PoolCaps
    agent: Peer | None = None
    host: Peer | None = None
    phase: str = ""
    detail: str = ""
    node: str = ""
    job: str = ""
    end_time: float | None = None
    capabilities: Capabilities | None = None
    load: Load = field(default_factory=lambda: Load(0, 0, 0, 0))
    prefill_tokens: int = 0  # of prompts given and not yet through
    num_decodes: int = 0
    pinned_blocks: int = 0  # of open tickets that it holds for us
    last_chosen: int = 0  # for turns among equals

    @property
    def up(self) -> bool:
        return self.agent is not None and self.host is not None and self.phase == READY


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Registering:
    peer: Peer
    register: Register


@dataclass(frozen=True, slots=True)
class PhaseTold:
    peer: Peer
    phase: str
    detail: str


@dataclass(frozen=True, slots=True)
class LoadTold:
    key: Key
    load: Load


@dataclass(frozen=True, slots=True)
class PeerLost:
    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class Proven:
    pair: Pair


@dataclass(frozen=True, slots=True)
class ProofFailed:
    pair: Pair
    reason: str


Event = Registering | PhaseTold | LoadTold | PeerLost | Proven | ProofFailed

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Accept:
    peer: Peer
    protocol: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """`final`: registering again will not help."""

    peer: Peer
    reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """Everything open on it is lost."""

    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Something that people or the router look at is different now."""


Effect = Accept | Refuse | WorkerLost | Changed


class Fleet:
    """All workers, by key and by peer."""

    def __init__(self, spec: ProxySpec) -> None:
        self._spec = spec
        self._pairs = frozenset(spec.pairs)
        self.workers: dict[Key, Worker] = {}
        self.by_peer: dict[Peer, Worker] = {}
        self.proven: set[Pair] = set()
        self._proven_decodes: frozenset[Key] = frozenset()  # asked for with every request
        self.unproven: dict[Pair, str] = {}  # why the last proof failed
        self.refusals: list[str] = []

    def apply(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Registering(peer, register):
                return self._register(peer, register)
            case PhaseTold(peer, phase, detail):
                return self._set_phase(peer, phase, detail)
            case LoadTold(key, load):
                self.workers[key].load = load
                return []
            case PeerLost(peer, reason):
                return self._lose(peer, reason)
            case Proven(pair):
                self._set_proven(self.proven | {pair})
                self.unproven.pop(pair, None)
                return [Changed()]
            case ProofFailed(pair, reason):
                self.unproven[pair] = reason
                return [Changed()]

    # ------------------------------------------------------------ registration

    def _register(self, peer: Peer, register: Register) -> list[Effect]:
        fault = self._fault_of(register)
        if fault is not None:
            self.refusals = [*self.refusals, f"{register.worker}: {fault}"][-MAX_REFUSALS:]
            return [Refuse(peer, fault, final=True), Changed()]
        effects = self._replace(register)
        worker = self.workers.setdefault((register.worker, register.generation), self._new_worker(register))
        if register.part == Part.AGENT:
            worker.agent, worker.node, worker.job = peer, register.node, register.job
            worker.end_time = register.end_time
        else:
            worker.host, worker.capabilities = peer, register.capabilities
        self.by_peer[peer] = worker
        return [*effects, Accept(peer, register.protocol), Changed()]

    def _fault_of(self, register: Register) -> str | None:
        if not OLDEST_PROTOCOL <= register.protocol <= PROTOCOL:
            return f"speaks protocol {register.protocol}; this proxy speaks {OLDEST_PROTOCOL} to {PROTOCOL}"
        if register.pool not in self._spec.pools:
            return f"pool {register.pool!r} is not part of run {self._spec.run}"
        there = self.workers.get((register.worker, register.generation))
        if there is not None and there.incarnation != register.incarnation:
            return (
                f"generation {register.generation} is registered already, by {there.node or 'another process'} "
                f"(job {there.job or 'unknown'}), which is alive"
            )
        return None

    def _replace(self, register: Register) -> list[Effect]:
        """A new session of the same process: what was open on the old one is lost."""
        worker = self.workers.get((register.worker, register.generation))
        old = None if worker is None else worker.agent if register.part == Part.AGENT else worker.host
        return [] if old is None else self._lose(old, "a new session of the same worker")

    def _new_worker(self, register: Register) -> Worker:
        return Worker(
            key=(register.worker, register.generation),
            pool=register.pool,
            role=register.role,
            incarnation=register.incarnation,
            caps=self._spec.pools[register.pool],
        )

    def _set_phase(self, peer: Peer, phase: str, detail: str) -> list[Effect]:
        worker = self.by_peer[peer]
        if peer != worker.agent:
            return []  # a host has no say in this
        worker.phase, worker.detail = phase, detail
        if not NEXT.get(phase, {phase}):  # its engine is gone already; its links end a moment later
            return [WorkerLost(worker.key, detail.split("\n")[0]), Changed()]
        return [Changed()]

    def _lose(self, peer: Peer, reason: str) -> list[Effect]:
        """One link gone is the worker gone: its record is made of both. A part that lives registers anew."""
        worker = self.by_peer.pop(peer, None)
        if worker is None:
            return []
        effects: list[Effect] = [WorkerLost(worker.key, reason), Changed()]
        for other in (worker.agent, worker.host):
            if other is not None and other != peer:
                self.by_peer.pop(other, None)
                effects.append(Refuse(other, f"the worker's other link is lost: {reason}", final=False))
        self.workers.pop(worker.key, None)
        self._set_proven({pair for pair in self.proven if worker.key not in pair})
        self.unproven = {pair: why for pair, why in self.unproven.items() if worker.key not in pair}
        return effects

    def _set_proven(self, pairs: set[Pair]) -> None:
        self.proven = pairs
        self._proven_decodes = frozenset(decode for _, decode in pairs)

    # ------------------------------------------------------------ what is possible

    def pair_allowed(self, prefill: Worker, decode: Worker) -> bool:
        """By the plan's matrix and by what the loaded engines say of themselves."""
        if prefill.capabilities is None or decode.capabilities is None or prefill.key == decode.key:
            return False
        same_format = prefill.capabilities.kv_format == decode.capabilities.kv_format
        return (prefill.pool, decode.pool) in self._pairs and same_format

    def expected_pairs(self) -> list[Pair]:
        """What the workers that are up must prove: each allowed hand-over; where there is none, a completion."""
        up = [worker for worker in self.workers.values() if worker.up]
        pairs: list[Pair] = []
        for decode in up:
            if not decode.caps.max_decodes:
                continue
            partners = [p for p in up if p.caps.max_prefill_tokens and self.pair_allowed(p, decode)]
            pairs += [(p.key, decode.key) for p in partners] or [(None, decode.key)]
        return pairs

    def loaded(self) -> list[Capabilities]:
        """What the engines that are there say of themselves."""
        return [worker.capabilities for worker in self.workers.values() if worker.capabilities is not None]

    def is_proven(self, key: Key) -> bool:
        return key in self._proven_decodes

    @property
    def ready(self) -> bool:
        """Every worker that the run wants is up, and every hand-over between them is proven."""
        names = {worker.key[0] for worker in self.workers.values() if worker.up}
        return set(self._spec.workers) <= names and all(pair in self.proven for pair in self.expected_pairs())

    @property
    def serving(self) -> bool:
        """At least one request could be answered now."""
        return any(w.up and w.caps.max_decodes and self.is_proven(w.key) for w in self.workers.values())
