"""What the user may charge, and the limits of association and QOS, against what the run asks for.

Pure. A job over such a limit is queued all the same and waits with a reason like QOSMaxGRESPerUser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.job import Plan
from launcher.schema import ClusterConfig, Config
from launcher.site.facts import Site
from launcher.site.finding import Finding, fault, listed, ok, warning
from launcher.site.partitions import gres_type
from launcher.site.slurm_text import Association, count, minutes, tres

GPU = "gres/gpu"


def account_findings(site: Site, config: Config, plan: Plan | None) -> Iterator[Finding]:
    cluster = config.cluster
    assert cluster is not None
    enforced = site.config.get("AccountingStorageEnforce", "none")
    if site.associations is None:
        words = site.accounting_fault or "accounting is off"
        if "associations" in enforced or "limits" in enforced:
            todo = "ask the site for your accounts and QOS; limits could not be compared"
            yield warning("account", f"sacctmgr does not answer ({words}), but limits are enforced", todo)
        else:
            yield ok("account", "accounts and QOS are not enforced")
        return
    usable = _usable(site, cluster)
    if not site.associations and "associations" in enforced:
        yield fault("account", f"{site.user} has no account on this cluster", "ask the site or your project for one")
    elif not usable and site.associations:
        yield _wrong_account(site, cluster)
    else:
        names = listed(dict.fromkeys(each.account for each in site.associations))
        charged = cluster.account or f"{site.default_account} (your default)".strip()
        yield ok("account", f"account {charged} of {names}; enforced: {enforced}")
        yield from _qos(cluster, usable)
        yield from _limits(site, config, plan, usable)


def _usable(site: Site, cluster: ClusterConfig) -> list[Association]:
    """Those that a job of this configuration may be charged to."""
    account = cluster.account or site.default_account
    return [each for each in _of_partition(site, cluster) if not account or each.account == account]


def _of_partition(site: Site, cluster: ClusterConfig) -> list[Association]:
    partition = site.partition(cluster.partition)
    everywhere = [each for each in site.associations or () if not each.partition]
    return everywhere + [each for each in site.associations or () if partition and each.partition == partition.name]


def _wrong_account(site: Site, cluster: ClusterConfig) -> Finding:
    others = list(dict.fromkeys(each.account for each in _of_partition(site, cluster)))
    account = cluster.account or f"{site.default_account} (your default)".strip()
    where = cluster.partition or "the default partition"
    setting = f"cluster.account={others[0]}" if others else ""
    return fault(
        "account",
        f"{site.user} may not charge account {account} in {where}; possible: {listed(others)}",
        f"set {setting}" if setting else "ask the site or your project for an account",
        setting,
    )


def _qos(cluster: ClusterConfig, usable: list[Association]) -> Iterator[Finding]:
    known = list(dict.fromkeys(name for each in usable for name in each.qos))
    if cluster.qos is not None and known and cluster.qos not in known:
        yield fault(
            "account",
            f"cluster.qos={cluster.qos} is not among yours: {listed(known)}",
            f"set cluster.qos={known[0]}",
            f"cluster.qos={known[0]}",
        )
    elif known:
        yield ok("account", f"QOS {cluster.qos or 'by default'} of {listed(known)}")


def _limits(site: Site, config: Config, plan: Plan | None, usable: list[Association]) -> Iterator[Finding]:
    cluster = config.cluster
    assert cluster is not None
    partition = site.partition(cluster.partition)
    defaults = [each.default_qos for each in usable if each.default_qos] or [q for each in usable for q in each.qos][:1]
    names = [cluster.qos] if cluster.qos else defaults[:1]
    names += [partition.fields.get("QoS", "")] if partition else []
    sources = {f"QOS {each.name}": each.limits for each in site.qos if each.name in names}
    sources |= {f"account {each.account}": each.limits for each in usable[:1]}
    found = [finding for source, limits in sources.items() for finding in _compared(source, limits, cluster, plan)]
    yield from found or [ok("account", f"the limits of {listed(sources, 'no QOS')} are not in the way")]


def _compared(source: str, limits: Mapping[str, str], cluster: ClusterConfig, plan: Plan | None) -> Iterator[Finding]:
    longest = minutes(limits.get("MaxWall", ""))
    if longest is not None and cluster.walltime_min > longest:
        yield fault(
            "account",
            f"cluster.walltime_min is {cluster.walltime_min}, {source} allows {longest}",
            f"set cluster.walltime_min={longest} or less",
            f"cluster.walltime_min={longest}",
        )
    if plan is None:
        return
    jobs = len(plan.workers) + (plan.controller is not None)
    for name in ("MaxJobs", "MaxJobsPU", "MaxSubmit", "MaxSubmitPU", "GrpJobs", "GrpSubmit"):
        most = count(limits.get(name, ""))
        if most is not None and jobs > most:
            todo = "ask for fewer workers (pools.NAME.replicas), or for a larger limit or another cluster.qos"
            yield fault("account", f"the run is {jobs} jobs, {source} allows {most} ({name})", todo)
    taken = [worker.job.num_nodes * worker.spec.gpus_per_node for worker in plan.workers]
    for name, asked in (
        ("MaxTRES", max(taken)),
        *((name, sum(taken)) for name in ("MaxTRESPU", "MaxTRESPA", "GrpTRES")),
    ):
        most = _most_gpus(limits.get(name, ""), gres_type(cluster.gres))
        if most is not None and asked > most:
            what = "a worker takes" if name == "MaxTRES" else "the run takes"
            todo = "ask for fewer GPUs (replicas, tensor_parallel), or for a larger limit or another cluster.qos"
            yield fault("account", f"{what} {asked} GPUs, {source} allows {most} ({name})", todo)


def _most_gpus(limit: str, kind: str) -> int | None:
    """Of this type; limits of other types are not ours."""
    names = (GPU, f"{GPU}:{kind}") if kind else (GPU,)
    return min((number for name, number in tres(limit).items() if name in names), default=None)
