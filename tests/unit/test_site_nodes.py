"""What nodes report, judged: files, network, submitting, engine. And what check jobs ask for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from launcher.site.check_files import EngineReport, Hca, NodeReport, Scratch
from launcher.site.checks import CheckJob, Outcome, check_job, check_partitions
from launcher.site.facts import Interface, Trial
from launcher.site.finding import Finding, Level
from launcher.site.nodes import node_findings
from tests.unit.test_site import configured, large, onebox, planned
from workers.agent.preflight import GIB, EngineFacts, Facts, Gpu
from workers.engines.nixl_transfer import Transfer
from workers.engines.vllm.imports import Imports

HERE = ("+cluster=h100x2", "cluster.partition=h100", "cluster.account=nlp", "controller.partition=cpu")
ETH = Interface(name="eth0", address="10.0.0.1", speed_mbit=1_000)
IB = Interface(name="ib0", address="10.1.0.1", speed_mbit=400_000)
LO = Interface(name="lo", address="127.0.0.1")
ENGINE = EngineReport(
    facts=Facts(engine=EngineFacts(version="0.32.0", gpus=(Gpu(name="NVIDIA H100", memory_bytes=int(79.6 * GIB)),))),
    faults=(),
    imports=Imports(seconds=12.0),
    transfer=Transfer(gib_per_s=12.0),
)


def report(rank: int = 0, **changes: object) -> NodeReport:
    peers = {} if rank == 0 else {"eth0": "", "lo": "Connection refused"}
    seen = NodeReport(
        node=f"g00{rank + 1}",
        rank=rank,
        mount_kind="lustre",
        answer_s=0.4,
        interfaces=(LO, ETH),
        default_interface="eth0",
        peers=peers,
        hcas=(),
        can_rdma=False,
        scratch=(Scratch(path="/tmp", kind="xfs", free_bytes=900 * GIB),),
        containers=("apptainer",),
        num_free_ports=11990,
        ephemeral_from=32768,
        num_gpu_files=1,
        trial=Trial(accepted=True, words=""),
        engine=ENGINE,
    )
    return msgspec.structs.replace(seen, **changes)


def job(*overrides: str, partition: str | None = "h100") -> CheckJob:
    given = overrides or HERE
    return check_job(
        configured(*given), planned(*given), large(), partition, "/runs/doctor_x/checks/h100", "t0ken", True
    )


def outcome(*reports: NodeReport, **changes: Any) -> Outcome:
    given: dict[str, Any] = {"job": "7", "state": "COMPLETED", "reached": {"eth0": "", "lo": "Connection refused"}}
    return Outcome(checked=job(), reports=list(reports), **given | changes)


def found(result: Outcome, *overrides: str) -> dict[str, Finding]:
    """What is not ok, by topic and setting."""
    findings = list(node_findings(result, configured(*HERE, *overrides)))
    return {f"{each.topic} {each.setting}".strip(): each for each in findings if each.level is not Level.OK}


def test_two_healthy_nodes() -> None:
    assert found(outcome(report(), report(1))) == {}


# ---------------------------------------------------------------- the job


def test_a_job_that_was_refused_or_waits_for_ever() -> None:
    refused = found(outcome(refused="sbatch refused job x: QOSMinGRES"))
    assert refused["job h100"].level is Level.WARNING and "QOSMinGRES" in refused["job h100"].seen
    waiting = found(outcome(state="PENDING", reason="Priority", gave_up=True))
    assert "was pending (Priority) and is cancelled" in waiting["job h100"].seen


def test_a_job_that_failed_tells_its_last_words_or_that_they_cannot_be_seen() -> None:
    failed = found(outcome(state="FAILED", reason="NonZeroExitCode", log_tail=["module: command not found"]))
    assert "module: command not found" in failed["job h100"].seen
    hidden = found(outcome(state="FAILED", reason="NonZeroExitCode"))
    assert "runs_dir" in hidden["job h100"].todo


# ---------------------------------------------------------------- files, submitting, ports


def test_files_that_come_late_or_never() -> None:
    assert found(outcome(report(answer_s=30.0), report(1)))["files h100"].level is Level.WARNING
    assert found(outcome(report(), report(1, answer_s=None)))["files h100"].level is Level.FAULT


def test_a_node_that_may_not_submit() -> None:
    refused = Trial(accepted=False, words="Access/permission denied")
    result = found(outcome(report(trial=refused), report(1)))
    assert result["sbatch h100 cluster.chain_length=5"].level is Level.FAULT


def test_ports_that_the_kernel_gives_away_or_others_hold() -> None:
    assert found(outcome(report(ephemeral_from=10000), report(1)))["ports"].level is Level.WARNING
    taken = found(outcome(report(num_free_ports=3), report(1)))["ports"]
    assert taken.level is Level.FAULT and "3 of Sluice's 12000 ports (20000-32000) are free" in taken.seen


# ---------------------------------------------------------------- the network


def test_a_much_faster_interface_is_named() -> None:
    peers = {"eth0": "", "ib0": "", "lo": "Connection refused"}
    result = outcome(report(interfaces=(LO, ETH, IB)), report(1, peers=peers))
    finding = found(result)["network h100 cluster.interface=ib0"]
    assert finding.level is Level.WARNING and "ib0 10.1.0.1 400 Gb/s" in finding.seen
    assert "network h100 cluster.interface=ib0" not in found(result, "cluster.interface=ib0")


def test_an_interface_that_reaches_nobody() -> None:
    peers = {"eth0": "", "ib0": "No route to host", "lo": "Connection refused"}
    result = outcome(report(interfaces=(LO, ETH, IB)), report(1, peers=peers))
    finding = found(result, "cluster.interface=ib0")["network h100 cluster.interface=eth0"]
    assert finding.level is Level.FAULT and "No route to host" in finding.seen
    nobody = outcome(report(), report(1, peers={"eth0": "timed out", "lo": "Connection refused"}))
    assert found(nobody)["network h100"].level is Level.FAULT
    assert found(outcome(report(), report(1)), "cluster.interface=hsn0")["network h100"].level is Level.FAULT


def test_the_proxy_s_own_node_may_lack_the_fabric() -> None:
    alone = Outcome(checked=job(partition="cpu"), reports=[report(engine=None)], job="7", state="COMPLETED")
    finding = found(alone, "cluster.interface=ib0")["network cpu"]
    assert finding.level is Level.FAULT and finding.todo == "set controller.interface to one of them"
    assert "network cpu" not in found(alone, "cluster.interface=ib0", "controller.interface=eth0")


def test_a_login_node_that_does_not_reach_the_nodes() -> None:
    result = outcome(report(), report(1), reached={"eth0": "timed out", "lo": "Connection refused"})
    assert found(result)["reach h100"].level is Level.WARNING


def test_adapters() -> None:
    up = Hca(name="mlx5_0:1", state="ACTIVE", rate="400 Gb/sec (4X NDR)", link="InfiniBand")
    down = msgspec.structs.replace(up, name="mlx5_1:1", state="DOWN")
    assert found(outcome(report(hcas=(up,), can_rdma=True), report(1))) == {}
    assert found(outcome(report(hcas=(up,), can_rdma=False), report(1)))["adapters"].level is Level.WARNING
    both = outcome(report(hcas=(up, down), can_rdma=True), report(1))
    setting = "cluster.environment.UCX_NET_DEVICES='mlx5_0:1'"
    assert found(both)[f"adapters {setting}"].level is Level.WARNING
    assert found(both, "cluster.environment.UCX_NET_DEVICES=mlx5_0:1") == {}
    configured("+cluster=local", setting)  # it can be pasted


def test_a_transfer_that_fails() -> None:
    broken = msgspec.structs.replace(ENGINE, transfer=Transfer(fault="nixlBackendError: NIXL_ERR_BACKEND"))
    result = found(outcome(report(), report(1, engine=broken)))
    assert "from g001 to g002: nixlBackendError" in result["KV h100"].seen


# ---------------------------------------------------------------- the engine


def test_what_the_preflight_says_is_passed_on() -> None:
    broken = msgspec.structs.replace(ENGINE, faults=("cluster.gres: the job sees 0 GPUs; set cluster.gres",))
    finding = found(outcome(report(engine=broken), report(1)))["engine h100"]
    assert (finding.seen, finding.todo) == ("g001: cluster.gres: the job sees 0 GPUs", "set cluster.gres")


@pytest.mark.parametrize(
    ("imports", "level"), [(Imports(seconds=0, fault="ImportError: x"), "fault"), (Imports(seconds=99), "warning")]
)
def test_an_engine_that_does_not_import_or_takes_long(imports: Imports, level: str) -> None:
    broken = msgspec.structs.replace(ENGINE, imports=imports)
    assert found(outcome(report(engine=broken), report(1)))["engine h100"].level.value == level


@pytest.mark.parametrize(("configured", "level"), [("null", "fault"), ("90", "fault"), ("40", "warning")])
def test_the_memory_of_a_gpu_is_the_drivers(configured: str, level: str) -> None:
    result = found(outcome(report(), report(1)), f"cluster.gpu_memory_gib={configured}")
    assert result["engine h100 cluster.gpu_memory_gib=79.6"].level.value == level


def test_a_disk_for_models_is_named() -> None:
    def seen(*overrides: str) -> str:
        findings = node_findings(outcome(report(), report(1)), configured(*HERE, *overrides))
        return next(each.seen for each in findings if each.topic == "node h100")

    assert "cluster.stage_dir=/tmp would keep models there" in seen()
    assert "stage_dir" not in seen("cluster.stage_dir=/tmp")


def test_gpus_of_others_that_can_be_opened() -> None:
    assert found(outcome(report(num_gpu_files=8), report(1)))["engine h100"].level is Level.WARNING


# ---------------------------------------------------------------- what the jobs are


def test_where_jobs_go() -> None:
    assert check_partitions(configured(*HERE), large()) == ["h100", "cpu"]
    assert check_partitions(configured("+cluster=onebox"), onebox()) == ["gpu"]
    assert check_partitions(configured("+cluster=onebox", "partitions=[low]"), onebox()) == ["low"]
    assert check_partitions(configured("+cluster=local"), onebox()) == [None]


def test_a_job_is_a_small_worker_of_the_plan() -> None:
    small = job(*HERE, "cluster.gres=gpu:h100", "cluster.setup=[module load cuda]")
    assert (small.request.num_nodes, small.request.time_min, small.request.setup) == (2, 10, ("module load cuda",))
    assert (small.request.slurm["gres"], small.request.slurm["partition"]) == ("gpu:h100:1", "h100")
    assert small.request.slurm["account"] == "nlp"
    assert small.check.worker is not None and small.check.worker.gpus_per_node == 1
    assert small.check.worker.run_dir == "/runs/doctor_x/checks/h100"
    assert small.check.trial == ()  # the controller runs elsewhere


def test_the_controllers_partition_is_asked_whether_it_may_submit() -> None:
    small = job(partition="cpu")
    assert small.check.worker is None and small.check.num_nodes == 1
    assert small.check.trial[:2] == ("sbatch", "--test-only") and "--partition=h100" in small.check.trial
    assert small.request.gpus_per_node == 0 and small.request.slurm["partition"] == "cpu"


def test_a_check_of_one_allocation_is_a_job_of_its_own() -> None:
    small = job(*HERE[:3], "action=doctor", "cluster.executor=steps", "controller.where=foreground")
    assert small.request.executor == "slurm" and small.request.slurm["partition"] == "h100"


def test_this_machine() -> None:
    small = job("+cluster=local", partition=None)
    assert small.request.executor == "local" and "partition" not in small.request.slurm
    assert small.check.num_nodes == 1 and small.check.worker is not None
