"""`python -m launcher.site.node_check FOLDER`: a check job's task on one node. Looks, reports in FOLDER, and ends.

Does what a worker would do, in its order and in its place. Judges nothing (see `nodes`).
"""

from __future__ import annotations

import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from launcher.scheduler.slurm import clean_environment
from launcher.site import node_facts
from launcher.site.check_files import Check, Folder, Listeners, NodeReport, Word
from launcher.site.engine_check import check_engine
from launcher.site.facts import Interface, Trial
from launcher.site.peers import knock_on_all, listening
from launcher.site.probe import CONTAINERS, interfaces, try_request
from workers.agent.network import NetworkFault, address_of
from workers.agent.slurm_env import SlurmEnv, read_slurm_env
from workers.agent.startup import raise_limits
from workers.spec import read_spec, write_json
from workers.staging.mounts import mount_of, parse_mounts

ANSWER_WAIT_S = 60.0
PEER_WAIT_S = 90.0
POLL_S = 0.2
ENDING = threading.Event()


def check_node(folder: Folder, check: Check, env: SlurmEnv) -> NodeReport:
    """Rank 0 holds what the others reach for, until they have reported."""
    own = interfaces()
    is_head = env.node_rank == 0
    with ExitStack() as stack:
        beside = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(ENDING.set)
        endpoints = stack.enter_context(listening(own if is_head else (), check.token))
        answer = beside.submit(_answer_after, folder, env.node_rank)
        if is_head:
            write_json(folder.listeners, Listeners(endpoints))
        peers = {} if is_head else _reached(folder, check.token, own)
        engine = check_engine(folder, check, env)
        trial = _trial(check) if is_head and check.trial else None  # scrubs the environment: last
        mounts = Path("/proc/mounts").read_text()
        mount = mount_of(parse_mounts(mounts), str(folder.path.resolve()))
        report = NodeReport(
            node=env.node,
            rank=env.node_rank,
            mount_kind=mount.kind if mount else "",
            answer_s=answer.result(),
            interfaces=tuple(own),
            default_interface=_default_interface(own),
            peers=peers,
            hcas=tuple(node_facts.hcas()),
            can_rdma=node_facts.can_rdma(),
            scratch=tuple(node_facts.scratch(mounts)),
            containers=tuple(name for name in CONTAINERS if shutil.which(name)),
            num_free_ports=node_facts.num_free_ports(),
            ephemeral_from=node_facts.ephemeral_from(),
            num_gpu_files=node_facts.num_gpu_files(),
            trial=trial,
            engine=engine,
        )
        write_json(folder.report(env.node_rank), report)
        if is_head:
            _await(lambda: all(folder.report(rank).exists() for rank in range(check.num_nodes)), PEER_WAIT_S)
    return report


def _answer_after(folder: Folder, rank: int) -> float | None:
    """How long this node and the one that started the check take to see each other's files."""
    started = time.monotonic()
    write_json(folder.started(rank), Word(platform.node()))
    return time.monotonic() - started if _await(folder.answer.exists, ANSWER_WAIT_S) else None


def _reached(folder: Folder, token: str, own: Sequence[Interface]) -> dict[str, str]:
    if not _await(folder.listeners.exists, PEER_WAIT_S):
        return {each.name: "the first node of the job did not say where it listens" for each in own}
    return knock_on_all(read_spec(folder.listeners, Listeners).endpoints, token, own)


def _await(come: Callable[[], bool], timeout_s: float) -> bool:
    """Files are how nodes meet before they know an address."""
    deadline = time.monotonic() + timeout_s
    while not come():
        if time.monotonic() > deadline or ENDING.wait(POLL_S):
            return False
    return True


def _default_interface(own: Sequence[Interface]) -> str:
    try:
        address = address_of(None)
    except NetworkFault:
        return ""
    return next((each.name for each in own if each.address == address), "")


def _trial(check: Check) -> Trial:
    """As the controller would submit: without the variables of the job that it runs in."""
    clean_environment()
    return try_request(check.trial)


def main() -> None:
    """A cancelled check takes along what it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Folder(Path(sys.argv[1]))
    raise_limits()
    check_node(folder, read_spec(folder.check, Check), read_slurm_env())


if __name__ == "__main__":
    main()
