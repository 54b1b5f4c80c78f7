"""Where a node stands in its worker: the way to rank 0."""

import asyncio
from pathlib import Path

from tests.live import sim_engine
from workers.agent.placing import head_file, place
from workers.agent.slurm_env import SlurmEnv
from workers.spec import Role, WorkerSpec


def spec(run_dir: Path, **engine: object) -> WorkerSpec:
    return WorkerSpec(
        run="r",
        run_dir=str(run_dir),
        worker="prefill-0",
        pool="prefill",
        role=Role.PREFILL,
        generation=2,
        index=0,
        num_nodes=2,
        gpus_per_node=1,
        engine=sim_engine(**engine),
        interface="lo",
        cache_dir=str(run_dir / "cache"),
        stage_dir=None,
        code="c",
        interpreter="python3",
        load_timeout_s=10.0,
        drain_timeout_s=10.0,
    )


def env(node_rank: int, restarts: int = 0) -> SlurmEnv:
    return SlurmEnv("77", restarts, f"n{node_rank}", node_rank, None)


def test_the_other_nodes_find_rank_0_by_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()

    async def both() -> None:
        second = asyncio.ensure_future(place(spec(tmp_path), env(1), "b", local_dir="/tmp/b", cache_dir="/cache/b"))
        head = await place(spec(tmp_path), env(0), "a", local_dir="/tmp/a", cache_dir="/cache/a")
        found = await second
        assert (found.node_rank, found.local_dir) == (1, "/tmp/b")
        assert (head.cache_dir, found.cache_dir) == ("/cache/a", "/cache/b"), "each node by its own GPU"
        assert (found.session, found.head_address, found.head_port) == ("a", "127.0.0.1", head.head_port)

    asyncio.run(both())


def test_a_requeued_job_meets_anew(tmp_path: Path) -> None:
    assert head_file(spec(tmp_path), env(0)) != head_file(spec(tmp_path), env(0, restarts=1))
