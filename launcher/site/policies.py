"""What a site's Slurm does to everybody's jobs, and what that means for a run.

Pure. Judges `scontrol show config` and the reservations; partitions, accounts and requests are judged elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from launcher.schema import ClusterConfig, Config
from launcher.site.facts import Site
from launcher.site.finding import Finding, fault, listed, ok, warning
from launcher.site.slurm_text import Partition, count, options

OLDEST = (20, 11)  # whose commands have what is asked of them
DEFAULT_CRED_EXPIRE_S = 120
SHORT_MEMORY_POLLS = 2
PRIVATE_FOLDERS = ("/tmp", "/dev/shm")


def slurm_findings(site: Site) -> Iterator[Finding]:
    if site.missing:
        yield fault(
            "slurm",
            f"{listed(site.missing)}: command not found",
            "run this on a login node of the cluster, after its `module load slurm` if it has one; without Slurm use"
            " +cluster=local",
        )
    elif site.fault:
        yield fault("slurm", site.fault, "ask the site whether Slurm's controller is up, then run this again")
    elif not site.partitions:
        yield fault("slurm", "no partition is visible to you", "ask the site for access to one")
    else:
        yield _version(site)


def _version(site: Site) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", site.version)
    name = site.config.get("ClusterName", "?")
    if found and (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return fault("slurm", f"version {site.version} on {name}", f"Slurm {oldest} or newer is needed")
    return ok(
        "slurm", f"version {site.version} on cluster {name}, partitions: {listed(p.name for p in site.partitions)}"
    )


def policy_findings(site: Site, config: Config) -> Iterator[Finding]:
    """For a cluster that is configured."""
    yield _memory_of_jobs(site, config)
    yield _limits_enforced(site)
    yield _ends(site, config)
    yield from _confinement(site)
    yield from _private_folders(site, config)
    yield from _maintenance(site, config)
    if "JobSubmitPlugins" in site.config:
        plugins = site.config["JobSubmitPlugins"]
        yield ok("job_submit", f"jobs pass the site's {plugins}; what it refuses is told as a refusal below")


def preemption_findings(site: Site, config: Config, partition: Partition) -> Iterator[Finding]:
    """Workers that are taken are replaced; what a stream loses depends on the time between word and kill."""
    kind = site.config.get("PreemptType", "preempt/none").removeprefix("preempt/")
    if kind == "none" or not partition.preempts or (kind == "partition_prio" and not _has_stronger(site, partition)):
        yield ok("preemption", f"jobs in {partition.name} are not preempted")
        return
    kill_wait = site.config.get("KillWait", "30 sec")
    by = "by partitions of a higher tier" if kind == "partition_prio" else "by a stronger QOS"
    mode = partition.fields.get("PreemptMode", "")
    signal = "SIGUSR2" if _sends_user_signal(site) else "SIGTERM"
    seen = f"jobs in {partition.name} may be taken {by} ({mode}): {signal}, {partition.grace_s} s of grace"
    seen += f", then SIGKILL {kill_wait} after SIGTERM"
    wanted_s = int(config.engine.drain_timeout_s)
    if partition.grace_s >= wanted_s:
        yield ok("preemption", f"{seen}; enough to drain")
    else:
        yield warning(
            "preemption",
            seen,
            f"a drain takes up to {wanted_s} s (engine.drain_timeout_s): longer streams have to go on elsewhere, and"
            " those that cannot end with an error; use a"
            " partition or QOS that is not preempted where that matters",
        )


def _memory_of_jobs(site: Site, config: Config) -> Finding:
    """Without sacct the queue is all there is to tell how a job ended."""
    age_s = count(site.config.get("MinJobAge", ""))
    off = "none" in site.config.get("AccountingStorageType", "none")
    accounting = "sacct is off, which Sluice does not need" if off else "sacct is on, and not needed"
    if age_s == 0:
        return ok("accounting", f"{accounting}; ended jobs are told until Slurm restarts")
    seen = f"{accounting}; squeue tells of an ended job for {age_s} s (MinJobAge)"
    wanted_s = SHORT_MEMORY_POLLS * config.controller.poll_interval_s
    if age_s is None or age_s >= wanted_s:
        return ok("accounting", seen)
    lower = max(1, age_s // SHORT_MEMORY_POLLS)
    return warning(
        "accounting",
        seen,
        f"why a job ended may be missed: ask the queue more often: controller.poll_interval_s={lower}",
        f"controller.poll_interval_s={lower}",
    )


def _limits_enforced(site: Site) -> Finding:
    enforced = site.config.get("EnforcePartLimits", "NO")
    if enforced == "NO":
        return ok("limits", "EnforcePartLimits=NO: Slurm queues what never fits; it is compared here instead")
    return ok("limits", f"EnforcePartLimits={enforced}: a job over a partition's limit is refused at once")


def _ends(site: Site, config: Config) -> Finding:
    auth = options(site.config.get("AuthInfo", ""))
    delay_s = int(auth.get("cred_expire") or DEFAULT_CRED_EXPIRE_S) + 1
    kill_wait_s = count(site.config.get("KillWait", "")) or 30
    lost_s = count(site.config.get("SlurmdTimeout", "")) or 300
    seen = (
        f"a cancelled job is killed {kill_wait_s} s after SIGTERM (KillWait), a requeued one waits {delay_s} s, a lost"
        f" node is given up after {lost_s} s (SlurmdTimeout)"
    )
    if kill_wait_s < config.engine.drain_timeout_s:
        seen += "; action=stop drains before it cancels, scancel by hand does not leave the time"
    return ok("ends", seen)


def _confinement(site: Site) -> Iterator[Finding]:
    if "gpu" not in site.config.get("GresTypes", ""):
        return
    in_cgroups = "task/cgroup" in site.config.get("TaskPlugin", "")
    confined = site.config.get("ConstrainDevices", "").lower()
    if in_cgroups and confined == "yes":
        yield ok("confinement", "a job sees only its own GPUs (ConstrainDevices=yes)")
    elif in_cgroups and not confined:
        yield ok(
            "confinement", "task/cgroup is on; Slurm does not say whether it confines GPUs, submit=true counts them"
        )
    else:
        yield warning(
            "confinement",
            "GPUs are not confined: every job on a node can open all of them; engines keep to CUDA_VISIBLE_DEVICES",
            "on nodes shared with others ask for whole nodes (cluster.sbatch.exclusive=true), or ask the site for"
            " ConstrainDevices=yes",
        )


def _private_folders(site: Site, config: Config) -> Iterator[Finding]:
    """A copy of the model in a folder that ends with its job would be made by every job anew."""
    stage_dir = config.cluster.stage_dir if config.cluster is not None else None
    private = site.config.get("JobContainerType", "").removeprefix("job_container/") in ("tmpfs", "tmp")
    if private and stage_dir is not None and stage_dir.startswith(PRIVATE_FOLDERS):
        yield warning(
            "staging",
            f"each job has a /tmp of its own (job_container/tmpfs), and cluster.stage_dir={stage_dir} lies in it",
            "set cluster.stage_dir to a disk of the nodes that jobs share, or to null",
        )


def _maintenance(site: Site, config: Config) -> Iterator[Finding]:
    walltime = config.cluster.walltime_min if config.cluster else 0
    for reservation in site.reservations:
        if "MAINT" in reservation.flags:
            yield warning(
                "maintenance",
                f"reservation {reservation.name} takes {reservation.nodes} from {reservation.start}",
                f"jobs that would run into it do not start: near it choose cluster.walltime_min below {walltime}",
            )


def _has_stronger(site: Site, partition: Partition) -> bool:
    tier = count(partition.fields.get("PriorityTier", "")) or 0
    return any((count(other.fields.get("PriorityTier", "")) or 0) > tier for other in site.partitions)


def _sends_user_signal(site: Site) -> bool:
    return "preempt_send_user_signal" in site.config.get("SlurmctldParameters", "") or (
        "send_user_signal" in site.config.get("PreemptParameters", "")
    )


def memory_finding(site: Site, cluster: ClusterConfig, partition: Partition) -> Iterator[Finding]:
    """Where memory is shared out and no default is set, a job that names none takes the whole node's."""
    consumable = "MEMORY" in site.config.get("SelectTypeParameters", "").upper()
    if not consumable or cluster.mem_gb is not None:
        return
    default = [_default_memory(partition.fields), _default_memory(site.config)]
    words = listed((word for word in default if word), "the whole node's")
    whole = max((shape.mem_mb for shape in site.shapes_of(partition.name)), default=0) // 1024
    yield warning(
        "memory",
        f"memory is shared out by job, cluster.mem_gb is not set, and the default is {words}",
        f"set cluster.mem_gb={whole}, a node's memory; workers get their part of it by GPUs",
        f"cluster.mem_gb={whole}",
    )


def _default_memory(fields: Mapping[str, str]) -> str:
    """`DefMemPerCPU=4000`, or the partition's `JobDefaults=DefMemPerGPU=204800`."""
    named = [f"{key}={value}" for key, value in fields.items() if key.startswith("DefMem") and count(value)]
    named += [value for key, value in fields.items() if key == "JobDefaults" and "DefMem" in value]
    return listed(named, "")
