"""Slurm's answers as text in, values out: configuration, partitions, nodes, associations, QOS, reservations.

Pure. Reads what any Slurm since 20.11 prints: fields are found by their names, unknown ones are left alone, and
what a version does not print stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

DELIMITER = "\x1f"
# Order matters to parse_shapes.
SINFO_FORMAT = ("%R", "%D", "%c", "%m", "%G", "%t")
NOTHING = ("", "(null)", "N/A", "n/a", "NONE", "None", "none", "UNLIMITED", "INFINITE")


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `scontrol --oneliner show partition`. None: without a limit."""

    name: str
    fields: dict[str, str]

    @property
    def is_default(self) -> bool:
        return self.fields.get("Default") == "YES"

    @property
    def is_up(self) -> bool:
        return self.fields.get("State", "UP") == "UP"

    @property
    def max_minutes(self) -> int | None:
        return minutes(self.fields.get("MaxTime", ""))

    @property
    def max_nodes(self) -> int | None:
        return count(self.fields.get("MaxNodes", ""))

    @property
    def num_nodes(self) -> int:
        return count(self.fields.get("TotalNodes", "")) or 0

    @property
    def is_exclusive(self) -> bool:
        """Every job gets whole nodes."""
        shared = self.fields.get("OverSubscribe", self.fields.get("Shared", ""))
        return shared == "EXCLUSIVE" or self.fields.get("Exclusive") == "YES"

    @property
    def preempts(self) -> bool:
        """Its jobs may be taken away."""
        return self.fields.get("PreemptMode", "OFF") not in ("OFF", *NOTHING)

    @property
    def grace_s(self) -> int:
        return count(self.fields.get("GraceTime", "")) or 0

    def names(self, key: str) -> tuple[str, ...] | None:
        """`AllowAccounts=a,b`; None: everyone."""
        value = self.fields.get(key, "ALL")
        return None if value == "ALL" or value in NOTHING else tuple(value.split(","))


class NodeShape(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes of one partition that are alike."""

    partition: str
    nodes: int
    cpus: int
    mem_mb: int
    gpus: dict[str, int]  # type -> count; "" where the site names no type
    state: str

    @property
    def num_gpus(self) -> int:
        return sum(self.gpus.values())


class Association(msgspec.Struct, frozen=True, kw_only=True):
    """What the user may charge. `partition` is empty: any."""

    account: str
    partition: str
    qos: tuple[str, ...]
    default_qos: str
    limits: dict[str, str]  # Slurm's own names: MaxJobs, MaxWall, GrpTRES, ...


class Qos(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    limits: dict[str, str]


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    start: str
    nodes: str
    flags: tuple[str, ...]


def parse_config(answer: str) -> dict[str, str]:
    """`scontrol show config`, the part about cgroups too. What is not set is left out."""
    pairs = (line.split("=", 1) for line in answer.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs if value.strip() not in ("", "(null)")}


def parse_partitions(answer: str) -> list[Partition]:
    return [Partition(name=fields["PartitionName"], fields=fields) for fields in _records(answer, "PartitionName")]


def parse_shapes(answer: str) -> list[NodeShape]:
    """`sinfo --format=SINFO_FORMAT`."""
    shapes = []
    for line in answer.splitlines():
        name, nodes, cpus, mem_mb, gres, state = line.split(DELIMITER)
        shapes.append(
            NodeShape(
                partition=name,
                nodes=int(nodes),
                cpus=int(cpus.rstrip("+")),
                mem_mb=int(mem_mb.rstrip("+")),
                gpus=parse_gpus(gres),
                state=state.rstrip("*~#!%$@^-+"),
            )
        )
    return shapes


def parse_gpus(gres: str) -> dict[str, int]:
    """`gpu:h100:8(S:0-1),shard:64`: GPUs by type."""
    gpus: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = entry.split(":")
        if name == "gpu":
            kind, number = (rest[0], rest[-1]) if len(rest) > 1 else ("", rest[0] if rest else "1")
            gpus[kind] = gpus.get(kind, 0) + int(number)
    return gpus


def parse_associations(answer: str) -> list[Association]:
    """`sacctmgr --parsable2 show associations user=...`, with all columns."""
    return [
        Association(
            account=row.get("Account", ""),
            partition=row.get("Partition", ""),
            qos=tuple(name for name in row.get("QOS", "").split(",") if name),
            default_qos=row.get("Def QOS", ""),
            limits=_limits(row),
        )
        for row in _table(answer)
    ]


def parse_default_account(answer: str) -> str:
    """`sacctmgr --parsable2 show user NAME`."""
    return next((row.get("Def Acct", "") for row in _table(answer)), "")


def parse_qos(answer: str) -> list[Qos]:
    """`sacctmgr --parsable2 show qos`, with all columns."""
    return [Qos(name=row["Name"], limits=_limits(row)) for row in _table(answer) if row.get("Name")]


def parse_reservations(answer: str) -> list[Reservation]:
    return [
        Reservation(
            name=fields["ReservationName"],
            start=fields.get("StartTime", ""),
            nodes=fields.get("Nodes", ""),
            flags=tuple(fields.get("Flags", "").split(",")),
        )
        for fields in _records(answer, "ReservationName")
    ]


def parse_start(words: str) -> str:
    """When Slurm would start what `sbatch --test-only` asked for; empty where it does not say."""
    found = re.search(r"to start at (\S+)", words)
    return found[1] if found else ""


# ---------------------------------------------------------------- values


def minutes(text: str) -> int | None:
    """Slurm's `[days-]hours:minutes:seconds` (seconds dropped), `minutes:seconds` or minutes; None: no limit."""
    if text in NOTHING:
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, mins = (*parts, 0)[:2]
        return (int(days) * 24 + hours) * 60 + mins
    return parts[0] * 60 + parts[1] if len(parts) == 3 else parts[0]


def count(text: str) -> int | None:
    """The number in front: `30 sec`, `4`; None where there is no limit."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found and text not in NOTHING else None


def tres(text: str) -> dict[str, int]:
    """`cpu=4,gres/gpu=8,gres/gpu:h100=8`: the numbers of what is counted in ones."""
    pairs = (entry.split("=", 1) for entry in text.split(",") if "=" in entry)
    return {name: int(number) for name, number in pairs if number.isdigit()}


def options(text: str) -> dict[str, str]:
    """`socket=/x,cred_expire=6,flag`; a flag's value is empty."""
    pairs = (entry.partition("=") for entry in text.split(",") if entry)
    return {name: value for name, _, value in pairs}


# ---------------------------------------------------------------- shapes of answers


def _records(answer: str, first: str) -> Iterator[dict[str, str]]:
    """`Key=Value` words, one record a line; a word without a key belongs to nobody."""
    for line in answer.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if first in fields:
            yield fields


def _table(answer: str) -> Iterator[dict[str, str]]:
    header, *rows = [line.split("|") for line in answer.splitlines() if "|" in line] or [[]]
    for row in rows:
        yield dict(zip(header, row, strict=False))


def _limits(row: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if value and name.startswith(("Max", "Grp", "Min"))}
