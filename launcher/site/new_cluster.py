"""`action=new-cluster`: writes `conf/cluster/NAME.yaml` from what the site says of itself.

Thin: puts together `probe` and `draft`. Never overwrites.
"""

from __future__ import annotations

import re
from pathlib import Path

from launcher.config import CONF_DIR
from launcher.refusal import Refused
from launcher.schema import Config
from launcher.site.draft import choose, cluster_file
from launcher.site.policies import slurm_findings
from launcher.site.probe import ask_slurm, look_around, try_request
from launcher.site.trials import gpu_requests, trial_command

FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def new_cluster(config: Config) -> int:
    """Raises Refused."""
    name = config.name or ""
    path = CONF_DIR / "cluster" / f"{name}.yaml"
    if not FILE_NAME.fullmatch(name):
        raise Refused([f"name: {name!r} is no name of a cluster; use a-z, 0-9, - and _"])
    if path.exists():
        raise Refused([f"name: {path} exists and is left alone; choose another name, or remove the file"])
    site = ask_slurm()
    if not site.answers:
        raise Refused([f"{finding.topic}: {finding.seen}; {finding.todo}" for finding in slurm_findings(site)])
    nodes = choose(site)
    partition = nodes.partition.name
    requests = gpu_requests(None, sorted(site.gpus_of(partition))) if nodes.gpus else {}
    trials = {setting: try_request(trial_command(partition, None, options)) for setting, options in requests.items()}
    _write(path, cluster_file(name, site, nodes, trials, look_around([])))
    print(f"{path}\nnext: look at the lines marked DECIDE, then")
    print(f"  python -m launcher action=doctor +cluster={name} submit=true")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x") as file:
            file.write(text)
    except OSError as fault:
        raise Refused([f"name: {path} cannot be written: {fault.strerror}; use a checkout of your own"]) from None
