"""One process of the proxy, and the place of its kind, as `processes.py` knows them.

Owns the shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from proxy.fleet.worker import Life, Proof
from proxy.processes.family import Family
from workers.links.proxy_file import ProxyFile


@dataclass(slots=True)
class Process:
    number: int
    slot: int
    started_at: float
    file: ProxyFile | None = None  # None: its links are not open yet
    serving: frozenset[Life] = frozenset()
    proven: frozenset[Proof] = frozenset()
    ready: bool = False  # once true, it stays so
    leaving: bool = False
    killed: bool = False
    kill_at: float = inf
    heard_at: float = inf  # from when it has come up
    accepts: tuple[int, ...] = ()
    told: Family | None = None

    @property
    def stays(self) -> bool:
        return self.file is not None and not self.leaving


@dataclass(slots=True)
class Slot:
    """`deaths`: in a row, of its processes. `free_port`: where the links of the last one were."""

    deaths: int = 0
    not_before: float = -inf
    free_port: int = 0
