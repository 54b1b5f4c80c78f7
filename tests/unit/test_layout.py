"""Placing workers: nothing overlaps, nothing exceeds a node, and what fits is found."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from launcher.planning.layout import PoolLayout, place, pool_layout
from launcher.schema import ClusterConfig, PoolConfig, PoolRole


def cluster(nodes: int, gpus_per_node: int) -> ClusterConfig:
    return ClusterConfig(name="c", nodes=nodes, gpus_per_node=gpus_per_node, cpus_per_node=8)


@given(
    nodes=st.integers(1, 5),
    gpus=st.integers(1, 8),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), max_size=8),
)
def test_no_gpu_is_given_twice_and_none_is_invented(nodes: int, gpus: int, sizes: list[tuple[int, int]]) -> None:
    workers = [PoolLayout(num_nodes=num_nodes, ranks_per_node=ranks) for num_nodes, ranks in sizes]
    placed = place(workers, cluster(nodes, gpus))
    if placed is None:
        return
    taken = Counter((use.node, gpu) for uses in placed for use in uses for gpu in use.gpus)
    assert all(count == 1 for count in taken.values())
    assert all(node < nodes and gpu < gpus for node, gpu in taken)
    for worker, uses in zip(workers, placed, strict=True):
        assert len({use.node for use in uses}) == worker.num_nodes
        assert all(len(use.gpus) == worker.ranks_per_node for use in uses)


@given(halves=st.integers(0, 8), nodes=st.integers(1, 4))
def test_halves_of_nodes_fill_every_node(halves: int, nodes: int) -> None:
    workers = [PoolLayout(num_nodes=1, ranks_per_node=4)] * halves
    assert (place(workers, cluster(nodes, 8)) is not None) == (halves <= 2 * nodes)


def test_large_workers_go_first_so_that_small_ones_do_not_block_them() -> None:
    workers = [PoolLayout(num_nodes=1, ranks_per_node=2), PoolLayout(num_nodes=2, ranks_per_node=3)]
    placed = place(workers, cluster(2, 4))
    assert placed is None
    placed = place(workers, cluster(2, 5))
    assert placed is not None
    assert placed[1][0].gpus == (0, 1, 2)


def test_without_gpus_workers_go_round_the_nodes() -> None:
    placed = place([PoolLayout(num_nodes=1, ranks_per_node=1)] * 3, cluster(2, 0))
    assert placed is not None
    assert [uses[0].node for uses in placed] == [0, 1, 0]


def test_a_layout_takes_as_few_nodes_as_hold_the_ranks() -> None:
    def layout(**pool: int) -> tuple[int, int]:
        found = pool_layout(PoolConfig(role=PoolRole.any, **pool), cluster(4, 8))  # type: ignore[arg-type]
        return found.num_nodes, found.ranks_per_node

    assert layout() == (1, 1)
    assert layout(tensor_parallel=8) == (1, 8)
    assert layout(tensor_parallel=8, pipeline_parallel=2) == (2, 8)
    assert layout(tensor_parallel=2, nodes=2) == (2, 1)
    assert layout(tensor_parallel=8, gpus_per_node=4) == (2, 4)
