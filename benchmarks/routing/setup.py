"""What one replay is of: engines and their roles, the policy, and the proxy's cores made for them.

Owns how a fleet of the benchmark is described. `whole`: every worker does all of a request. `split`: prefill and decode
are apart. `adaptive`: the workers of a split, each able to do everything, and the router chooses for each request.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from benchmarks.routing.card import Card
from benchmarks.routing.dynamo import Setting
from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import PhaseTold, Proven, Registering
from proxy.spec import Deadlines, Limits, PoolCaps, ProxySpec, RoutingSpec
from workers.agent.lifecycle import READY
from workers.protocol import PROTOCOL, Capabilities, Part, Register

MAX_MODEL_LEN = 131_072
MODEL = "simulated"
NO_LIMITS = Limits(max_queued=1 << 30)
Roles = Literal["whole", "split", "adaptive"]


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    card: Card = Card()
    roles: Roles = "whole"
    num_workers: int = 8
    num_prefill: int = 4  # of them, unless they are whole
    routing: RoutingSpec = RoutingSpec()
    dynamo: Setting = Setting()  # of the policy of that name, in virtual time

    @property
    def workers(self) -> dict[str, str]:
        """Name and pool."""
        if self.roles == "whole":
            return {f"any-{number}": "any" for number in range(self.num_workers)}
        prefill = {f"prefill-{number}": "prefill" for number in range(self.num_prefill)}
        return prefill | {f"decode-{number}": "decode" for number in range(self.num_workers - self.num_prefill)}

    @property
    def pools(self) -> dict[str, PoolCaps]:
        able = PoolCaps(max_prefill_tokens=MAX_MODEL_LEN, max_decodes=self.card.max_num_seqs)
        if self.roles == "split":
            return {
                "prefill": msgspec.structs.replace(able, max_decodes=0),
                "decode": msgspec.structs.replace(able, max_prefill_tokens=0),
            }
        return dict.fromkeys(self.workers.values(), able)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Pools that hand KV over."""
        match self.roles:
            case "whole":
                return ()
            case "split":
                return (("prefill", "decode"),)
            case "adaptive":
                pools = sorted(set(self.workers.values()))
                return tuple((source, target) for source in pools for target in pools)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            models=(MODEL,),
            max_model_len=MAX_MODEL_LEN,
            block_size=self.card.block_size,
            num_blocks=self.card.num_blocks,
            max_num_seqs=self.card.max_num_seqs,
            dp_ranks=1,
            can_prefill=True,
            can_decode=True,
            kv_format=MODEL,
        )

    def proxy_spec(self) -> ProxySpec:
        return ProxySpec(
            run="benchmark",
            run_dir="",
            proxy="p0",
            code="benchmark",
            models=(MODEL,),
            interface=None,
            http_port=0,
            tls_cert=None,
            tls_key=None,
            pools=self.pools,
            pairs=self.pairs,
            workers=self.workers,
            redeem_s=30.0,
            limits=NO_LIMITS,
            deadlines=Deadlines(),
            routing=self.routing,
        )

    def fleet(self) -> Fleet:
        """All workers are up and proven at time 0."""
        fleet = Fleet(self.proxy_spec())
        for name, pool in self.workers.items():
            for part in (Part.AGENT, Part.HOST):
                fleet.apply(Registering(f"{name}/{part}".encode(), self._register(name, pool, part)), 0.0)
            fleet.apply(PhaseTold(f"{name}/{Part.AGENT}".encode(), READY, ""), 0.0)
        for pair in fleet.expected_pairs():
            fleet.apply(Proven(pair), 0.0)
        return fleet

    def _register(self, name: str, pool: str, part: str) -> Register:
        return Register(
            protocol=PROTOCOL,
            code="benchmark",
            engine_version="virtual",
            worker=name,
            pool=pool,
            role=pool,
            generation=0,
            incarnation=name,
            session="0",
            part=part,
            capabilities=self.capabilities() if part == Part.HOST else None,
        )
