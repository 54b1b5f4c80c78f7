"""Does what is configured fit the partitions it is sent to? Limits, nodes, GPUs, CPUs, memory.

Pure. Slurm itself would take many of these requests and let them wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from launcher.job import Plan
from launcher.schema import ClusterConfig, Config, ControllerPlace
from launcher.site.facts import Site
from launcher.site.finding import Finding, fault, listed, ok, warning
from launcher.site.slurm_text import NodeShape, Partition

USABLE_STATES = frozenset(
    {"idle", "mix", "alloc", "comp", "resv", "plnd", "planned", "completing", "allocated", "mixed"}
)


def partition_findings(site: Site) -> Iterator[Finding]:
    """What there is, for a site that nobody has configured yet."""
    for partition in site.partitions:
        yield ok("partition", describe(site, partition))


def describe(site: Site, partition: Partition) -> str:
    limit = partition.max_minutes
    parts = [f"{partition.name}{' (default)' if partition.is_default else ''}"]
    parts += [f"at most {limit} min" if limit is not None else "no time limit"]
    parts += [_shape_words(shape) for shape in _merged(site.shapes_of(partition.name))]
    parts += [] if partition.is_up else [f"state {partition.fields.get('State')}"]
    return ", ".join(parts)


def workers_partition(site: Site, cluster: ClusterConfig) -> Partition | None:
    return site.partition(cluster.partition)


def controllers_partition(site: Site, config: Config) -> Partition | None:
    """None: the controller is no job, or its partition does not exist."""
    assert config.cluster is not None
    if config.controller.where is not ControllerPlace.job:
        return None
    return site.partition(config.controller.partition or config.cluster.partition)


def fit_findings(site: Site, config: Config, plan: Plan | None) -> Iterator[Finding]:
    cluster, controller = config.cluster, config.controller
    assert cluster is not None
    partition = workers_partition(site, cluster)
    if partition is None:
        yield _no_such(site, "cluster.partition", cluster.partition)
    else:
        yield ok("partition", f"workers go to {describe(site, partition)}")
        yield from _limits(partition, "cluster.walltime_min", cluster.walltime_min)
        yield from _whose(site, cluster, partition)
        yield from _size(site, cluster, partition)
        yield from _gpus(site, cluster, partition)
        yield from _job_nodes(plan, partition)
    if controller.where is ControllerPlace.job and controller.partition is not None:
        theirs = controllers_partition(site, config)
        if theirs is None:
            yield _no_such(site, "controller.partition", controller.partition)
        else:
            yield ok("partition", f"the controller goes to {describe(site, theirs)}")
            key = "cluster.walltime_min" if controller.walltime_min is None else "controller.walltime_min"
            yield from _limits(theirs, key, controller.walltime_min or cluster.walltime_min)
            yield from _whose(site, cluster, theirs)
    elif controller.where is ControllerPlace.job and partition is not None and partition.is_exclusive:
        yield from _whole_node_for_the_controller(site, partition)


def _no_such(site: Site, key: str, name: str | None) -> Finding:
    names = [partition.name for partition in site.partitions]
    if name is None:
        with_gpus = next((each for each in names if site.gpus_of(each)), names[0])
        seen = "the site has no default partition"
        return fault("partition", seen, f"set {key} to one of {listed(names)}", f"{key}={with_gpus}")
    close = get_close_matches(name, names, n=1, cutoff=0.5) or names[:1]
    return fault(
        "partition", f"{key}={name}: there is no such partition", f"use one of {listed(names)}", f"{key}={close[0]}"
    )


def _limits(partition: Partition, key: str, walltime_min: int) -> Iterator[Finding]:
    if not partition.is_up:
        state = partition.fields.get("State")
        yield fault("partition", f"{partition.name} is {state}", "jobs wait until the site sets it UP; use another one")
    limit = partition.max_minutes
    if limit is not None and walltime_min > limit:
        yield fault(
            "partition",
            f"{key} is {walltime_min}, {partition.name} allows {limit} minutes: such a job waits for ever",
            f"set {key}={limit} or less; workers are replaced when theirs ends",
            f"{key}={limit}",
        )


def _whose(site: Site, cluster: ClusterConfig, partition: Partition) -> Iterator[Finding]:
    """Lists of accounts and QOS that a partition keeps by itself."""
    accounts = [cluster.account] if cluster.account else [each.account for each in site.associations or ()]
    allowed, denied = partition.names("AllowAccounts"), partition.names("DenyAccounts") or ()
    if accounts and allowed is not None and not set(accounts) & set(allowed):
        yield fault(
            "partition",
            f"{partition.name} is for the accounts {listed(allowed)}; yours: {listed(accounts)}",
            "set cluster.account to one of them that you may use, or another cluster.partition",
        )
    if cluster.account in denied:
        yield fault(
            "partition",
            f"{partition.name} denies account {cluster.account}",
            "set another cluster.account or cluster.partition",
        )
    qos = partition.names("AllowQos")
    if cluster.qos is not None and qos is not None and cluster.qos not in qos:
        yield fault(
            "partition",
            f"{partition.name} takes the QOS {listed(qos)}, not {cluster.qos}",
            f"set cluster.qos={qos[0]}",
            f"cluster.qos={qos[0]}",
        )


def _size(site: Site, cluster: ClusterConfig, partition: Partition) -> Iterator[Finding]:
    shapes = site.shapes_of(partition.name)
    fitting = [shape for shape in shapes if _gpus_on(shape, cluster) >= cluster.gpus_per_node] or shapes
    if not fitting:
        return
    cpus = max(shape.cpus for shape in fitting)
    mem_gb = max(shape.mem_mb for shape in fitting) // 1024
    if cluster.cpus_per_node > cpus:
        yield _too_many("cluster.cpus_per_node", cluster.cpus_per_node, cpus, partition)
    if cluster.mem_gb is not None and cluster.mem_gb > mem_gb:
        yield _too_many("cluster.mem_gb", cluster.mem_gb, mem_gb, partition)
    there = sum(shape.nodes for shape in fitting)
    usable = sum(shape.nodes for shape in fitting if shape.state in USABLE_STATES)
    if there < cluster.nodes:
        yield _too_many("cluster.nodes", cluster.nodes, there, partition)
    elif usable < cluster.nodes:
        words = listed(map(_shape_words, fitting))
        seen = f"cluster.nodes is {cluster.nodes}; {usable} such nodes of {partition.name} are up ({words})"
        setting = f"cluster.nodes={usable}" if usable else ""
        todo = f"wait until more are back, or set {setting}" if setting else "wait until some are back"
        yield warning("partition", seen, todo, setting)


def _gpus_on(shape: NodeShape, cluster: ClusterConfig) -> int:
    kind = gres_type(cluster.gres)
    return shape.gpus.get(kind, 0) if kind else max(shape.gpus.values(), default=0)


def _too_many(key: str, value: int, most: int, partition: Partition) -> Finding:
    whose = f"{partition.name} has" if key == "cluster.nodes" else f"the nodes of {partition.name} have"
    seen = f"{key} is {value}, {whose} {most}"
    return fault("partition", seen, f"set {key}={most}", f"{key}={most}")


def _gpus(site: Site, cluster: ClusterConfig, partition: Partition) -> Iterator[Finding]:
    gpus = site.gpus_of(partition.name)
    if cluster.gpus_per_node == 0 and not gpus:
        return
    most = max(gpus.values(), default=0)
    kind = gres_type(cluster.gres)
    words = gpu_words(gpus)
    if kind and kind not in gpus:
        known = sorted(each for each in gpus if each)
        close = get_close_matches(kind, known, n=1) or known[:1]
        setting = f"cluster.gres=gpu:{close[0]}" if close else "cluster.gres=gpu"
        yield fault("gpus", f"cluster.gres={cluster.gres}; {partition.name} has {words}", f"set {setting}", setting)
    elif cluster.gpus_per_node > (gpus[kind] if kind else most):
        setting = f"cluster.gpus_per_node={gpus[kind] if kind else most}"
        seen = f"cluster.gpus_per_node is {cluster.gpus_per_node}; a node of {partition.name} has {words}"
        yield fault("gpus", seen, f"set {setting}", setting)
    elif not kind and len(gpus) > 1:
        name = max(gpus, key=lambda each: gpus[each])
        yield warning(
            "gpus",
            f"{partition.name} has {words}: engines that exchange KV may get different ones",
            f"name one: cluster.gres=gpu:{name}",
            f"cluster.gres=gpu:{name}",
        )
    else:
        yield ok("gpus", f"{words} on a node of {partition.name}")


def _job_nodes(plan: Plan | None, partition: Partition) -> Iterator[Finding]:
    most = partition.max_nodes
    for worker in plan.workers if plan is not None else ():
        if most is not None and worker.job.num_nodes > most:
            pool = worker.spec.pool
            yield fault(
                "partition",
                f"a worker of {pool} takes {worker.job.num_nodes} nodes, {partition.name} allows {most} per job",
                f"set pools.{pool}.nodes={most} or less, or another cluster.partition",
                f"pools.{pool}.nodes={most}",
            )
            return


def _whole_node_for_the_controller(site: Site, partition: Partition) -> Iterator[Finding]:
    others = [
        each.name for each in site.partitions if each.is_up and not each.is_exclusive and not site.gpus_of(each.name)
    ]
    setting = f"controller.partition={others[0]}" if others else ""
    yield warning(
        "partition",
        f"{partition.name} gives whole nodes: the controller's small job takes one of its own",
        f"set {setting}" if setting else "start it on a service node: controller.where=foreground",
        setting or "controller.where=foreground",
    )


def gres_type(gres: str | None) -> str:
    return gres.partition(":")[2] if gres else ""


def gpu_words(gpus: dict[str, int]) -> str:
    return listed((f"{number} {kind or 'GPUs'}" for kind, number in sorted(gpus.items())), "no GPUs")


def _shape_words(shape: NodeShape) -> str:
    gpus = f", {gpu_words(shape.gpus)}" if shape.gpus else ""
    return f"{shape.nodes} {shape.state} nodes of {shape.cpus} CPUs, {shape.mem_mb // 1024} GB{gpus}"


def _merged(shapes: list[NodeShape]) -> list[NodeShape]:
    """At most three groups: a large site has dozens."""
    return shapes[:3]
