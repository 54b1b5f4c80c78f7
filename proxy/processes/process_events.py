"""What happens to the proxy's processes, and what follows from it. The events and effects of `processes.py`.

Owns the shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.fleet.worker import Life, Proof
from proxy.processes.family import ToProcess
from workers.links.proxy_file import ProxyFile

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Opened:
    number: int
    file: ProxyFile


@dataclass(frozen=True, slots=True)
class Seen:
    number: int
    serving: frozenset[Life]
    proven: frozenset[Proof]


@dataclass(frozen=True, slots=True)
class Heard:
    """It runs."""

    number: int


@dataclass(frozen=True, slots=True)
class Died:
    """It has ended, on demand or not."""

    number: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Exchange all processes, one after the other."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Another proxy serves: finish what runs, and end."""


@dataclass(frozen=True, slots=True)
class Stop:
    pass


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Opened | Seen | Heard | Died | HandOver | Retire | Stop | Tick

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Start:
    """`link_port`: where its links should be, if that is free; 0: anywhere."""

    number: int
    slot: int
    link_port: int


@dataclass(frozen=True, slots=True)
class Say:
    number: int
    message: ToProcess


@dataclass(frozen=True, slots=True)
class Kill:
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class End:
    """Nothing is left. `failed`: no process ever came up."""

    failed: bool


Effect = Start | Say | Kill | End
