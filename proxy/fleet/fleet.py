"""Who is there: every worker of the run as this proxy sees it, and what it has been given to do.

Pure: one mutator, `apply(event, now) -> effects`; no clock, socket or log. A worker's record is made of
two links: its agent's decides the phase, its host's carries the data. It takes requests only while both
are up, the phase is ready, and a real completion has proven it (`proven`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from proxy.fleet.fleet_events import (
    Accept,
    CapsTold,
    Changed,
    Effect,
    Event,
    Leaving,
    LoadTold,
    PeerLost,
    PhaseTold,
    ProofFailed,
    Proven,
    ProvenElsewhere,
    Refuse,
    Registering,
    RunTold,
    WorkerLost,
)
from proxy.fleet.rates import Rates
from proxy.fleet.roles import caps_of
from proxy.fleet.worker import Key, Life, Pair, Peer, Proof, Worker
from proxy.spec import PoolCaps, ProxySpec
from workers.agent.lifecycle import NEXT, READY
from workers.protocol import OLDEST_PROTOCOL, PROTOCOL, Capabilities, Part, Register

MAX_REFUSALS = 32


class Fleet:
    """All workers, by key and by peer."""

    def __init__(self, spec: ProxySpec) -> None:
        self._spec = spec
        self._pairs = frozenset(spec.pairs)
        self.workers: dict[Key, Worker] = {}
        self.by_peer: dict[Peer, Worker] = {}
        self.proven: set[Pair] = set()
        # Asked for with every request, so kept: who answers, and who may prefill for each of them.
        self.decoders: tuple[Worker, ...] = ()
        self.prefillers: dict[Key, tuple[Worker, ...]] = {}
        self.can_split = False  # any of them
        self._elsewhere: frozenset[Proof] = frozenset()
        self.unproven: dict[Pair, str] = {}  # why the last proof failed
        self.refusals: list[str] = []
        self._wanted = frozenset(spec.workers)
        self.awaited = False  # where nobody serves, somebody will again
        self._rates: dict[str, Rates] = {}  # by pool, of all its workers
        self._moved: Mapping[str, PoolCaps] = {}  # of workers whose role has been moved

    def apply(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, LoadTold):
            worker = self.workers[event.key]
            worker.load, worker.load_at, worker.begun_tokens_told = event.load, now, worker.begun_tokens
            worker.rates.share()
            return []
        effects = self._change(event)
        self._find_able()
        self._date_starts(now)
        return effects

    def _change(
        self,
        event: Registering
        | PhaseTold
        | PeerLost
        | Proven
        | ProofFailed
        | ProvenElsewhere
        | Leaving
        | RunTold
        | CapsTold,
    ) -> list[Effect]:
        match event:
            case Registering(peer, register):
                return self._register(peer, register)
            case PhaseTold():
                return self._set_phase(event)
            case PeerLost(peer, reason, as_asked):
                return self._lose(peer, reason, as_asked=as_asked)
            case Proven(pair):
                self.proven.add(pair)
                self.unproven.pop(pair, None)
                return [Changed()]
            case ProofFailed(pair, reason):
                self.unproven[pair] = reason
                return [Changed()]
            case ProvenElsewhere(proofs):
                self._elsewhere = proofs
                return self._believe()
            case Leaving(key):
                self.workers[key].told_to_leave = True
                return [Changed()]
            case RunTold(wanted, serves):
                self._wanted = frozenset(wanted or self._spec.workers)
                self.awaited = serves
                return [Changed()]
            case CapsTold(caps):
                self._moved = caps
                return [Changed()]

    def _find_able(self) -> None:
        proven = {decode for _, decode in self.proven}
        up = [worker for worker in self.workers.values() if worker.up]
        for key, caps in caps_of(self.workers.values(), self._spec.pools, self._moved).items():
            self.workers[key].caps = caps
        self._stand_in(up, needed=not any(self._decodes(w) and w.key in proven for w in up))
        self.decoders = tuple(w for w in up if w.caps.max_decodes and (w.key in proven or not self._decodes(w)))
        computing = [worker for worker in up if worker.caps.max_prefill_tokens]
        self.prefillers = {d.key: tuple(p for p in computing if (p.key, d.key) in self.proven) for d in self.decoders}
        self.can_split = any(self.prefillers.values())

    def _decodes(self, worker: Worker) -> bool:
        """By its pool."""
        return self._spec.pools[worker.pool].max_decodes > 0

    def _stand_in(self, up: list[Worker], *, needed: bool) -> None:
        """Where nobody decodes just now, proven prefill workers answer whole requests."""
        for worker in up:
            able = worker.proven_at is not None and worker.capabilities is not None and worker.capabilities.can_decode
            if not self._decodes(worker) and worker.capabilities is not None:
                most = worker.capabilities.max_num_seqs if needed and able else 0
                worker.caps = msgspec.structs.replace(worker.caps, max_decodes=most)

    def _date_starts(self, now: float) -> None:
        """What of a worker's start only a proxy can see."""
        proven = {key for pair in self.proven for key in pair}
        for worker in self.workers.values():
            if worker.phase == READY and worker.ready_at is None:
                worker.ready_at = now
            if worker.up and worker.up_at is None:
                worker.up_at = now
            if worker.up and worker.key in proven and worker.proven_at is None:
                worker.proven_at = now

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
            worker.end_time, worker.gpus = register.end_time, register.gpus
        else:
            worker.host, worker.capabilities = peer, register.capabilities
        self.by_peer[peer] = worker
        return [*effects, Accept(peer, register.protocol), Changed(), *self._believe()]

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
            rates=Rates(peers=self._rates.setdefault(register.pool, Rates())),
        )

    def _set_phase(self, told: PhaseTold) -> list[Effect]:
        worker = self.by_peer[told.peer]
        if told.peer != worker.agent:
            return []  # a host has no say in this
        worker.phase, worker.detail, worker.agent_stages = told.phase, told.detail, told.stages
        if not NEXT.get(told.phase, {told.phase}):  # its engine is gone already; its links end a moment later
            return [WorkerLost(worker.key, told.detail.split("\n")[0], worker.leaving), Changed()]
        return [Changed()]

    def _lose(self, peer: Peer, reason: str, *, as_asked: bool = False) -> list[Effect]:
        """One link gone is the worker gone: its record is made of both. A part that lives registers anew."""
        worker = self.by_peer.pop(peer, None)
        if worker is None:
            return []
        effects: list[Effect] = [WorkerLost(worker.key, reason, as_asked or worker.leaving), Changed()]
        for other in (worker.agent, worker.host):
            if other is not None and other != peer:
                self.by_peer.pop(other, None)
                effects.append(Refuse(other, f"the worker's other link is lost: {reason}", final=False))
        worker.agent = worker.host = None  # whoever still has a place there sees that it does not answer
        self.workers.pop(worker.key, None)
        self.proven = {pair for pair in self.proven if worker.key not in pair}
        self.unproven = {pair: why for pair, why in self.unproven.items() if worker.key not in pair}
        return effects

    def _believe(self) -> list[Effect]:
        """What others have proven holds here too, once its workers are here."""
        here = {worker.life: key for key, worker in self.workers.items()}
        new: set[Pair] = {
            (None if prefill is None else here[prefill], here[decode])
            for prefill, decode in self._elsewhere
            if decode in here and (prefill is None or prefill in here)
        }
        if new <= self.proven:
            return []
        self.proven |= new
        self.unproven = {pair: why for pair, why in self.unproven.items() if pair not in new}
        return [Changed()]

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
            if not self._decodes(decode):
                continue
            partners = [p for p in up if self._spec.pools[p.pool].max_prefill_tokens and self.pair_allowed(p, decode)]
            pairs += [(p.key, decode.key) for p in partners] or [(None, decode.key)]
        return pairs

    def loaded(self) -> list[Capabilities]:
        """What the engines that are there say of themselves."""
        return [worker.capabilities for worker in self.workers.values() if worker.capabilities is not None]

    def any_loaded(self) -> Capabilities | None:
        """What one of them says: of what is the same for all of the run."""
        return next((worker.capabilities for worker in self.workers.values() if worker.capabilities is not None), None)

    @property
    def ready(self) -> bool:
        """Every worker that the run wants is up, and every KV transfer between them is proven. Of two generations
        of one worker it is the elder that counts: the younger one may still be proven."""
        elders: dict[str, Key] = {}
        for key in sorted(key for key, worker in self.workers.items() if worker.up):
            elders.setdefault(key[0], key)
        old = set(elders.values())
        expected = (pair for pair in self.expected_pairs() if old.issuperset(key for key in pair if key))
        return self._wanted <= elders.keys() and all(pair in self.proven for pair in expected)

    def tried(self, worker: Worker) -> bool:
        """It takes requests, and no KV transfer with it is still to be tried: it may take another one's place."""
        expected = [pair for pair in self.expected_pairs() if worker.key in pair]
        serves = any(pair in self.proven for pair in expected)
        return serves and all(pair in self.proven or pair in self.unproven for pair in expected)

    @property
    def serving(self) -> bool:
        """At least one request could be answered now."""
        return bool(self.decoders)

    # ------------------------------------------------------------ what other processes of this proxy want to know

    def serving_lives(self) -> frozenset[Life]:
        """Of the workers that requests could go to now."""
        prefillers = (worker for workers in self.prefillers.values() for worker in workers)
        return frozenset(worker.life for worker in (*self.decoders, *prefillers))

    def proofs(self) -> frozenset[Proof]:
        lives = {key: worker.life for key, worker in self.workers.items()}
        return frozenset(
            (None if prefill is None else lives[prefill], lives[decode]) for prefill, decode in self.proven
        )
