"""One controller per run: `controller.json` says which, and this says whether it still lives.

Owns that file. Uses no lock: shared file systems often have none across nodes. On the same host the process
is looked at; elsewhere a live controller shows by its fresh `status.json`.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from pathlib import Path

import msgspec

from launcher.rundir import Owner, RunDir, read_optional
from launcher.view.run_status import STALE_S, RunStatus
from workers.spec import write_json

log = logging.getLogger("sluice.ownership")

MODULE = "launcher.control.controller"
LOOK_S = 1.0
SETTLE_S = 0.5  # two that start at once: the later write wins, and both look again


class OwnedByOther(Exception):
    """Another controller works on this run."""


def claim(run: RunDir, job: str) -> Owner:
    """Become the run's controller; waits until another host's is provably silent, and while the run folder takes no
    file. Raises OwnedByOther."""
    deadline = time.time() + STALE_S
    while True:
        if (other := living_owner(run)) is None or (job and other.job == job):
            before = read_optional(run.owner, Owner)
            proxy, after = ("", "") if before is None else (before.proxy, before.after if before.job == job else "")
            try:
                return take(run, this_process(job, proxy, after))
            except OSError as fault:
                log.error("%s: %s; trying again", run.owner, fault)
        elif other.host == socket.gethostname() or time.time() > deadline:
            raise OwnedByOther(f"run folder {run.path} has a controller: process {other.pid} on {other.host}")
        time.sleep(LOOK_S)


def this_process(job: str, proxy: str, after: str = "") -> Owner:
    return Owner(
        id=secrets.token_hex(4),
        host=socket.gethostname(),
        pid=os.getpid(),
        job=job,
        started_at=time.time(),
        proxy=proxy,
        after=after,
    )


def take(run: RunDir, owner: Owner) -> Owner:
    """Where nobody has it. Raises OwnedByOther, or OSError where the run folder takes no file."""
    write_json(run.owner, owner)
    time.sleep(SETTLE_S)
    if not is_owner(run, owner):
        raise OwnedByOther(f"run folder {run.path}: another controller started at the same time")
    return owner


def give(run: RunDir, owner: Owner, heir: Owner) -> None:
    """From here on `heir` acts. Raises OwnedByOther."""
    if not is_owner(run, owner):
        raise OwnedByOther(f"run folder {run.path}: another controller has taken it over")
    write_json(run.owner, msgspec.structs.replace(heir, started_at=time.time()))


def is_owner(run: RunDir, owner: Owner) -> bool:
    return read_optional(run.owner, Owner) == owner


def living_owner(run: RunDir) -> Owner | None:
    """The controller that works on this run now, as far as can be seen from here."""
    owner = read_optional(run.owner, Owner)
    if owner is None:
        return None
    if owner.host == socket.gethostname():
        return owner if owner.pid != os.getpid() and _is_controller(owner.pid, run.path) else None
    return owner if was_heard(run, owner) else None


def was_heard(run: RunDir, owner: Owner) -> bool:
    """Of late, and not its last words."""
    status = read_optional(run.status, RunStatus)
    if status is None or status.controller != owner.id:
        return time.time() - owner.started_at < STALE_S
    return not status.ended and time.time() - status.written_at < STALE_S


def _is_controller(pid: int, run_dir: Path) -> bool:
    """Process ids are used again: the command line has to be this run's controller."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return False
    return MODULE.encode() in arguments and os.fsencode(run_dir) in arguments


def forget(run: RunDir, owner: Owner) -> None:
    """The controller's last act."""
    if is_owner(run, owner):
        run.owner.unlink()
