"""A first `conf/cluster/NAME.yaml` from what a site says of itself.

Pure text over a `Site`. What Slurm cannot know, and what a person should look at, is marked DECIDE. It plans as it
is: model and split are chosen so that they fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from launcher.site.facts import Machine, Site, Trial
from launcher.site.finding import listed
from launcher.site.partitions import USABLE_STATES, describe
from launcher.site.slurm_text import Partition, minutes
from launcher.twin.gpus import GPUS

# GiB of one GPU as the driver counts it, by a part of the site's name for it; the first that fits.
GPU_MEMORY_GIB = {
    "b300": 267.0,
    "b200": 179.0,
    "h200": 140.4,
    "h100": 79.6,
    "a100_40": 39.4,
    "a100-40": 39.4,
    "a100": 79.2,
    "l40": 44.4,
    "a40": 44.4,
    "6000": 47.4,
    "v100": 31.7,
    "3090": 23.7,
    "4090": 23.6,
    "a30": 23.6,
    "l4": 22.0,
    "t4": 14.6,
}
UNKNOWN_GPU_GIB = 15.0  # the smallest that is still in use
LONGEST_MIN = 480  # shorter jobs start sooner, and workers are replaced
SMALL_GIB = 30.0  # what an 8B model in 16 bit and its KV take
MAX_TENSOR_PARALLEL = 8


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes of one kind that a run would take."""

    partition: Partition
    gpu_type: str
    gpus: int
    cpus: int
    mem_gb: int
    usable: int


def choose(site: Site) -> Nodes:
    """A partition that takes this user's jobs: with GPUs, the default one, the largest one, in this order."""
    partition = max(_open_partitions(site), key=lambda each: (_num_gpus(site, each), each.num_nodes))
    gpus = site.gpus_of(partition.name)
    kind = max(gpus, key=lambda each: (gpus[each], each), default="")
    most = gpus.get(kind, 0)
    shapes = [shape for shape in site.shapes_of(partition.name) if shape.gpus.get(kind, 0) == most]
    return Nodes(
        partition=partition,
        gpu_type=kind,
        gpus=most,
        cpus=min((shape.cpus for shape in shapes), default=1),
        mem_gb=min((shape.mem_mb for shape in shapes), default=1024) // 1024,
        usable=sum(shape.nodes for shape in shapes if shape.state in USABLE_STATES),
    )


def _open_partitions(site: Site) -> list[Partition]:
    accounts = {each.account for each in site.associations or ()}

    def is_open(partition: Partition) -> bool:
        allowed = partition.names("AllowAccounts")
        closed = partition.fields.get("RootOnly") == "YES" or partition.fields.get("Hidden") == "YES"
        return partition.is_up and not closed and (allowed is None or not accounts or bool(accounts & set(allowed)))

    return [partition for partition in site.partitions if is_open(partition)] or list(site.partitions)


def _num_gpus(site: Site, partition: Partition) -> tuple[bool, bool, int]:
    total = sum(shape.nodes * shape.num_gpus for shape in site.shapes_of(partition.name))
    return total > 0, partition.is_default, total


def cluster_file(name: str, site: Site, nodes: Nodes, trials: dict[str, Trial], machine: Machine) -> str:
    lines = [
        "# @package _global_",
        f"# Written by action=new-cluster name={name}, from what Slurm {site.version} said on {machine.host}.",
        "# DECIDE marks what it could not know.",
        *_defaults(nodes),
        "cluster:",
        f"  name: {_value(name)}",
        *_comment(describe(site, each) for each in site.partitions if each is not nodes.partition),
        f"  partition: {_value(nodes.partition.name)}",
        *_accounts(site),
        f"  nodes: {num_nodes(nodes)}  # DECIDE: what one run may take; {nodes.usable} of this kind are up",
        *_gpus(nodes, trials),
        f"  cpus_per_node: {nodes.cpus}",
        f"  mem_gb: {nodes.mem_gb}",
        f"  walltime_min: {walltime_min(site, nodes.partition)}  # {_limit_words(nodes.partition)}",
        *_site_lines(machine),
        *_controller(site, nodes),
        "pools:",
        *_pools(nodes),
    ]
    return "\n".join(lines) + "\n"


def _defaults(nodes: Nodes) -> Iterator[str]:
    yield "defaults:"
    if not nodes.gpus:
        yield "  - override /engine: vllm_cpu  # no partition has GPUs"
        return
    fits = gpu_memory_gib(nodes.gpu_type) * tensor_parallel(nodes) >= SMALL_GIB
    yield f"  - override /model: {'llama-3.1-8b' if fits else 'qwen3-0.6b'}  # DECIDE"


def _accounts(site: Site) -> Iterator[str]:
    names = listed(dict.fromkeys(each.account for each in site.associations or ()), "")
    if names:
        yield f"  account: null  # DECIDE: yours are {names}; null charges your default one"
        known = listed(dict.fromkeys(name for each in site.associations or () for name in each.qos), "")
        yield f"  qos: null  # DECIDE: yours are {known}" if known else "  qos: null"
    else:
        yield "  account: null  # Slurm names none of yours; set it if the site wants one"
        yield "  qos: null"


