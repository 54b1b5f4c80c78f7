"""What the controller last said of the run's jobs, and whether it is still there to say more.

Pure: times are arguments. The proxy itself knows no Slurm; after its controller has gone, this is old news with
its age.
"""

from __future__ import annotations

from proxy.fleet.worker import Peer
from workers.controller_messages import Jobs, JobView, SetCaps


class JobBoard:
    """`controllers` are the links of those that are connected."""

    def __init__(self) -> None:
        self.controllers: set[Peer] = set()
        self.jobs: tuple[JobView, ...] = ()
        self.gpus_per_node = 0
        self.counsel = SetCaps(())  # the planner's last word
        self._last_seen: float | None = None

    def joined(self, peer: Peer) -> None:
        self.controllers.add(peer)

    def left(self, peer: Peer, now: float) -> None:
        """Nothing happens where it was no controller."""
        if peer in self.controllers:
            self.controllers.discard(peer)
            self._last_seen = now

    def told(self, jobs: Jobs) -> None:
        self.jobs, self.gpus_per_node = jobs.jobs, jobs.gpus_per_node

    def silence_s(self, now: float) -> float | None:
        """For how long no controller has been connected; None: there never was one."""
        if self.controllers:
            return 0.0
        return None if self._last_seen is None else now - self._last_seen
