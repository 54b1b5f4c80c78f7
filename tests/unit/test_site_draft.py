"""The file that new-cluster writes: it composes and plans as it is, whatever the site is like."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launcher.config import CONF_DIR, load
from launcher.refusal import Refused
from launcher.schema import Config, PoolRole
from launcher.site.draft import choose, cluster_file, gpu_memory_gib
from launcher.site.facts import Interface, Machine, Site, Trial
from launcher.site.new_cluster import new_cluster
from launcher.site.slurm_text import parse_partitions, parse_qos, parse_shapes
from launcher.site.trials import gpu_requests
from tests.unit import slurm_texts as texts
from tests.unit.planning import plan_of
from tests.unit.test_site import large, onebox

MACHINE = Machine(
    host="login1",
    mounts="",
    interfaces=(Interface(name="ib0", address="10.1.2.3"),),
    containers=(),
    engine_version="",
    handoff_version="",
    free_bytes={},
)


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("draft") / "conf"
    shutil.copytree(CONF_DIR, path)
    yield path


def drafted(site: Site, name: str = "mysite", refused: tuple[str, ...] = ()) -> str:
    nodes = choose(site)
    requests = gpu_requests(None, sorted(site.gpus_of(nodes.partition.name))) if nodes.gpus else {}
    trials = {setting: Trial(accepted=setting not in refused, words="") for setting in requests}
    return cluster_file(name, site, nodes, trials, MACHINE)


def loaded(conf: Path, text: str) -> Config:
    (conf / "cluster" / "mysite.yaml").write_text(text)
    return load(["+cluster=mysite"], conf)


def one_kind(gres: str, nodes: int, mem_mb: int = 500_000, cpus: int = 64, name: str = "main") -> Site:
    line = f"PartitionName={name} Default=YES MaxTime=06:00:00 State=UP TotalNodes={nodes}\n"
    shapes = texts.sinfo((name, nodes, cpus, mem_mb, gres, "idle"))
    return Site(
        config={"SLURM_VERSION": "23.11.6"},
        partitions=tuple(parse_partitions(line)),
        shapes=tuple(parse_shapes(shapes)),
    )


@pytest.mark.parametrize(
    ("gres", "nodes"),
    [
        *((f"gpu:h100:{gpus}", nodes) for gpus in (1, 2, 8) for nodes in (1, 2)),
        ("gpu:3", 1),
        ("gpu:nvidia_t4:1", 1),
        ("gpu:a100-sxm4-40gb:4(S:0-1)", 16),
        ("gpu:b200:16", 1),
        ("(null)", 4),
    ],
)
def test_it_plans_as_it_is(conf: Path, gres: str, nodes: int) -> None:
    config = loaded(conf, drafted(one_kind(gres, nodes)))
    plan = plan_of(config)
    assert config.cluster is not None and config.cluster.name == "mysite"
    assert config.cluster.walltime_min == 360 and config.cluster.partition == "main"
    assert plan.num_nodes * max(plan.gpus_per_node, 1) >= len(plan.workers) or not plan.gpus_per_node
    single = nodes == 1 and gres in ("gpu:h100:1", "gpu:nvidia_t4:1")
    assert [pool.role for pool in config.pools.values()] == (
        [PoolRole.any] if single else [PoolRole.prefill, PoolRole.decode]
    )


def test_the_one_box(conf: Path) -> None:
    config = loaded(conf, drafted(onebox()))
    cluster = config.cluster
    assert cluster is not None
    assert (cluster.partition, cluster.nodes, cluster.gpus_per_node, cluster.gres) == ("gpu", 2, 4, None)
    assert (cluster.cpus_per_node, cluster.mem_gb, cluster.walltime_min) == (8, 19, 480)


def test_a_large_site(conf: Path) -> None:
    """Not the default partition, which has no GPUs; whole nodes, so that the controller goes elsewhere."""
    text = drafted(large())
    config = loaded(conf, text)
    cluster = config.cluster
    assert cluster is not None
    assert (cluster.partition, cluster.gpus_per_node, cluster.gpu_memory_gib) == ("h100", 8, 79.6)
    assert cluster.gpu == "h100"
    assert config.controller.partition == "cpu"
    assert "yours are nlp, teaching" in text and "DECIDE: yours are long, normal" in text
    assert "cpu (default), at most 720 min" in text


def test_jobs_are_no_longer_than_the_users_qos_allows(conf: Path) -> None:
    short = texts.QOS.replace("1-00:00:00", "02:00:00")
    cluster = loaded(conf, drafted(large(qos=tuple(parse_qos(short))))).cluster
    assert cluster is not None and cluster.walltime_min == 120


def test_gpus_as_the_site_wants_them(conf: Path) -> None:
    def gres(site: Site, *refused: str) -> str | None:
        cluster = loaded(conf, drafted(site, refused=refused)).cluster
        assert cluster is not None
        return cluster.gres

    site = one_kind("gpu:h100:8", 2)
    assert gres(site) is None
    assert gres(site, "cluster.gres=null") == "gpu"
    assert gres(site, "cluster.gres=null", "cluster.gres=gpu") == "gpu:h100"
    assert gres(one_kind("gpu:v100:2,gpu:h100:8", 2)) == "gpu:h100"


def test_a_name_that_yaml_would_take_for_something_else(conf: Path) -> None:
    for name in ("8gpus", "no", "1e3", "on", "gpu"):
        cluster = loaded(conf, drafted(one_kind("gpu:8", 2, name=name))).cluster
        assert cluster is not None and cluster.partition == name


def test_every_line_is_a_key_of_the_schema(conf: Path) -> None:
    (conf / "cluster" / "mysite.yaml").write_text(drafted(large()))
    tree = OmegaConf.load(conf / "cluster" / "mysite.yaml")
    assert set(tree) == {"defaults", "cluster", "controller", "pools"}


@pytest.mark.parametrize(
    ("kind", "gib"),
    [("nvidia_h100_80gb_hbm3", 79.6), ("A100-SXM4-40GB", 39.4), ("tesla_t4", 14.6), ("fake", 15.0), ("", 15.0)],
)
def test_memory_by_the_name_of_a_gpu(kind: str, gib: float) -> None:
    assert gpu_memory_gib(kind) == gib


@pytest.mark.parametrize("name", ["../up", "Mine", "a/b", "onebox"])
def test_a_name_that_is_none_or_taken(name: str) -> None:
    with pytest.raises(Refused, match=r"^name: "):
        new_cluster(load(["action=new-cluster", f"name={name}"]))


def test_a_new_cluster_needs_a_name() -> None:
    with pytest.raises(Refused, match=r"^name: new-cluster needs to know"):
        load(["action=new-cluster"])
