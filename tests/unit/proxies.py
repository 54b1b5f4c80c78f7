"""Builders for the proxy's pure cores: a spec, workers that are up, requests."""

from __future__ import annotations

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import Event, LoadTold, PhaseTold, Proven, Registering
from proxy.fleet.worker import Key
from proxy.flights.flight import Flight
from proxy.routing.router import Demand
from proxy.spec import Deadlines, Limits, PoolCaps, ProxySpec, RoutingSpec
from workers.agent.lifecycle import READY
from workers.protocol import Capabilities, Leg, Load, Part, Register, Submit, Ticket

BLOCK = 16


def proxy_spec(**changes: object) -> ProxySpec:
    fields: dict[str, object] = {
        "run": "r",
        "run_dir": "/nowhere",
        "proxy": "p0",
        "code": "c",
        "models": ("tiny",),
        "interface": "lo",
        "http_port": 0,
        "tls_cert": None,
        "tls_key": None,
        "pools": {
            "prefill": PoolCaps(max_prefill_tokens=4096, max_decodes=0),
            "decode": PoolCaps(max_prefill_tokens=4096, max_decodes=4),
        },
        "pairs": (("prefill", "decode"),),
        "workers": {"prefill-0": "prefill", "decode-0": "decode"},
        "redeem_s": 30.0,
        "limits": Limits(max_queued=8),
        "deadlines": Deadlines(),
        "routing": RoutingSpec(),
    }
    return ProxySpec(**{**fields, **changes})  # type: ignore[arg-type]


def capabilities(kv_format: str = "f") -> Capabilities:
    return Capabilities(("tiny",), 4096, BLOCK, 1000, 8, 1, True, True, kv_format)


def register(worker: str, part: str, *, generation: int = 0, incarnation: str = "i", **changes: object) -> Register:
    fields: dict[str, object] = {
        "protocol": 1,
        "code": "c",
        "engine_version": "sim-1",
        "worker": worker,
        "pool": worker.rsplit("-", 1)[0],
        "role": worker.rsplit("-", 1)[0],
        "generation": generation,
        "incarnation": incarnation,
        "session": f"{incarnation}-{part}",
        "part": part,
        "capabilities": capabilities() if part == Part.HOST else None,
        "node": "n1",
        "job": "7",
    }
    return Register(**{**fields, **changes})  # type: ignore[arg-type]


def peer(worker: str, part: str, generation: int = 0) -> bytes:
    return f"{worker}/{generation}/{part}".encode()


def bring_up(fleet: Fleet, worker: str, generation: int = 0, *, prove: bool = True) -> Key:
    """Register both parts, become ready, and take the proofs for granted."""
    events: list[Event] = [
        Registering(peer(worker, part, generation), register(worker, part, generation=generation))
        for part in (Part.AGENT, Part.HOST)
    ]
    events.append(PhaseTold(peer(worker, Part.AGENT, generation), READY, ""))
    events.append(LoadTold((worker, generation), Load(0, 0, 0, 0)))
    for event in events:
        fleet.apply(event, 0.0)
    if prove:
        for pair in fleet.expected_pairs():
            fleet.apply(Proven(pair), 0.0)
    return (worker, generation)


def flight(number: int, num_tokens: int = 500, **changes: object) -> Flight:
    submit = Submit(0, f"req-{number}", Leg.WHOLE, "POST", "/v1/completions", b"", (), b"{}")
    demand = Demand(num_tokens, None, **changes)  # type: ignore[arg-type]
    return Flight(number, f"req-{number}", submit, demand, streams=True)


def ticket(name: str, holder: Key, num_tokens: int = 500) -> Ticket:
    return Ticket(name, holder[0], holder[1], b"{}", -(-num_tokens // BLOCK), num_tokens)
