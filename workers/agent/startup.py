"""What an agent does before there is an engine: it finds out whether one can start here, and brings the model near.

Owns the processes that do so, and their ends. Judges nothing (see `preflight`) and changes nothing of the worker's
phase.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec

from workers.agent.engine_child import kill_group, lines_of
from workers.agent.engine_command import engine_command, engine_environment, engine_folders
from workers.agent.guard import guarded
from workers.agent.network import NetworkFault, address_of, bindable_port
from workers.agent.preflight import EngineFacts, Facts, faults
from workers.agent.probe import MARK
from workers.agent.slurm_env import SlurmEnv
from workers.faults import WorkerFault
from workers.spec import WorkerSpec
from workers.staging.staging import locked
from workers.staging.staging_process import Checked, Progress, Refused, Staged, Told

CODE_DIR = str(Path(__file__).resolve().parent.parent.parent)
LOOK_TIMEOUT_S = 120.0  # a cold shared file system takes its time over the first imports
HANGS = f"the look at this node did not end within {LOOK_TIMEOUT_S:.0f} s: does a file system hang?"
END_TIMEOUT_S = 5.0
LAST_LINES = 4

_told: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)


def raise_limits() -> None:
    """Slurm hands on the soft limits of the shell that submitted the job; the node's own are the hard ones."""
    for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK):
        _, hard = resource.getrlimit(which)
        resource.setrlimit(which, (hard, hard))


# ---------------------------------------------------------------- the look at the node


async def preflight(spec: WorkerSpec, env: SlurmEnv, spec_path: Path, local_dir: Path) -> EngineFacts:
    """Raises WorkerFault with every reason why the engine cannot start here."""
    facts = await look(spec, env, spec_path, local_dir)
    found = faults(spec, facts)
    if found or facts.engine is None:
        raise WorkerFault("\n".join(found))
    return facts.engine


async def look(spec: WorkerSpec, env: SlurmEnv, spec_path: Path, local_dir: Path) -> Facts:
    """Of this node, as the engine would see it."""
    network_fault = _network_fault(spec, env)
    staging_fault, model = "", spec.engine.model_path
    if spec.stage_dir is not None:
        checked = await _check_staging(spec_path)
        staging_fault = checked.reason if isinstance(checked, Refused) else ""
        model = str(Path(checked.folder).parent) if isinstance(checked, Checked) else spec.stage_dir
    engine = await _probe(spec, spec_path, local_dir, model)
    if isinstance(engine, str):
        return Facts(network_fault=network_fault, staging_fault=staging_fault, engine_fault=engine)
    return Facts(network_fault=network_fault, staging_fault=staging_fault, engine=engine)


def _network_fault(spec: WorkerSpec, env: SlurmEnv) -> str:
    try:
        bindable_port(address_of(spec.interface), env.job, spec.index, "handoff")
    except NetworkFault as fault:
        return str(fault)
    return ""


async def _probe(spec: WorkerSpec, spec_path: Path, local_dir: Path, model: str) -> EngineFacts | str:
    """The facts, or why there are none."""
    folders = await asyncio.to_thread(_existing, spec, engine_folders(spec, str(local_dir), CODE_DIR, model))
    words = (str(spec_path), str(local_dir), *folders)
    command = engine_command(spec, CODE_DIR, os.environ, "workers.agent.probe", *words)
    ours, theirs = socket.socketpair()  # as the engine will have it
    with ours, theirs:
        environment = engine_environment(spec, os.environ, folders)
        async with _child(command, theirs.fileno(), environment) as process:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    return await _facts_in(process)
            except TimeoutError:
                return HANGS


async def _facts_in(process: asyncio.subprocess.Process) -> EngineFacts | str:
    """Libraries and prefix programs may print what they like around the one line, and stay after it."""
    assert process.stdout is not None
    said: deque[str] = deque(maxlen=LAST_LINES)
    async for line in lines_of(process.stdout):
        if line.startswith(MARK):
            return msgspec.json.decode(line.removeprefix(MARK), type=EngineFacts)
        if line.strip():
            said.append(line)
    return " | ".join(said) or f"it ended with status {await process.wait()} and said nothing"


async def engine_process(
    spec: WorkerSpec, spec_path: Path, placement: Path, model: str
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the engine's own process."""
    words = (str(spec_path), str(placement))
    folders = await asyncio.to_thread(_existing, spec, engine_folders(spec, str(placement.parent), CODE_DIR, model))
    command = engine_command(spec, CODE_DIR, os.environ, "workers.host.engine_process", *words)
    return command, engine_environment(spec, os.environ, folders)


def _existing(spec: WorkerSpec, folders: list[str]) -> list[str]:
    """A folder that is not there cannot be passed into a container."""
    with suppress(OSError):  # the probe, inside, says why
        Path(spec.cache_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    return [folder for folder in folders if Path(folder).is_dir()]


# ---------------------------------------------------------------- the model, near


async def _check_staging(spec_path: Path) -> Checked | Refused:
    async with _child(_staging("check", spec_path), asyncio.subprocess.DEVNULL, os.environ) as process:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            return Refused(f"cluster.stage_dir: {HANGS}")
    lines = output.decode(errors="replace").splitlines()
    told = _understood(lines)
    return told if isinstance(told, Checked | Refused) else Refused(f"cluster.stage_dir: {lines[-LAST_LINES:]}")


async def staged(spec_path: Path, on_progress: Callable[[Progress], None], held: ExitStack) -> str:
    """The folder with the model on this node; it stays while `held` does. Raises WorkerFault."""
    lines: list[str] = []
    async with _child(_staging("copy", spec_path), asyncio.subprocess.PIPE, os.environ) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            lines = [*lines[-LAST_LINES:], line.decode(errors="replace").strip()]
            told = _understood(lines)
            if isinstance(told, Progress):
                on_progress(told)
            elif isinstance(told, Staged):
                held.enter_context(locked(Path(told.lock), fcntl.LOCK_SH))  # beside the process's own
                return told.folder
            elif isinstance(told, Refused):
                raise WorkerFault(told.reason)
    raise WorkerFault("cluster.stage_dir: staging ended by itself: " + " | ".join(lines))


def _staging(what: str, spec_path: Path) -> list[str]:
    return [sys.executable, "-m", "workers.staging.staging_process", what, str(spec_path)]


def _understood(lines: Sequence[str]) -> Told | None:
    try:
        return _told.decode(lines[-1]) if lines else None
    except msgspec.DecodeError:
        return None


# ---------------------------------------------------------------- processes


@asynccontextmanager
async def _child(
    command: Sequence[str], stdin: int, environment: dict[str, str] | os._Environ[str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Nothing of its group is left afterwards."""
    with guarded(command) as (words, guard):
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            pass_fds=(guard,),
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill_group(process.pid)
            with suppress(TimeoutError):  # one that a file system holds on to is left behind
                async with asyncio.timeout(END_TIMEOUT_S):
                    await process.wait()
