"""What a process tells its peers of other processes they should link to: its siblings, and those of the next proxy.

Pure. Owns what the parent and the controller have said of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.processes.family import Family
from workers.links.proxy_file import ProxyFile, proxy_of
from workers.protocol import Registered


class Relatives:
    """Of a process of `proxy`."""

    def __init__(self, proxy: str) -> None:
        self._proxy = proxy
        self._family: Family | None = None
        self._successors: tuple[ProxyFile, ...] = ()

    @property
    def proves(self) -> bool:
        """Of several processes it is this one that does what must be done once."""
        return self._family is not None and self._family.proves

    def met(self, family: Family) -> bool:
        """Whether peers are to hear of it."""
        before, self._family = self._family, family
        return before is None or (family.processes, family.ended) != (before.processes, before.ended)

    def followed(self, processes: Iterable[ProxyFile]) -> bool:
        """By those of the next proxy; it may be this one that is told. Whether peers are to hear of it."""
        before = self._successors
        self._successors = tuple(file for file in processes if proxy_of(file.id) != self._proxy)
        return self._successors != before

    def registered(self, protocol: int) -> Registered:
        if self._family is None:
            return Registered(self._proxy, protocol)
        return Registered(self._proxy, protocol, (*self._family.processes, *self._successors), self._family.ended)
