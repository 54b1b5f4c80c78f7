"""What happens to a fleet, and what follows from it. The events and effects of `proxy/fleet/fleet.py`.

Owns the shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.fleet.worker import Key, Pair, Peer, Proof
from proxy.spec import PoolCaps
from workers.controller_messages import SetCaps
from workers.protocol import Load, Register
from workers.stages import StageTimes

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
    stages: StageTimes = ()


@dataclass(frozen=True, slots=True)
class LoadTold:
    key: Key
    load: Load


@dataclass(frozen=True, slots=True)
class PeerLost:
    peer: Peer
    reason: str
    as_asked: bool = False


@dataclass(frozen=True, slots=True)
class Proven:
    pair: Pair


@dataclass(frozen=True, slots=True)
class ProofFailed:
    pair: Pair
    reason: str


@dataclass(frozen=True, slots=True)
class ProvenElsewhere:
    """By other processes of this proxy. A proof is of two engines, whoever asked them."""

    proofs: frozenset[Proof]


@dataclass(frozen=True, slots=True)
class Leaving:
    """It is about to be drained: nothing new goes to it from here on."""

    key: Key


@dataclass(frozen=True, slots=True)
class RunTold:
    """The controller's word. `wanted`: names of workers, none: those of the spec."""

    wanted: tuple[str, ...]
    serves: bool


@dataclass(frozen=True, slots=True)
class CapsTold:
    """All that is to differ from the pools' caps, by worker; nothing beyond those."""

    caps: Mapping[str, PoolCaps]


def caps_told(message: SetCaps) -> CapsTold:
    caps = {
        told.worker: PoolCaps(max_prefill_tokens=told.max_prefill_tokens, max_decodes=told.max_decodes)
        for told in message.workers
    }
    return CapsTold(caps)


Event = (
    Registering
    | PhaseTold
    | LoadTold
    | PeerLost
    | Proven
    | ProofFailed
    | ProvenElsewhere
    | Leaving
    | RunTold
    | CapsTold
)

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
    """Everything open on it is lost. `as_asked`: it ended because somebody wanted it to."""

    key: Key
    reason: str
    as_asked: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """Something that people or the router look at is different now."""


Effect = Accept | Refuse | WorkerLost | Changed
