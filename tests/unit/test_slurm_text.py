"""slurm_text: what several versions of Slurm print, read by the names of the fields."""

from __future__ import annotations

import pytest

from launcher.site.slurm_text import (
    count,
    minutes,
    options,
    parse_associations,
    parse_config,
    parse_default_account,
    parse_gpus,
    parse_partitions,
    parse_qos,
    parse_reservations,
    parse_shapes,
    parse_start,
    tres,
)
from tests.unit import slurm_texts as texts


def test_the_configuration_with_its_cgroup_part() -> None:
    new, old = parse_config(texts.CONFIG_24_05), parse_config(texts.CONFIG_20_11)
    assert (new["SLURM_VERSION"], new["ConstrainDevices"]) == ("24.05.4", "yes")
    assert (old["SLURM_VERSION"], old["ConstrainDevices"]) == ("20.11.9", "no")
    assert "AuthInfo" not in new  # (null)
    assert parse_config(texts.CONFIG_22_05)["AuthInfo"] == "socket=/tmp/box/munge.socket,cred_expire=6"


def test_partitions_and_their_limits() -> None:
    gpu, low = parse_partitions(texts.PARTITIONS_22_05)
    assert (gpu.name, gpu.is_default, gpu.is_up, gpu.max_minutes, gpu.max_nodes) == ("gpu", True, True, None, None)
    assert (low.is_default, low.grace_s, low.preempts, low.names("AllowAccounts")) == (False, 15, True, None)
    h100, cpu, old = parse_partitions(texts.PARTITIONS_24_05)
    assert (h100.max_minutes, h100.max_nodes, h100.num_nodes, h100.is_exclusive) == (2880, 4, 16, True)
    assert h100.names("AllowAccounts") == ("nlp", "vision")
    assert h100.fields["TRESBillingWeights"] == "CPU=1.0,Mem=0.25G"
    assert (cpu.max_minutes, cpu.names("DenyAccounts"), cpu.preempts) == (720, ("guests",), False)
    assert not old.is_up


def test_nodes_are_told_by_shape() -> None:
    first, second, down, cpu, old = parse_shapes(texts.SINFO_24_05)
    assert (first.partition, first.nodes, first.cpus, first.mem_mb, first.gpus) == (
        "h100",
        10,
        192,
        2000000,
        {"h100": 8},
    )
    assert (second.state, down.state) == ("mix", "down")
    assert cpu.gpus == {} and old.gpus == {"v100": 4, "a100": 2}


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("gpu:8", {"": 8}),
        ("gpu:fake:4", {"fake": 4}),
        ("gpu:h100:8(S:0-1)", {"h100": 8}),
        ("gpu:nvidia_a100_1g.5gb:7(S:0,2),gpu:nvidia_a100:3(S:1)", {"nvidia_a100_1g.5gb": 7, "nvidia_a100": 3}),
        ("craynetwork:4,gpu:a100:4,shard:a100:64(S:0-3)", {"a100": 4}),
    ],
)
def test_gpus_of_a_gres(gres: str, gpus: dict[str, int]) -> None:
    assert parse_gpus(gres) == gpus


def test_accounts_and_qos() -> None:
    nlp, teaching = parse_associations(texts.ASSOCIATIONS)
    assert (nlp.account, nlp.partition, nlp.qos, nlp.default_qos) == ("nlp", "", ("long", "normal"), "normal")
    assert nlp.limits == {"MaxTRES": "gres/gpu=16"}
    assert (teaching.account, teaching.partition) == ("teaching", "cpu")
    normal, long, part = parse_qos(texts.QOS)
    assert normal.limits["MaxWall"] == "1-00:00:00" and normal.limits["MaxJobsPU"] == "4"
    assert long.limits == {"MaxWall": "7-00:00:00"} and part.limits == {"GrpTRES": "gres/gpu=12"}
    assert parse_associations("") == [] == parse_qos("")
    assert parse_default_account("User|Def Acct|Admin\nann|nlp|None\n") == "nlp" and parse_default_account("") == ""


def test_accounts_and_qos_as_a_real_accounting_daemon_tells_them() -> None:
    teaching, nlp, _ = parse_associations(texts.ASSOCIATIONS_22_05)
    assert (teaching.partition, teaching.limits) == ("low", {})
    assert nlp.limits == {"GrpTRES": "gres/gpu=4", "MaxJobs": "2"} and nlp.qos == ("normal", "small")
    _, small = parse_qos(texts.QOS_22_05)
    expected = {
        "GrpTRES": "gres/gpu=8",
        "MaxWall": "01:00:00",
        "MaxTRESPU": "gres/gpu:fake=2,gres/gpu=2",
        "MaxJobsPU": "2",
    }
    assert small.limits == expected


def test_reservations() -> None:
    maintenance, course = parse_reservations(texts.RESERVATIONS)
    assert (maintenance.name, maintenance.start) == ("summer", "2026-12-01T08:00:00")
    assert "MAINT" in maintenance.flags and "MAINT" not in course.flags
    assert parse_reservations("No reservations in the system\n") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNLIMITED", None),
        ("INFINITE", None),
        ("", None),
        ("30", 30),
        ("30:00", 30),
        ("04:00:00", 240),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
    ],
)
def test_times(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


def test_small_values() -> None:
    assert (count("30 sec"), count("UNLIMITED"), count("0"), count("")) == (30, None, 0, None)
    assert tres("cpu=4,mem=2G,gres/gpu:h100=8") == {"cpu": 4, "gres/gpu:h100": 8}
    assert options("socket=/x,ttl=300,flag") == {"socket": "/x", "ttl": "300", "flag": ""}
    words = "sbatch: Job 7 to start at 2026-11-21T09:28:57 using 1 processors on nodes n1 in partition gpu"
    assert parse_start(words) == "2026-11-21T09:28:57" and parse_start("sbatch: ok") == ""
