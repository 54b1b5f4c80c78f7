"""What an engine would meet on this node: the worker's own preflight, the engine's imports, a transfer of KV's kind.

Starts each where the engine would be started, behind the same prefix, and ends it. Loads no model.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from launcher.site.check_files import Check, EngineReport, Folder
from workers.agent.engine_child import kill_group
from workers.agent.engine_command import engine_command, engine_environment
from workers.agent.local_folder import local_folder
from workers.agent.preflight import faults
from workers.agent.slurm_env import SlurmEnv
from workers.agent.startup import CODE_DIR, look
from workers.engines import REAL_ENGINES, nixl_transfer
from workers.engines.nixl_transfer import Transfer
from workers.engines.vllm import imports as vllm_imports
from workers.engines.vllm.imports import Imports
from workers.spec import WorkerSpec

IMPORT_TIMEOUT_S = 300.0
TRANSFER_TIMEOUT_S = 2 * nixl_transfer.WAIT_S
TRANSFER = "workers.engines.nixl_transfer"
LAST_LINES = 3
MODEL = "model.path: "

S = TypeVar("S", bound=msgspec.Struct)


def check_engine(folder: Folder, check: Check, env: SlurmEnv) -> EngineReport | None:
    """None: no engine would run here."""
    spec = check.worker
    if spec is None:
        return None
    with local_folder() as local_dir:
        facts = asyncio.run(look(spec, env, folder.spec, local_dir))
    found = tuple(line for line in faults(spec, facts) if check.model_is_here or not line.startswith(MODEL))
    report = EngineReport(facts=facts, faults=found)
    if found or spec.engine.kind not in REAL_ENGINES:
        return report  # what is tried next could only fail of the same
    moves = spec.engine.handoff is not None
    if env.node_rank > 0:
        return msgspec.structs.replace(report, transfer=_read(folder, spec, env.node_rank) if moves else None)
    transfer = _hold_and_read(folder, spec, check.num_nodes) if moves else None  # first: others wait for it
    return msgspec.structs.replace(report, transfer=transfer, imports=_imports(spec))


def _imports(spec: WorkerSpec) -> Imports:
    answer = _answer(spec, "workers.engines.vllm.imports", (), vllm_imports.MARK, Imports, IMPORT_TIMEOUT_S)
    return answer if isinstance(answer, Imports) else Imports(seconds=0.0, fault=answer)


def _hold_and_read(folder: Folder, spec: WorkerSpec, num_readers: int) -> Transfer:
    """The holder serves the other nodes' readers as well, and ends when all have read."""
    with _process(spec, TRANSFER, ("hold", str(folder.path), _device(spec), str(num_readers)), None) as holder:
        mine = _read(folder, spec, 0)
        if not mine.fault:
            try:
                holder.wait(nixl_transfer.WAIT_S)
            except subprocess.TimeoutExpired:
                pass  # the reader that did not come says why
    return mine


def _read(folder: Folder, spec: WorkerSpec, rank: int) -> Transfer:
    words = ("read", str(folder.path), _device(spec), f"reader-{rank}")
    answer = _answer(spec, TRANSFER, words, nixl_transfer.MARK, Transfer, TRANSFER_TIMEOUT_S)
    return answer if isinstance(answer, Transfer) else Transfer(fault=answer)


def _device(spec: WorkerSpec) -> str:
    assert spec.engine.handoff is not None
    return spec.engine.handoff.buffer_device


def _answer(spec: WorkerSpec, module: str, words: Sequence[str], mark: str, kind: type[S], timeout_s: float) -> S | str:
    """Its marked line, or its last words."""
    with _process(spec, module, words, subprocess.PIPE) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return f"it did not end within {timeout_s:.0f} s"
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    for line in lines:
        if line.startswith(mark):
            return msgspec.json.decode(line.removeprefix(mark), type=kind)
    return " | ".join(lines[-LAST_LINES:]) or f"it ended with status {process.returncode} and said nothing"


@contextmanager
def _process(
    spec: WorkerSpec, module: str, words: Sequence[str], output: int | None
) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own, which is gone afterwards. `output` None: into the job's log."""
    process = subprocess.Popen(
        engine_command(spec, CODE_DIR, os.environ, module, *words),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        env=engine_environment(spec, os.environ, [spec.run_dir, CODE_DIR]),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_group(process.pid)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
