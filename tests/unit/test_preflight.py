"""What keeps a worker from starting on a node: each fact beside the fault that it makes, all faults together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.live import sim_engine
from tests.unit.test_placing import spec as worker_spec
from workers.agent.preflight import GIB, MIB, EngineFacts, Facts, Folder, Gpu, faults, size
from workers.spec import HandoffSpec, WorkerSpec
from workers.staging.caches import engine_cache

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB)
GOOD = EngineFacts(
    version="0.32.0",
    gpus=(H100,) * 8,
    visible_devices="0,1,2,3,4,5,6,7",
    machine="x86_64",
    local=Folder(path="/tmp/sluice-x", free_bytes=50 * GIB),
    cache=Folder(path="/scratch/cache", free_bytes=500 * GIB),
    shm_free_bytes=64 * GIB,
    open_files=65536,
    has_rdma=True,
)


def spec(**engine: Any) -> WorkerSpec:
    """One node of eight GPUs."""
    nixl = HandoffSpec(connector="NixlConnector", buffer_device="cuda", lease_s=120.0, redeem_s=30.0)
    fields = {"kind": "vllm", "device": "cuda", "version": "0.32.0", "tensor_parallel": 8, "handoff": nixl}
    whole = worker_spec(Path("/runs/r"), **(fields | engine))
    return msgspec.structs.replace(whole, num_nodes=1, gpus_per_node=8, interpreter="/venv/bin/python")


def told(of: WorkerSpec | None = None, **changes: Any) -> list[str]:
    return faults(of or spec(), Facts(engine=msgspec.structs.replace(GOOD, **changes)))


def test_a_good_node_has_no_fault() -> None:
    assert told() == []


CPU = {"kind": "vllm", "device": "cpu", "tensor_parallel": 1}
FULL = Folder(path="/scratch/cache", free_bytes=3 * MIB)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"version": "0.31.0"}, "engine.version: 0.31.0 is installed for /venv/bin/python, the plan was made for 0.32"),
        ({"version_fault": "vLLM is not installed"}, "engine.version: vLLM is not installed (for /venv/bin/python)"),
        ({"handoff_fault": "ImportError: libucp.so.0"}, "handoff.connector: NixlConnector needs NIXL, which /venv/bin"),
        ({"gpus": (H100,) * 4}, "cluster.gres: the job sees 4 GPUs (CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7), the plan"),
        ({"gpu_fault": "there is no NVIDIA driver: x"}, "cluster.gres: there is no NVIDIA driver: x; ask for GPUs as"),
        ({"unreadable": ("/m/a.safetensors: Permission denied",)}, "model.path: /m/a.safetensors: Permission denied"),
        ({"cache": Folder(path="/q", fault="Disk quota exceeded")}, "cluster.cache_dir: /q cannot be written: Disk qu"),
        ({"cache": FULL}, "cluster.cache_dir: /scratch/cache has 3.0 MiB left, 2.0 GiB are needed"),
        ({"cache": Folder(path="/l", free_bytes=9 * GIB, locks=False)}, "cluster.cache_dir: /l has no file locks"),
        ({"local": Folder(path="/tmp/x", fault="Read-only file system")}, "TMPDIR: /tmp/x cannot be written: Read-on"),
        ({"shm_free_bytes": 64 * MIB}, "/dev/shm has 64.0 MiB left, 8 ranks need 2.0 GiB: ask the site"),
        ({"open_files": 1024}, "ulimit -Hn is 1024, at least 4096 open files are needed"),
        ({"locked_bytes": 65536}, "ulimit -Hl is 65536 bytes, and RDMA must pin the whole KV cache"),
        ({"hidden": ("/runs/r",)}, "cluster.engine_prefix: /runs/r cannot be seen inside"),
        ({"has_channel": False}, "cluster.engine_prefix: its program does not hand its standard input on"),
    ],
)
def test_each_fault_names_its_key_and_what_to_do(facts: dict[str, Any], expected: str) -> None:
    (fault,) = told(**facts)
    assert fault.startswith(expected)


def test_all_faults_are_told_at_once() -> None:
    bad = msgspec.structs.replace(GOOD, version="0.31.0", gpus=(), shm_free_bytes=0, cache=FULL)
    found = faults(spec(), Facts(network_fault="cluster.interface=ib7: none", engine=bad))
    assert [fault.partition(":")[0] for fault in found] == [
        "cluster.interface=ib7",
        "engine.version",
        "cluster.gres",
        "cluster.cache_dir",
        "/dev/shm has 0 bytes left, 8 ranks need 2.0 GiB",
    ]


def test_where_nothing_can_be_started_that_is_told_beside_the_network() -> None:
    dead = Facts(network_fault="cluster.interface=ib7: none", engine_fault="No module named msgspec")
    alone = faults(spec(), dead)[1]
    assert alone.startswith(
        "cluster.engine_python: /venv/bin/python cannot run Sluice's code: No module named msgspec; s"
    )
    behind = faults(spec(prefix=("apptainer", "exec", "i.sif"), python="/usr/bin/python3"), dead)[1]
    assert behind.startswith("cluster.engine_prefix: nothing of ours runs behind apptainer exec i.sif: No module")
    assert "cluster.engine_python must be a Python inside" in behind


def test_a_container_without_the_driver_is_not_a_job_without_gpus() -> None:
    (fault,) = told(spec(prefix=("apptainer", "exec", "i.sif")), gpu_fault="there is no NVIDIA driver: x", gpus=())
    assert fault == "cluster.engine_prefix: there is no NVIDIA driver: x; Apptainer shows it with --nv"


def test_gpus_that_an_engine_on_the_cpu_does_not_use_are_counted_by_what_slurm_gave() -> None:
    one = msgspec.structs.replace(spec(**CPU), gpus_per_node=1)
    assert told(one, gpus=(), visible_devices="3") == []
    for devices in (None, "", "NoDevFiles", "0,1"):
        assert told(one, gpus=(), visible_devices=devices)[0].startswith("cluster.gres: the job sees ")


def test_pinned_memory_is_needed_for_rdma_only() -> None:
    assert told(locked_bytes=65536, has_rdma=False) == []
    assert told(spec(handoff=None), locked_bytes=65536) == []


def test_an_engine_that_nobody_asked_a_version_of_may_have_any() -> None:
    assert told(spec(version=None), version="0.31.0") == []


def test_caches_are_kept_apart_by_version_and_device() -> None:
    assert engine_cache(spec(), GOOD) == "/runs/r/cache/vllm-0.32.0/nvidia-h100-80gb-hbm3"
    cpu = msgspec.structs.replace(GOOD, gpus=(), version="")
    assert engine_cache(spec(), cpu) == "/runs/r/cache/vllm-0.32.0/cpu-x86-64"
    plain = msgspec.structs.replace(spec(), engine=sim_engine())
    assert engine_cache(plain, cpu) == "/runs/r/cache/sim/cpu-x86-64"


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (7, 3 * MIB, 5 * GIB + GIB // 2)] == ["7 bytes", "3.0 MiB", "5.5 GiB"]
    assert sys.maxsize > GIB
