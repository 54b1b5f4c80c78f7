"""What one replay is of: pools of engines, who hands KV to whom, the policy, and the proxy's cores made for them.

Owns how a fleet in virtual time is described, as the plan describes a real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from launcher.twin.card import Card
from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import PhaseTold, ProvenElsewhere, Registering
from proxy.fleet.worker import Key, Peer
from proxy.spec import Deadlines, Limits, PoolCaps, ProxySpec, RoutingSpec
from workers.agent.lifecycle import READY
from workers.protocol import PROTOCOL, Capabilities, Part, Register

MAX_MODEL_LEN = 131_072
MODEL = "simulated"
NO_LIMITS = Limits(max_queued=1 << 30)
Roles = Literal["whole", "split", "adaptive"]


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    card: Card
    replicas: int
    caps: PoolCaps


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    pools: Mapping[str, Pool]
    pairs: tuple[tuple[str, str], ...] = ()  # pools that hand KV over
    routing: RoutingSpec = RoutingSpec()

    @property
    def workers(self) -> dict[str, str]:
        """Name and pool."""
        return {f"{name}-{number}": name for name, pool in self.pools.items() for number in range(pool.replicas)}

    @property
    def block_size(self) -> int:
        """One for the whole run."""
        return next(iter(self.pools.values())).card.block_size

    def card(self, key: Key) -> Card:
        return self.pools[self.workers[key[0]]].card

    def capabilities(self, pool: str) -> Capabilities:
        card = self.pools[pool].card
        return Capabilities(
            models=(MODEL,),
            max_model_len=MAX_MODEL_LEN,
            block_size=card.block_size,
            num_blocks=card.num_blocks,
            max_num_seqs=card.max_num_seqs,
            dp_ranks=1,
            can_prefill=True,
            can_decode=True,
            kv_format=MODEL,
        )

    def proxy_spec(self) -> ProxySpec:
        return ProxySpec(
            run="twin",
            run_dir="",
            proxy="p0",
            code="twin",
            models=(MODEL,),
            interface=None,
            http_port=0,
            tls_cert=None,
            tls_key=None,
            pools={name: pool.caps for name, pool in self.pools.items()},
            pairs=self.pairs,
            workers=self.workers,
            redeem_s=30.0,
            limits=NO_LIMITS,
            deadlines=Deadlines(),
            routing=self.routing,
        )

    def fleet(self, names: Iterable[str] | None = None) -> Fleet:
        """All of these workers, or all that there are, are up and proven at time 0."""
        fleet = Fleet(self.proxy_spec())
        for name in self.workers if names is None else names:
            self._register_both(fleet, (name, 0), None, 0.0)
        prove(fleet, 0.0)
        return fleet

    def bring(self, fleet: Fleet, key: Key, end_time: float | None, now: float) -> None:
        """One more, up and proven."""
        self._register_both(fleet, key, end_time, now)
        prove(fleet, now)

    def _register_both(self, fleet: Fleet, key: Key, end_time: float | None, now: float) -> None:
        for part in (Part.AGENT, Part.HOST):
            fleet.apply(Registering(peer_of(key, part), self._register(key, part, end_time)), now)
        fleet.apply(PhaseTold(peer_of(key, Part.AGENT), READY, ""), now)

    def _register(self, key: Key, part: str, end_time: float | None) -> Register:
        name, pool = key[0], self.workers[key[0]]
        return Register(
            protocol=PROTOCOL,
            code="twin",
            engine_version="virtual",
            worker=name,
            pool=pool,
            role=pool,
            generation=key[1],
            incarnation=name,
            session="0",
            part=part,
            end_time=end_time,
            capabilities=self.capabilities(pool) if part == Part.HOST else None,
        )


def peer_of(key: Key, part: str) -> Peer:
    return f"{key[0]}/{key[1]}/{part}".encode()


def prove(fleet: Fleet, now: float) -> None:
    """All that is expected, told at once, as the proofs of 64 workers are thousands: engines here are good, and a proof
    takes no time.
    """
    lives = {key: worker.life for key, worker in fleet.workers.items()}
    pairs = ((None if prefill is None else lives[prefill], lives[decode]) for prefill, decode in fleet.expected_pairs())
    fleet.apply(ProvenElsewhere(frozenset(pairs)), now)


def equal_engines(
    card: Card, roles: Roles, num_workers: int, num_prefill: int = 0, routing: RoutingSpec | None = None
) -> Setup:
    """`whole`: every worker does all of a request. `split`: prefill and decode are apart. `adaptive`: the workers of a
    split, each able to do everything, and the router chooses for each request.
    """
    able = PoolCaps(max_prefill_tokens=MAX_MODEL_LEN, max_decodes=card.max_num_seqs)
    routing = routing or RoutingSpec()
    if roles == "whole":
        return Setup(pools={"any": Pool(card=card, replicas=num_workers, caps=able)}, routing=routing)
    prefill, decode = able, able
    pairs: tuple[tuple[str, str], ...] = (("prefill", "decode"),)
    if roles == "split":
        prefill = msgspec.structs.replace(able, max_decodes=0)
        decode = msgspec.structs.replace(able, max_prefill_tokens=0)
    else:
        names = ("decode", "prefill")
        pairs = tuple((source, target) for source in names for target in names)
    pools = {
        "prefill": Pool(card=card, replicas=num_prefill, caps=prefill),
        "decode": Pool(card=card, replicas=num_workers - num_prefill, caps=decode),
    }
    return Setup(pools=pools, pairs=pairs, routing=routing)
