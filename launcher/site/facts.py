"""What was found on a site, before anybody judges it: Slurm's answers as values, and this machine.

Owns the shapes. `probe` fills them; `policies`, `partitions`, `accounts` and `machine` judge them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.site.slurm_text import Association, NodeShape, Partition, Qos, Reservation


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One `sbatch --test-only`: nothing is queued."""

    accepted: bool
    words: str  # Slurm's
    start: str = ""  # when it would start


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Slurm as this user sees it."""

    missing: tuple[str, ...] = ()  # commands that are not there
    fault: str = ""  # why Slurm's controller could not be asked
    config: dict[str, str] = {}
    partitions: tuple[Partition, ...] = ()
    shapes: tuple[NodeShape, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    user: str = ""
    associations: tuple[Association, ...] | None = None  # None: accounting does not answer
    default_account: str = ""
    qos: tuple[Qos, ...] = ()
    accounting_fault: str = ""

    @property
    def answers(self) -> bool:
        return not self.fault and bool(self.partitions)

    @property
    def version(self) -> str:
        return self.config.get("SLURM_VERSION", "")

    def partition(self, name: str | None) -> Partition | None:
        """None: the site's default."""
        named = [part for part in self.partitions if (part.is_default if name is None else part.name == name)]
        return named[0] if named else None

    def shapes_of(self, partition: str) -> list[NodeShape]:
        """Largest group of nodes first."""
        return sorted((shape for shape in self.shapes if shape.partition == partition), key=lambda shape: -shape.nodes)

    def gpus_of(self, partition: str) -> dict[str, int]:
        """GPU type -> the most of them on one node."""
        most: dict[str, int] = {}
        for shape in self.shapes_of(partition):
            for kind, number in shape.gpus.items():
                most[kind] = max(number, most.get(kind, 0))
        return most


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface with an IPv4 address."""

    name: str
    address: str
    speed_mbit: int | None = None  # as the driver says
    is_up: bool = True


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """This node, as far as it concerns where a run is started from."""

    host: str
    mounts: str  # /proc/mounts
    interfaces: tuple[Interface, ...]
    containers: tuple[str, ...]  # apptainer, enroot ...: those that are there
    engine_version: str  # of the interpreter; empty: not installed
    handoff_version: str
    free_bytes: Mapping[str, int]  # folder -> what is free where it lies or would lie
