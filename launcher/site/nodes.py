"""What the nodes of a check job reported, judged: the job itself, its files, submitting from there, the engine.

Pure. The network is `fabric`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.schema import ClusterConfig, Config
from launcher.site.check_files import EngineReport, NodeReport
from launcher.site.checks import Outcome
from launcher.site.fabric import fabric_findings
from launcher.site.finding import Finding, fault, listed, ok, warning
from workers.agent.network import FIRST_PORT, NUM_PORTS
from workers.agent.preflight import GIB

SLOW_FILES_S = 15.0  # agents look for a proxy's file this often
SLOW_IMPORT_S = 60.0
MIN_FREE_PORTS = 0.1  # the part of them
MEMORY_TOLERANCE = 0.02
LOCAL_DISKS = ("btrfs", "ext4", "xfs", "zfs")
STAGE_BYTES = 200 * GIB  # a 70B model in 16 bit, and room


def node_findings(outcome: Outcome, config: Config) -> Iterator[Finding]:
    yield _job(outcome)
    if not outcome.reports:
        return
    head = outcome.reports[0]
    yield from (_files(outcome, report) for report in outcome.reports)
    yield from fabric_findings(outcome, config)
    yield from _submitting(outcome, head)
    for report in outcome.reports:
        if report.engine is not None:
            yield from _engine(outcome, report, report.engine, config)
    yield _ports(head)
    yield _scratch(outcome, head, config)


def _job(outcome: Outcome) -> Finding:
    topic, job = f"job {outcome.name}", f"job {outcome.job}".rstrip()
    if outcome.refused:
        todo = "nothing is known of its nodes; name one that takes small jobs: partitions=[...]"
        return warning(topic, outcome.refused, todo)
    if outcome.complete:
        nodes = listed(report.node for report in outcome.reports)
        return ok(topic, f"{job} ran on {nodes}")
    count = f"{len(outcome.reports)} of {outcome.checked.check.num_nodes} nodes reported"
    if outcome.gave_up:
        why = f" ({outcome.reason})" if outcome.reason else ""
        todo = "run this again when there is room, or name another partition: partitions=[...]"
        return warning(topic, f"{job} was {outcome.state.lower() or 'queued'}{why} and is cancelled; {count}", todo)
    ended = f"{job} ended as {outcome.state}" + (f" ({outcome.reason})" if outcome.reason else "")
    if outcome.log_tail:
        return fault(
            topic, f"{ended}; {count}; its last words: {' | '.join(outcome.log_tail)}", "act on its last words"
        )
    return fault(
        topic,
        f"{ended}; {count}, and its log cannot be seen here either",
        "set runs_dir to a folder on the file system that compute nodes share with this machine",
    )


def _files(outcome: Outcome, report: NodeReport) -> Finding:
    topic, where = f"files {outcome.name}", f"{report.node} sees the run folder on {report.mount_kind or 'no mount'}"
    if report.answer_s is None:
        seen = f"{where}, but not a file that was written here meanwhile"
        return fault(topic, seen, "set runs_dir to another shared folder: workers find the proxy by a file in it")
    seen = f"{where}; a file there and one back took {report.answer_s:.1f} s"
    if report.answer_s > SLOW_FILES_S:
        return warning(topic, seen, "starts take longer by that; another shared folder as runs_dir may be faster")
    return ok(topic, seen)


def _submitting(outcome: Outcome, head: NodeReport) -> Iterator[Finding]:
    if head.trial is None:
        return
    topic = f"sbatch {outcome.name}"
    if head.trial.accepted:
        yield ok(topic, f"jobs can be submitted from {head.node}: the controller may run there")
        return
    yield fault(
        topic,
        f"jobs cannot be submitted from {head.node}: {head.trial.words}",
        "set controller.partition to one whose nodes may submit, or have all jobs submitted at launch, so many"
        " per worker: cluster.chain_length=5",
        "cluster.chain_length=5",
    )


def _engine(outcome: Outcome, report: NodeReport, engine: EngineReport, config: Config) -> Iterator[Finding]:
    topic = f"engine {outcome.name}"
    for line in engine.faults:
        seen, _, todo = line.rpartition("; ")
        yield fault(topic, f"{report.node}: {seen or line}", todo if seen else "change it, then run this again")
    facts = engine.facts.engine
    if facts is None:
        return
    cluster = config.cluster
    assert cluster is not None
    if facts.version:
        yield ok(topic, f"{report.node}: vLLM {facts.version}, CUDA_VISIBLE_DEVICES={facts.visible_devices or ''}")
    if engine.imports is not None:
        yield _imports(topic, report, engine)
    if facts.gpus:
        yield _gpu_memory(topic, report, facts.gpus[0].name, facts.gpus[0].memory_bytes / GIB, cluster)
    if facts.gpus and report.num_gpu_files > len(facts.gpus):
        seen = f"{report.node}: the job got {len(facts.gpus)} GPU and can open {report.num_gpu_files}: not confined"
        yield warning(topic, seen, "on nodes shared with others ask for whole nodes (cluster.sbatch.exclusive=true)")


def _imports(topic: str, report: NodeReport, engine: EngineReport) -> Finding:
    imports = engine.imports
    assert imports is not None
    if imports.fault:
        return fault(topic, f"{report.node} cannot import vLLM: {imports.fault}", "see README.md, Install")
    seen = f"{report.node} imported vLLM in {imports.seconds:.0f} s"
    if imports.seconds > SLOW_IMPORT_S:
        todo = "the file system of the Python environment is slow: install it on a faster one, or run a container image"
        return warning(topic, seen, todo)
    return ok(topic, seen)


def _gpu_memory(topic: str, report: NodeReport, name: str, gib: float, cluster: ClusterConfig) -> Finding:
    setting = f"cluster.gpu_memory_gib={gib:.1f}"
    configured = cluster.gpu_memory_gib
    seen = f"{report.node}: {name}, {gib:.1f} GiB"
    if configured is None or configured > gib * (1 + MEMORY_TOLERANCE):
        return fault(topic, f"{seen}; cluster.gpu_memory_gib is {configured}", f"set {setting}", setting)
    if configured < gib * (1 - MEMORY_TOLERANCE):
        return warning(
            topic, f"{seen}; cluster.gpu_memory_gib={configured} leaves some unused", f"set {setting}", setting
        )
    return ok(topic, seen)


def _ports(head: NodeReport) -> Finding:
    """A worker tries 64 of them."""
    last = FIRST_PORT + NUM_PORTS
    seen = f"{head.node}: {head.num_free_ports} of Sluice's {NUM_PORTS} ports ({FIRST_PORT}-{last}) are free"
    if head.num_free_ports < NUM_PORTS * MIN_FREE_PORTS:
        return fault("ports", seen, "ask the site what holds or reserves them (ss -ltnp, ip_local_reserved_ports)")
    if head.ephemeral_from < last:
        seen += f", and the kernel hands out ports from {head.ephemeral_from}"
        return warning("ports", seen, "workers try others where one is taken; nothing is to be set")
    return ok("ports", f"{seen}, below those that the kernel hands out")


def _scratch(outcome: Outcome, head: NodeReport, config: Config) -> Finding:
    folders = sorted(head.scratch, key=lambda each: -each.free_bytes)
    words = listed((f"{each.path} {each.free_bytes / GIB:.0f} GiB free on {each.kind}" for each in folders), "none")
    disks = [each.path for each in folders if each.kind in LOCAL_DISKS and each.free_bytes >= STAGE_BYTES]
    unused = config.cluster is not None and config.cluster.stage_dir is None and not config.engine.simulated
    hint = f" (cluster.stage_dir={disks[0]} would keep models there)" if disks and unused else ""
    runtimes = listed(head.containers)
    return ok(f"node {outcome.name}", f"{head.node}: node-local space: {words}{hint}; container runtimes: {runtimes}")
