"""Ways to divide GPUs among workers: aggregated or disaggregated, by the layout of a worker and how many there are.

Pure. A split becomes pools of the user's own configuration, so that what is predicted is what a plan would run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec

from launcher.planning.checks import form_faults, pool_plan_faults, rule_faults
from launcher.planning.models import ResolvedModel
from launcher.planning.pools import plan_pools
from launcher.schema import Config, PoolConfig, PoolRole
from launcher.twin.cards import Profiles, layout_name, make_card
from launcher.twin.setup import Pool, Setup
from proxy.spec import LatencyTargets, PoolCaps, RoutingSpec


class Layout(msgspec.Struct, frozen=True, order=True):
    tensor_parallel: int
    pipeline_parallel: int = 1

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def name(self) -> str:
        return layout_name(self.tensor_parallel, self.pipeline_parallel)


class Part(msgspec.Struct, frozen=True, order=True):
    layout: Layout
    replicas: int

    @property
    def gpus(self) -> int:
        return self.layout.gpus * self.replicas

    def __str__(self) -> str:
        return f"{self.replicas} x {self.layout.name}"


class Split(msgspec.Struct, frozen=True, order=True):
    """Aggregated: no prefill part, and all workers do everything."""

    decode: Part
    prefill: Part | None = None

    @property
    def gpus(self) -> int:
        return self.decode.gpus + (self.prefill.gpus if self.prefill else 0)

    def __str__(self) -> str:
        if self.prefill is None:
            return f"aggregated, {self.decode}"
        return f"prefill {self.prefill}, decode {self.decode}"


def pools_of(config: Config, split: Split) -> dict[str, PoolConfig]:
    """What the user says of a pool beside its layout and size stays."""
    parts = {PoolRole.any: split.decode}
    if split.prefill is not None:
        parts = {PoolRole.prefill: split.prefill, PoolRole.decode: split.decode}
    return {role.value: _pool(config.pools.get(role.value), role, part) for role, part in parts.items()}


def _pool(given: PoolConfig | None, role: PoolRole, part: Part) -> PoolConfig:
    return replace(
        given or PoolConfig(role=role),
        role=role,
        replicas=part.replicas,
        tensor_parallel=part.layout.tensor_parallel,
        pipeline_parallel=part.layout.pipeline_parallel,
        nodes=None,
        gpus_per_node=None,
    )


def faults_of(config: Config, model: ResolvedModel, split: Split) -> list[str]:
    """Why a plan would refuse it."""
    config = replace(config, pools=pools_of(config, split))
    if form := form_faults(config, model):
        return form
    return [*rule_faults(config, model, None), *pool_plan_faults(config, model, *plan_pools(config, model), None)]


def layouts(config: Config, model: ResolvedModel) -> Iterator[Layout]:
    """Within a node; over several only where the model does not fit into one."""
    assert config.cluster is not None
    sizes = [1 << power for power in range(config.cluster.gpus_per_node.bit_length())]
    sizes = [size for size in sizes if size <= config.cluster.gpus_per_node]
    within = [Layout(size) for size in sizes]
    fitting = [layout for layout in within if not faults_of(config, model, Split(Part(layout, 1)))]
    yield from fitting
    if not fitting:
        over = [Layout(sizes[-1], stages) for stages in (2, 4, 8) if stages <= config.cluster.nodes]
        yield from (layout for layout in over if not faults_of(config, model, Split(Part(layout, 1))))


def setup_of_split(config: Config, model: ResolvedModel, found: Profiles, block_size: int, split: Split) -> Setup:
    """As the proxy of such a plan would have it."""
    config = replace(config, pools=pools_of(config, split))
    pools, pairs = plan_pools(config, model)
    routing = config.routing
    fields = {name: getattr(routing, name) for name in RoutingSpec.__struct_fields__ if name != "targets"}
    return Setup(
        pools={
            pool.name: Pool(
                card=make_card(config, pool, model.shape, found, block_size),
                replicas=pool.replicas,
                caps=PoolCaps(max_prefill_tokens=pool.max_prefill_tokens, max_decodes=pool.max_decodes),
            )
            for pool in pools
        },
        pairs=tuple((pair.prefill, pair.decode) for pair in pairs if not pair.faults),
        routing=RoutingSpec(
            **fields, targets=LatencyTargets(ttft_s=routing.targets.ttft_s, itl_s=routing.targets.itl_s)
        ),
    )
