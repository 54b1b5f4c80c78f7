"""The two ways of the batch benchmark: a run of ours with its batch command, and vLLM's offline engines by themselves.

Owns their processes. Both have the same model, settings and number of engines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.batch_work import Prompt
from benchmarks.processes import ProcessFault, end, spawn
from launcher.rundir import SOURCE, RunDir

ENGINES = 2
START_TIMEOUT_S, END_TIMEOUT_S = 400.0, 30.0
ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "enforce_eager": True,  # a compilation at each start would take longer than the measurement
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 384 << 20,
}
MAX_MODEL_LEN, BLOCK_SIZE = 2048, 32
PARTS = ("engines", "hosts", "proxy", "client", "others")  # the last: agents, controller, launcher


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """One pass through a file. `tokens` of answers; `cpu_s` by what spent it."""

    took_s: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    cpu_s: Mapping[str, float] = {}


class Plain:
    """`LLM.generate` in processes of its own, one per engine."""

    def __init__(self, model: Path) -> None:
        args = {**ENGINE_ARGS, "max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_SIZE, "enable_prefix_caching": True}
        line = [sys.executable, "-m", "benchmarks.batch_generate", str(model), json.dumps(args)]
        quiet = {**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR"}
        self._children = [spawn(line, SOURCE, subprocess.PIPE, quiet, subprocess.PIPE) for _ in range(ENGINES)]

    def wait(self) -> None:
        for child in self._children:
            self._read(child)

    def run(self, given: Sequence[Prompt]) -> Passed:
        """The first half for one engine, the second for the other."""
        half = -(-len(given) // ENGINES)
        for number, child in enumerate(self._children):
            assert child.stdin is not None
            child.stdin.write(msgspec.json.encode(given[number * half : (number + 1) * half]) + b"\n")
            child.stdin.flush()
        parts = [msgspec.convert(self._read(child), Passed) for child in self._children]
        return Passed(
            took_s=max(part.took_s for part in parts),
            tokens=sum(part.tokens for part in parts),
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in parts),
        )

    def stop(self) -> None:
        """At the end of its input an engine ends its processes; one that cannot is ended with all of its session."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(END_TIMEOUT_S)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _read(self, child: subprocess.Popen[bytes]) -> Any:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise ProcessFault("an engine of vLLM's own has ended; what it said is above")
        return msgspec.json.decode(line)


class Ours:
    """A run on this machine, and the batch command on it."""

    def __init__(self, model: Path, config_json: Mapping[str, int], folder: Path) -> None:
        self._folder = folder
        self._model = model
        self.run_dir = RunDir(folder / "runs" / "bench")
        with (folder / "launcher.log").open("wb") as log:
            self._launcher = spawn(self._line(config_json), folder, log, self._environment())

    def wait(self) -> None:
        log = self._folder / "launcher.log"
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"\nready\n" not in log.read_bytes():
            if self._launcher.poll() is not None or time.monotonic() > deadline:
                raise ProcessFault(f"the run did not come up:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)

    def run(self, given: Sequence[Prompt], name: str) -> Passed:
        input_, output = self._folder / f"{name}.in.jsonl", self._folder / f"{name}.jsonl"
        with input_.open("wb") as file:
            for one in given:
                line = {"prompt": one.text, "max_tokens": one.max_tokens, "temperature": 0, "ignore_eos": True}
                file.write(msgspec.json.encode(line) + b"\n")
        before = self._cpu_s()
        batch = [sys.executable, "-m", "launcher", "action=batch", "run=bench", f"batch.input={input_}"]
        with (self._folder / "batch.log").open("ab") as log:
            client = spawn([*batch, f"batch.output={output}"], self._folder, log, self._environment())
        status = client.wait()
        spent = {part: now - before[part] for part, now in self._cpu_s().items()}
        if status != 0:
            raise ProcessFault(
                f"the batch ended with status {status}:\n{(self._folder / 'batch.log').read_text()[-3000:]}"
            )
        summary = json.loads((output.with_name(f"{output.name}.batch") / "summary.json").read_bytes())
        return Passed(
            took_s=summary["took_s"],
            tokens=summary["output_tokens"],
            prompt_tokens=summary["prompt_tokens"],
            cached_tokens=summary["cached_tokens"],
            cpu_s=spent,
        )

    def stop(self) -> None:
        end([self._launcher])

    def _line(self, config_json: Mapping[str, int]) -> list[str]:
        engine = [f"engine.engine_args.{key}={value}" for key, value in ENGINE_ARGS.items() if key != "dtype"]
        shape = [f"model.config_json.{key}={value}" for key, value in config_json.items()]
        pools = ["~pools.prefill", "~pools.decode", f"+pools.any={{role: any, replicas: {ENGINES}}}"]
        model = [f"model.path={self._model}", "model.generate=null", f"model.max_model_len={MAX_MODEL_LEN}"]
        model += [f"model.engine_args.vllm.dtype={ENGINE_ARGS['dtype']}"]
        return [sys.executable, "-m", "launcher", "+cluster=local", "run=bench", *pools, *model, *shape, *engine]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(SOURCE)}

    def _cpu_s(self) -> dict[str, float]:
        """By part. The client's is known once it has ended: it is our child, as nothing else that ends meanwhile."""
        ended = os.times()
        spent = dict.fromkeys(PARTS, 0.0) | {"client": ended.children_user + ended.children_system}
        launcher = psutil.Process(self._launcher.pid)
        for process in [launcher, *launcher.children(recursive=True)]:
            line = " ".join(process.cmdline())
            times = process.cpu_times()
            spent[_part(line)] += times.user + times.system
        return spent


def _part(line: str) -> str:
    if line.startswith("VLLM::"):
        return "engines"
    if "workers.host" in line:
        return "hosts"
    return "proxy" if " proxy" in line else "others"