def _gpus(nodes: Nodes, trials: dict[str, Trial]) -> Iterator[str]:
    yield f"  gpus_per_node: {nodes.gpus}"
    if not nodes.gpus:
        return
    memory = gpu_memory_gib(nodes.gpu_type)
    doubt = "" if _known_memory(nodes.gpu_type) else "DECIDE: this type is not known; "
    yield f"  gpu_memory_gib: {memory}  # {doubt}action=doctor submit=true reads it from the driver"
    sheet = data_sheet(nodes.gpu_type)
    yield f"  gpu: {sheet or 'null'}  # whose data sheet predictions use: {listed(sorted(GPUS), '')}"
    accepted = [setting.removeprefix("cluster.gres=") for setting, trial in trials.items() if trial.accepted]
    typed = f"gpu:{nodes.gpu_type}"
    several = nodes.gpu_type and len([kind for kind in trials if kind.startswith("cluster.gres=gpu:")]) > 1
    if several and typed in accepted:
        yield f"  gres: {_value(typed)}  # the partition has several types"
    else:
        gres = accepted[0] if accepted else "null"
        yield f"  gres: {gres if gres == 'null' else _value(gres)}  # granted: {listed(accepted, 'no way')}"


def _site_lines(machine: Machine) -> Iterator[str]:
    names = listed(f"{each.name} ({each.address})" for each in machine.interfaces)
    yield f"  interface: null  # DECIDE: the fabric's (ib0, hsn0); null: the default route's. Here: {names}"
    yield "  stage_dir: null  # DECIDE: a disk of every node (/local) to copy models to once; submit=true names some"
    yield "  setup: []  # DECIDE: shell lines of every job: [module load cuda]"
    yield "  environment: {}  # DECIDE: variables of every worker: {UCX_NET_DEVICES: 'mlx5_0:1'}"
    found = listed(machine.containers)
    yield f"  engine_prefix: []  # DECIDE: [apptainer, exec, --nv, image.sif] to run the engine in one. Here: {found}"


def _controller(site: Site, nodes: Nodes) -> Iterator[str]:
    """In a partition that gives whole nodes, a small job of its own kind elsewhere."""
    small = [each for each in _open_partitions(site) if not each.is_exclusive and not site.gpus_of(each.name)]
    if nodes.partition.is_exclusive and small:
        yield "controller:"
        yield f"  partition: {_value(small[0].name)}  # {nodes.partition.name} gives whole nodes"


def _pools(nodes: Nodes) -> Iterator[str]:
    size = tensor_parallel(nodes)
    if nodes.gpus and num_nodes(nodes) * nodes.gpus < 2:
        yield "  serve: {role: any}  # one GPU prefills and decodes"
        return
    parallel = f", tensor_parallel: {size}" if nodes.gpus else ""
    yield f"  prefill: {{role: prefill{parallel}}}  # DECIDE: roles, replicas and tensor_parallel"
    yield f"  decode: {{role: decode{parallel}}}"


def num_nodes(nodes: Nodes) -> int:
    return 2 if nodes.gpus and nodes.usable >= 2 else 1


def tensor_parallel(nodes: Nodes) -> int:
    """A power of two: half of the only node, or one of two nodes."""
    most = nodes.gpus if num_nodes(nodes) == 2 else nodes.gpus // 2
    return 1 << (max(1, min(most, MAX_TENSOR_PARALLEL)).bit_length() - 1)


def walltime_min(site: Site, partition: Partition) -> int:
    """Under the limits of the partition, of its QOS, and of the user's own by default."""
    names = {partition.fields.get("QoS", ""), *(each.default_qos for each in site.associations or ())}
    limits = [minutes(each.limits.get("MaxWall", "")) for each in site.qos if each.name in names]
    return min(limit for limit in (LONGEST_MIN, partition.max_minutes, *limits) if limit)


def _limit_words(partition: Partition) -> str:
    limit = partition.max_minutes
    return f"{partition.name} allows {limit}" if limit is not None else f"{partition.name} has no limit"


def gpu_memory_gib(gpu_type: str) -> float:
    return _known_memory(gpu_type) or UNKNOWN_GPU_GIB


def data_sheet(gpu_type: str) -> str | None:
    return next((name for name in GPUS if name in gpu_type.lower()), None)


def _known_memory(gpu_type: str) -> float | None:
    """`nvidia_a100-sxm4-40gb`, `h100`."""
    name = gpu_type.lower()
    if "a100" in name and "40gb" in name:
        return GPU_MEMORY_GIB["a100_40"]
    return next((gib for part, gib in GPU_MEMORY_GIB.items() if part in name), None)


def _comment(lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield "  # Other partitions:"
        yield from (f"  #   {line}" for line in found)


def _value(text: str) -> str:
    """A YAML scalar that stays a string."""
    plain = re.fullmatch(r"[A-Za-z_][\w.:/-]*", text) and text.lower() not in (
        "null",
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
    )
    return text if plain and not text.endswith(":") else json.dumps(text)
