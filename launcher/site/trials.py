"""What `sbatch --test-only` is asked, and what its answers mean: how GPUs are asked for, and the plan's own jobs.

Pure. A trial queues nothing. The site's submission plugins judge it like a real job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from launcher.schema import ClusterConfig
from launcher.site.facts import Trial
from launcher.site.finding import Finding, fault, listed, ok

PER_NODE = "--gpus-per-node=1"


def gpu_requests(cluster: ClusterConfig | None, kinds: Sequence[str]) -> dict[str, list[str]]:
    """By the words that a cluster's file would carry: `cluster.gres=...`."""
    requests = {"cluster.gres=null": [PER_NODE], "cluster.gres=gpu": ["--gres=gpu:1"]}
    requests |= {f"cluster.gres=gpu:{kind}": [f"--gres=gpu:{kind}:1"] for kind in kinds if kind}
    if cluster is not None and cluster.gres:
        requests.setdefault(f"cluster.gres={cluster.gres}", [f"--gres={cluster.gres}:1"])
    return requests


def trial_command(partition: str | None, cluster: ClusterConfig | None, options: Sequence[str]) -> list[str]:
    """With what the cluster's file says of every job."""
    named: dict[str, Any] = {"partition": partition}
    named |= {"account": cluster.account, "qos": cluster.qos, **cluster.sbatch} if cluster is not None else {}
    site = [f"--{key}" if value is True else f"--{key}={value}" for key, value in named.items() if value is not None]
    return ["sbatch", "--test-only", "--nodes=1", "--ntasks=1", "--time=5", *site, *options, "--wrap=true"]


def gpu_style_finding(cluster: ClusterConfig, trials: Mapping[str, Trial]) -> Finding:
    configured = f"cluster.gres={cluster.gres or 'null'}"
    accepted = [setting for setting, trial in trials.items() if trial.accepted]
    words = listed(accepted, "no way")
    if trials[configured].accepted:
        return ok("gres", f"one GPU is granted with {words}")
    seen = f"{configured}: {trials[configured].words}; granted: {words}"
    if not accepted:
        return fault("gres", seen, "act on Slurm's words, or set another cluster.partition")
    alike = [setting for setting in accepted if (":" in setting) == (":" in configured)] or accepted
    (closest,) = get_close_matches(configured, alike, n=1, cutoff=0)
    return fault("gres", seen, f"set {closest}", closest)


def job_findings(trials: Mapping[str, Trial]) -> Iterator[Finding]:
    """Each distinct script of the plan, exactly as it would be handed in."""
    refusals: dict[str, list[str]] = {}
    for name, trial in trials.items():
        if trial.accepted:
            when = f", to start at {trial.start}" if trial.start else ""
            yield ok("jobs", f"{name}: accepted{when}")
        else:
            refusals.setdefault(trial.words, []).append(name)
    for words, names in refusals.items():
        yield fault("jobs", f"{listed(names)}: {words}", "action=plan shows the script; change what Slurm names")
