"""The engines of a plan's pools in virtual time: their limits from the plan, their step time from a profile or a sheet.

Owns what can be wrong with either. An engine that is simulated anyway has its own step time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from launcher.planning.models import ResolvedModel
from launcher.planning.pools import DEFAULT_MAX_NUM_BATCHED_TOKENS, DEFAULT_MAX_NUM_SEQS, PoolPlan, engine_demand
from launcher.planning.shapes import Shape
from launcher.schema import Config
from launcher.twin import profile as profiles
from launcher.twin.card import Card
from launcher.twin.gpus import GPUS, NETWORK_BYTES_PER_S
from launcher.twin.roofline import step_model
from launcher.twin.step_model import StepModel
from workers.engines.sim.args import SimArgs
from workers.engines.sim.events import Timing

Profiles = Mapping[str, profiles.Profile]


def layout_name(tensor_parallel: int, pipeline_parallel: int) -> str:
    return f"tp{tensor_parallel}" + (f"pp{pipeline_parallel}" if pipeline_parallel > 1 else "")


def read_profiles(config: Config) -> tuple[Profiles, list[str]]:
    """And what is wrong with them, by their keys."""
    found: dict[str, profiles.Profile] = {}
    faults: list[str] = []
    for name, path in config.predict.profiles.items():
        try:
            found[name] = profiles.read(Path(path).expanduser())
            if found[name].max_kv_tokens < config.model.max_model_len:
                faults.append(f"predict.profiles.{name}: max_kv_tokens is less than model.max_model_len; lower that")
        except (profiles.BadProfile, OSError) as fault:
            faults += [f"predict.profiles.{name}: {line}" for line in str(fault).splitlines()]
    return found, faults


def engine_faults(config: Config, model: ResolvedModel, layouts: Iterable[str]) -> Iterator[str]:
    """What a prediction of these layouts lacks, beside what a plan would refuse."""
    if config.engine.simulated or config.cluster is None or model.shape is None:
        return
    gpu, profiled = config.cluster.gpu, config.predict.profiles
    if gpu is not None and gpu not in GPUS:
        yield f"cluster.gpu: no data sheet of {gpu!r}; known: {', '.join(GPUS)}; or null, with predict.profiles"
    elif gpu is None and (missing := sorted(set(layouts) - set(profiled))):
        yield f"cluster.gpu: has no value; use one of {', '.join(GPUS)}, or set predict.profiles.{missing[0]}"
    if model.shape.experts is not None and not model.shape.experts.num_active:
        yield "model.config_json.num_experts_per_tok: is missing; a step's time depends on it"


def make_card(config: Config, pool: PoolPlan, shape: Shape | None, found: Profiles, block_size: int) -> Card:
    """Of a pool without `engine_faults`."""
    args = pool.engine_args
    if pool.memory is None:
        sim = msgspec.convert(args, SimArgs)
        return Card(
            block_size=block_size,
            kv_tokens=_whole_blocks(sim.num_blocks * config.engine.block_size, block_size),
            max_num_seqs=sim.max_num_seqs,
            max_num_batched_tokens=sim.max_num_batched_tokens,
            link_bytes_per_s=sim.timing.handoff_bytes_per_s,
            timing=sim.timing,
        )
    assert config.cluster is not None and shape is not None
    ranks = pool.tensor_parallel * pool.pipeline_parallel
    gpu = config.cluster.gpu
    network_bytes_per_s = GPUS[gpu].network_bytes_per_s if gpu else NETWORK_BYTES_PER_S
    name = layout_name(pool.tensor_parallel, pool.pipeline_parallel)
    return Card(
        block_size=block_size,
        kv_tokens=_whole_blocks(found[name].max_kv_tokens if name in found else pool.kv_tokens, block_size),
        max_num_seqs=args.get("max_num_seqs", DEFAULT_MAX_NUM_SEQS),
        max_num_batched_tokens=args.get("max_num_batched_tokens", DEFAULT_MAX_NUM_BATCHED_TOKENS),
        link_bytes_per_s=network_bytes_per_s * ranks,
        timing=Timing(kv_bytes_per_token=pool.memory.kv_bytes_per_token * ranks),
        model=_model(config, pool, shape, found),
    )


def _whole_blocks(num_tokens: int, block_size: int) -> int:
    """Rounded up: the longest request has to fit as it does in the engine's smaller blocks."""
    return -(-num_tokens // block_size) * block_size


def _model(config: Config, pool: PoolPlan, shape: Shape, found: Profiles) -> StepModel:
    assert config.cluster is not None
    name = layout_name(pool.tensor_parallel, pool.pipeline_parallel)
    if name in found or config.cluster.gpu is None:
        budget = pool.engine_args.get("max_num_batched_tokens", DEFAULT_MAX_NUM_BATCHED_TOKENS)
        return profiles.fit(found[name], budget).model
    demand = engine_demand(config, pool.tensor_parallel, pool.pipeline_parallel, pool.engine_args, shape)
    return step_model(shape, demand, GPUS[config.cluster.gpu], config.cluster.gpus_per_node)
