"""The doctor's judgement: texts of a site and a configuration in, findings out."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import msgspec
import pytest

from launcher.config import load
from launcher.job import Plan
from launcher.schema import Config
from launcher.site.accounts import account_findings
from launcher.site.facts import Interface, Machine, Site, Trial
from launcher.site.finding import Finding, Level, Report, fault, ok, warning
from launcher.site.machine import machine_findings
from launcher.site.partitions import fit_findings, partition_findings
from launcher.site.policies import memory_finding, policy_findings, preemption_findings, slurm_findings
from launcher.site.slurm_text import (
    parse_associations,
    parse_config,
    parse_partitions,
    parse_qos,
    parse_reservations,
    parse_shapes,
)
from launcher.site.trials import gpu_requests, gpu_style_finding, job_findings, trial_command
from tests.unit import slurm_texts as texts
from tests.unit.planning import plan_of
from tests.unit.test_mounts import MOUNTS


def onebox() -> Site:
    return Site(
        config=parse_config(texts.CONFIG_22_05),
        partitions=tuple(parse_partitions(texts.PARTITIONS_22_05)),
        shapes=tuple(parse_shapes(texts.SINFO_22_05)),
        user="ann",
        accounting_fault="Slurm accounting storage is disabled",
    )


def large(**changes: object) -> Site:
    site = Site(
        config=parse_config(texts.CONFIG_24_05),
        partitions=tuple(parse_partitions(texts.PARTITIONS_24_05)),
        shapes=tuple(parse_shapes(texts.SINFO_24_05)),
        reservations=tuple(parse_reservations(texts.RESERVATIONS)),
        user="ann",
        associations=tuple(parse_associations(texts.ASSOCIATIONS)),
        default_account="nlp",
        qos=tuple(parse_qos(texts.QOS)),
    )
    return msgspec.structs.replace(site, **changes)


HERE = ("+cluster=h100x2", "cluster.partition=h100", "cluster.account=nlp")


@cache
def configured(*overrides: str) -> Config:
    return load(overrides)


@cache
def planned(*overrides: str) -> Plan:
    return plan_of(configured(*overrides))


def troubles(findings: Iterable[Finding]) -> dict[str, str]:
    """Setting -> level, of what is not ok."""
    return {each.setting or each.seen: each.level.value for each in findings if each.level is not Level.OK}


def settings(findings: Iterable[Finding]) -> list[str]:
    return [each.setting for each in findings if each.level is not Level.OK]


def fits(site: Site, *overrides: str, plan: Plan | None = None) -> dict[str, str]:
    return troubles(fit_findings(site, configured(*overrides), plan))


# ---------------------------------------------------------------- Slurm and its policies


def test_a_machine_without_slurm_is_a_finding() -> None:
    [finding] = slurm_findings(Site(missing=("sinfo", "sbatch")))
    assert finding.level is Level.FAULT and finding.seen == "sinfo, sbatch: command not found"
    [finding] = slurm_findings(Site(fault="sinfo: Unable to contact slurm controller (connect failure)"))
    assert finding.level is Level.FAULT and "Unable to contact" in finding.seen
    [finding] = slurm_findings(Site())
    assert finding.level is Level.FAULT


def test_an_old_slurm_is_told() -> None:
    assert next(slurm_findings(large())).level is Level.OK
    config = parse_config(texts.CONFIG_20_11)
    assert next(slurm_findings(large(config=config))).level is Level.OK
    assert next(slurm_findings(large(config=config | {"SLURM_VERSION": "19.05.5"}))).level is Level.FAULT


def test_a_short_memory_asks_for_shorter_polls() -> None:
    site = large(config=parse_config(texts.CONFIG_24_05) | {"MinJobAge": "20 sec"})
    assert "controller.poll_interval_s=10" in settings(policy_findings(site, configured(*HERE)))
    assert settings(policy_findings(large(reservations=()), configured(*HERE))) == []


def test_gpus_that_are_not_confined_are_told() -> None:
    config = configured("+cluster=onebox")
    assert any(each.topic == "confinement" for each in policy_findings(onebox(), config) if each.level is Level.WARNING)
    old = large(config=parse_config(texts.CONFIG_20_11))
    assert any(each.topic == "confinement" for each in policy_findings(old, config) if each.level is Level.WARNING)


def test_a_maintenance_is_told_and_another_reservation_is_not() -> None:
    found = [each for each in policy_findings(large(), configured(*HERE)) if each.topic == "maintenance"]
    assert len(found) == 1 and "2026-12-01T08:00:00" in found[0].seen


def test_copies_of_a_model_that_would_end_with_their_job() -> None:
    def staging(where: str, kind: str) -> list[Level]:
        site = large(config=parse_config(texts.CONFIG_24_05) | {"JobContainerType": kind})
        found = policy_findings(site, configured(*HERE, f"cluster.stage_dir={where}"))
        return [each.level for each in found if each.topic == "staging"]

    assert staging("/tmp/models", "job_container/tmpfs") == [Level.WARNING]
    assert staging("/local", "job_container/tmpfs") == [] == staging("/tmp/models", "job_container/none")


def test_how_long_a_requeue_takes() -> None:
    def ends(site: Site) -> str:
        return next(each.seen for each in policy_findings(site, configured(*HERE)) if each.topic == "ends")

    assert "a requeued one waits 7 s" in ends(onebox()) and "a requeued one waits 121 s" in ends(large())


@pytest.mark.parametrize(
    ("site", "partition", "level"),
    [
        (onebox(), "gpu", Level.OK),  # the highest tier
        (onebox(), "low", Level.WARNING),  # 15 s of grace, 120 s of drain
        (large(), "h100", Level.OK),  # by QOS, 120 s of grace
        (large(), "cpu", Level.OK),  # PreemptMode=OFF
    ],
)
def test_preemption(site: Site, partition: str, level: Level) -> None:
    part = site.partition(partition)
    assert part is not None
    [finding] = preemption_findings(site, configured("+cluster=onebox"), part)
    assert finding.level is level


def test_a_job_that_would_take_all_memory() -> None:
    site = large(config=parse_config(texts.CONFIG_20_11))
    cluster = configured(*HERE, "cluster.mem_gb=null").cluster
    partition = site.partition("h100")
    assert cluster is not None and partition is not None
    [finding] = memory_finding(site, cluster, partition)
    assert finding.setting == "cluster.mem_gb=1953" and "DefMemPerGPU=204800" in finding.seen
    assert not list(memory_finding(onebox(), cluster, partition))


# ---------------------------------------------------------------- does it fit


def test_what_fits_is_ok() -> None:
    assert fits(onebox(), "+cluster=onebox") == {}
    assert fits(large(), *HERE, "controller.partition=cpu") == {}


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (("cluster.partition=h10",), "cluster.partition=h100"),
        (("cluster.walltime_min=3000", "controller.walltime_min=60"), "cluster.walltime_min=2880"),
        (("cluster.gpus_per_node=16",), "cluster.gpus_per_node=8"),
        (("cluster.gres=gpu:h200",), "cluster.gres=gpu:h100"),
        (("cluster.cpus_per_node=256",), "cluster.cpus_per_node=192"),
        (("cluster.mem_gb=4000",), "cluster.mem_gb=1953"),
        (("cluster.nodes=17",), "cluster.nodes=16"),
        (("cluster.qos=fast",), "cluster.qos=normal"),
        (("controller.walltime_min=1000",), "controller.walltime_min=720"),
        (("controller.partition=c",), "controller.partition=cpu"),
    ],
)
def test_what_does_not_fit_names_the_key_and_the_value(overrides: tuple[str, ...], setting: str) -> None:
    assert fits(large(), *HERE, "controller.partition=cpu", *overrides) == {setting: "fault"}


def test_nodes_that_are_down_for_now() -> None:
    assert fits(large(), *HERE, "controller.partition=cpu", "cluster.nodes=14") == {"cluster.nodes=13": "warning"}


def test_whole_nodes_for_a_small_controller() -> None:
    assert fits(large(), *HERE) == {"controller.partition=cpu": "warning"}


def test_several_types_of_gpu_want_a_name() -> None:
    found = fits(large(), "+cluster=h100x2", "cluster.partition=old", "cluster.gpus_per_node=4", "cluster.nodes=1")
    assert found["cluster.gres=gpu:v100"] == "warning"


def test_a_partition_that_is_down_or_for_others() -> None:
    down = fits(large(), "+cluster=h100x1", "cluster.partition=old", "cluster.gres=gpu:v100", "cluster.gpus_per_node=4")
    assert "old is DRAIN" in down
    others = fits(large(), *HERE, "cluster.account=physics", "controller.where=foreground")
    assert others == {"h100 is for the accounts nlp, vision; yours: physics": "fault"}
    denied = fits(large(), *HERE, "cluster.account=guests", "cluster.partition=cpu", "cluster.gpus_per_node=0")
    assert "cpu denies account guests" in denied


def test_without_a_default_partition_one_must_be_named() -> None:
    partitions = tuple(each for each in large().partitions if not each.is_default)
    found = fits(large(partitions=partitions), "+cluster=h100x1", "controller.where=foreground")
    assert found == {"cluster.partition=h100": "fault"}


def test_a_worker_over_more_nodes_than_a_job_may_have() -> None:
    plan = planned(*HERE, "cluster.nodes=3", "pools.prefill.nodes=2", "pools.prefill.gpus_per_node=4")
    partition = large().partition("h100")
    assert partition is not None
    narrow = msgspec.structs.replace(partition, fields=partition.fields | {"MaxNodes": "1"})
    assert "pools.prefill.nodes=1" in fits(large(partitions=(narrow,)), *HERE, plan=plan)


def test_a_site_that_nobody_has_configured_is_described() -> None:
    words = [each.seen for each in partition_findings(large())]
    assert words[0] == (
        "h100, at most 2880 min, 10 alloc nodes of 192 CPUs, 1953 GB, 8 h100, 3 mix nodes of 192 CPUs, 1953 GB, 8 h100,"
        " 3 down nodes of 192 CPUs, 1953 GB, 8 h100"
    )
    assert words[1].startswith("cpu (default), at most 720 min, 100 idle nodes")


# ---------------------------------------------------------------- accounts


def accounts(site: Site, *overrides: str) -> dict[str, str]:
    return troubles(account_findings(site, configured(*overrides), planned(*overrides)))


def test_limits_of_account_and_qos() -> None:
    small = (*HERE, "model=llama-3.1-8b", "pools.prefill.tensor_parallel=4", "pools.decode.tensor_parallel=4")
    assert accounts(large(), *small) == {}
    assert accounts(large(), *HERE) == {
        "the run takes 16 GPUs, QOS normal allows 8 (MaxTRESPU)": "fault",
        "the run takes 16 GPUs, QOS p_h100 allows 12 (GrpTRES)": "fault",
    }
    assert accounts(large(), *small, "cluster.walltime_min=2000") == {"cluster.walltime_min=1440": "fault"}
    assert accounts(large(), *small, "cluster.walltime_min=2000", "cluster.qos=long") == {}
    many = accounts(
        large(), *small, "pools.prefill.tensor_parallel=2", "pools.decode.tensor_parallel=2", "pools.decode.replicas=3"
    )
    assert many == {"the run is 5 jobs, QOS normal allows 4 (MaxJobsPU)": "fault"}


def test_accounts_that_are_not_ones_own() -> None:
    assert accounts(large(), *HERE, "cluster.account=physics") == {"cluster.account=nlp": "fault"}
    assert accounts(large(), *HERE, "cluster.account=teaching") == {"cluster.account=nlp": "fault"}  # of cpu only
    assert accounts(large(default_account="teaching"), *HERE, "cluster.account=null") == {
        "cluster.account=nlp": "fault"
    }
    assert accounts(large(), *HERE, "cluster.qos=fast")["cluster.qos=long"] == "fault"
    assert accounts(large(associations=()), *HERE) == {"ann has no account on this cluster": "fault"}


def test_where_accounting_does_not_answer() -> None:
    assert accounts(onebox(), "+cluster=onebox", "engine=sim") == {}
    silent = large(associations=None, accounting_fault="Access denied")
    assert set(accounts(silent, *HERE).values()) == {"warning"}


# ---------------------------------------------------------------- trials


def test_how_gpus_are_asked_for() -> None:
    cluster = configured("+cluster=onebox").cluster
    assert cluster is not None
    asked = gpu_requests(cluster, ["fake", ""])
    assert list(asked) == ["cluster.gres=null", "cluster.gres=gpu", "cluster.gres=gpu:fake"]
    given = ("cluster.account=nlp", "cluster.sbatch.exclusive=true", "cluster.sbatch.constraint=fast")
    command = trial_command("gpu", configured("+cluster=onebox", *given).cluster, asked["cluster.gres=gpu:fake"])
    assert command[:2] == ["sbatch", "--test-only"] and "--gres=gpu:fake:1" in command
    assert {"--partition=gpu", "--account=nlp", "--exclusive", "--constraint=fast"} < set(command)
    refused = Trial(accepted=False, words="allocation failure: Invalid generic resource (gres) specification")
    granted = Trial(accepted=True, words="")
    assert gpu_style_finding(cluster, dict.fromkeys(asked, granted)).level is Level.OK
    only_gres = {**dict.fromkeys(asked, granted), "cluster.gres=null": refused}
    finding = gpu_style_finding(cluster, only_gres)
    assert (finding.level, finding.setting) == (Level.FAULT, "cluster.gres=gpu")
    nothing = gpu_style_finding(cluster, dict.fromkeys(asked, refused))
    assert nothing.level is Level.FAULT and not nothing.setting
    typed = configured(*HERE, "cluster.gres=gpu:h100_80").cluster
    assert typed is not None
    answers = {**dict.fromkeys(gpu_requests(typed, ["a100", "h100"]), granted), "cluster.gres=gpu:h100_80": refused}
    assert gpu_style_finding(typed, answers).setting == "cluster.gres=gpu:h100", "as the partition's own finding says"


def test_each_job_of_the_plan_is_told() -> None:
    trials = {
        "demo.controller": Trial(accepted=False, words="error: GPU partitions take no CPU jobs"),
        "demo.decode-0.g0": Trial(accepted=True, words="", start="2026-11-21T09:28:57"),
    }
    decode, controller = job_findings(trials)
    assert controller.level is Level.FAULT and "take no CPU jobs" in controller.seen
    assert decode.seen == "demo.decode-0.g0: accepted, to start at 2026-11-21T09:28:57"


# ---------------------------------------------------------------- this machine


def machine(**changes: object) -> Machine:
    here = Machine(
        host="login1",
        mounts=MOUNTS,
        interfaces=(Interface(name="eth0", address="10.1.2.3"),),
        containers=("apptainer",),
        engine_version="0.32.0",
        handoff_version="1.5.1",
        free_bytes={"/home/ann/runs": 50 << 30, "/tmp/runs": 1 << 20},
    )
    return msgspec.structs.replace(here, **changes)


def test_a_run_folder_that_others_cannot_see() -> None:
    config = configured(*HERE)
    shared = machine_findings(machine(), config, "/home/ann/runs", "/home/ann/venv", proven=False)
    assert troubles(shared) == {}
    found = list(machine_findings(machine(), config, "/tmp/runs", "/home/ann/venv", proven=False))
    assert [each.level for each in found if each.topic == "files"] == [Level.WARNING, Level.OK, Level.FAULT]
    local = configured("+cluster=local")
    assert all(
        each.level is Level.OK for each in machine_findings(machine(), local, "/home/ann/runs", "/", proven=False)
    )


def test_a_proxy_of_this_machine_that_has_no_such_interface() -> None:
    def network(*overrides: str) -> Finding:
        config = configured(*HERE, "cluster.interface=ib0", *overrides)
        found = machine_findings(machine(), config, "/home/ann/runs", "/home/ann", proven=False)
        return next(each for each in found if each.topic == "network")

    assert network().level is Level.OK, "it is a job's"
    here = network("controller.where=foreground")
    assert here.level is Level.FAULT and "listen on ib0; login1 has eth0 10.1.2.3" in here.seen
    assert network("controller.where=foreground", "controller.interface=eth0").level is Level.OK
    assert network("controller.where=foreground", "cluster.executor=steps").level is Level.OK


def test_an_engine_that_is_missing_or_another() -> None:
    config = configured(*HERE)

    def software(**changes: object) -> Finding:
        found = machine_findings(machine(**changes), config, "/home/ann/runs", "/home/ann", proven=False)
        return next(each for each in found if each.topic == "software")

    assert software().level is Level.OK
    assert software(engine_version="").level is Level.FAULT and software(handoff_version="").level is Level.FAULT
    assert software(engine_version="0.31.0").setting == "engine.version=0.31.0"
    inside = configured(*HERE, "cluster.engine_prefix=[apptainer,exec,x.sif]")
    found = machine_findings(machine(engine_version=""), inside, "/home/ann/runs", "/home/ann", proven=False)
    assert next(each for each in found if each.topic == "software").level is Level.OK


# ---------------------------------------------------------------- the report


def test_a_report_counts_and_lists_what_to_set() -> None:
    findings = (ok("a", "x"), warning("b", "y", "z", "cluster.nodes=1"), fault("c", "y", "z", "cluster.nodes=1"))
    report = Report(cluster="mine", slurm_version="", submitted=False, jobs=(), findings=findings)
    assert (report.faults, report.warnings, report.settings) == (1, 1, ["cluster.nodes=1"])
