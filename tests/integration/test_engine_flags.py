"""Every flag that a shipped configuration gives vLLM is one that the installed vLLM takes: else it costs a job each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from launcher.config import choices
from tests.live import SOURCE
from tests.unit.planning import planned
from workers.engines import Placement
from workers.engines.vllm.args import SUPPORTED_VERSIONS, engine_argv
from workers.engines.vllm.flags import FLAGS
from workers.engines.vllm.load import FORMATS, STRATEGIES

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(120)]


def placement(worker: str, node_rank: int, num_nodes: int, model_path: str) -> Placement:
    return Placement(
        worker=worker,
        generation=0,
        session="0",
        address="10.0.0.7",
        interface="ib0",
        handoff_port=5600,
        head_address="10.0.0.7",
        head_port=29501,
        node_rank=node_rank,
        num_nodes=num_nodes,
        local_dir="/tmp/sluice",
        cache_dir="/tmp/sluice/cache",
        model_path=model_path,
    )


def shipped() -> dict[str, list[str]]:
    """One command line for each node of the first worker of every pool; the CPU build's own flags aside."""
    runs = [[f"+recipe={recipe}"] for recipe in choices("recipe")]
    runs += [[f"+cluster={cluster}"] for cluster in choices("cluster")]
    runs += [["+cluster=h100x2", "cluster.load_strategy=prefetch", "cluster.load_format=safetensors"]]
    runs += [["+cluster=h100x2", f"model={model}"] for model in choices("model") if model != "deepseek-v3"]
    lines = {}
    for overrides in runs:
        for worker in planned(*overrides).workers:
            spec = worker.spec
            if not spec.worker.endswith("-0"):
                continue
            for rank in range(spec.num_nodes):
                where = placement(spec.worker, rank, spec.num_nodes, spec.engine.model_path)
                argv = engine_argv(spec.engine, where, cpu=False)
                lines[f"{' '.join(overrides)} {spec.worker} node {rank}"] = argv
    return lines


def faults_of(lines: dict[str, list[str]]) -> dict[str, str]:
    judged = subprocess.run(
        [sys.executable, "-m", "tests.integration.vllm_flags"],
        input=json.dumps(list(lines.values())),
        cwd=SOURCE,
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stderr
    return {name: fault for name, fault in zip(lines, json.loads(judged.stdout), strict=True) if fault}


def test_the_words_that_a_plan_may_hold_are_vllm_s_own() -> None:
    program = """
import json
from typing import get_args
from vllm import __version__
from vllm.config.load import SafetensorsLoadStrategy
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.model_loader import LoadFormats
from vllm.utils.argparse_utils import FlexibleArgumentParser
flags = {action.dest for action in make_arg_parser(FlexibleArgumentParser())._actions}
print(json.dumps([__version__.partition("+")[0], get_args(LoadFormats), get_args(SafetensorsLoadStrategy), [*flags]]))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=SOURCE)
    version, formats, strategies, flags = json.loads(told.stdout.splitlines()[-1])
    assert set(FORMATS[version]) == set(formats)
    assert set(STRATEGIES[version]) == set(strategies)
    assert set(flags) - FLAGS[version] == {"help", "model_tag"}
    assert set(FORMATS) == set(STRATEGIES) == set(FLAGS) == set(SUPPORTED_VERSIONS)


def test_vllm_takes_every_flag_of_every_recipe_cluster_and_model() -> None:
    wrong = {
        "removed": ["--model", "m", "--no-such-flag"],
        "value": ["--model", "m", "--max-num-seqs", "many"],
        "parser": ["--model", "m", "--enable-auto-tool-choice", "--tool-call-parser", "nobody"],
        "reasoning": ["--model", "m", "--reasoning-parser", "nobody"],
    }
    lines = shipped()
    assert len(lines) > 20
    faults = faults_of(lines | wrong)
    assert "--no-such-flag" in faults.pop("removed")
    assert "many" in faults.pop("value")
    assert "nobody" in faults.pop("parser")
    assert "nobody" in faults.pop("reasoning")
    assert faults == {}
