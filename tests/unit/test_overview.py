"""What operators are shown: whom to scrape, the overview, how old the controller's word is, what has happened."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from proxy.errors import BadRequest
from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import LoadTold, PhaseTold, Registering
from proxy.fleet.job_board import JobBoard
from proxy.fleet.turns import Turns
from proxy.flights.flights import Flights
from proxy.monitoring.journal import MAX_ENTRIES, MAX_TEXT, Journal
from proxy.monitoring.overview import overview_json, since_of
from proxy.monitoring.snapshot import Snapshot
from proxy.monitoring.targets import asked_host, targets_json
from proxy.monitoring.totals import Totals
from proxy.monitoring.traffic import Traffic
from proxy.monitoring.view import fleet_json, gauges
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.router import Router
from proxy.spec import Deadlines, Limits, RoutingSpec
from tests.unit.proxies import bring_up, peer, proxy_spec, register
from workers.agent.lifecycle import DRAINING
from workers.controller_messages import Jobs, JobView
from workers.protocol import Load, Part

JOB = JobView("decode-0", "decode", "decode", 0, "7", "PENDING", "Resources", num_nodes=2, gpus=8)


def fleet_of(*workers: tuple[str, int]) -> Fleet:
    fleet = Fleet(proxy_spec())
    for worker, generation in workers:
        bring_up(fleet, worker, generation)
    return fleet


# ---------------------------------------------------------------- whom to scrape


def targets(fleet: Fleet, *, tls: bool = False) -> list[dict[str, Any]]:
    return targets_json("gpu1:8000", tls=tls, run="demo", proxy="p0", workers=fleet.workers.values())


def test_the_proxy_and_every_worker_that_is_up_are_targets() -> None:
    own, decode, prefill = targets(fleet_of(("prefill-0", 0), ("decode-0", 0)))
    scheme = {"run": "demo", "__scheme__": "http"}
    assert own == {"targets": ["gpu1:8000"], "labels": {**scheme, "proxy": "p0", "__metrics_path__": "/metrics"}}
    placed = {"pool": "decode", "worker": "decode-0", "role": "decode", "node": "n1"}
    path = {"__metrics_path__": "/workers/decode-0/metrics"}
    assert decode == {"targets": ["gpu1:8000"], "labels": {**scheme, **placed, **path}}
    assert prefill["labels"]["worker"] == "prefill-0"


def test_a_worker_that_drains_is_none_and_two_lives_are_one() -> None:
    fleet = fleet_of(("prefill-0", 0), ("decode-0", 0), ("decode-0", 1))
    fleet.apply(PhaseTold(peer("prefill-0", Part.AGENT), DRAINING, ""), 1.0)
    assert [target["labels"].get("worker") for target in targets(fleet)] == [None, "decode-0"]
    assert targets(fleet, tls=True)[0]["labels"]["__scheme__"] == "https"


@pytest.mark.parametrize("host", ["gpu1:8000", "localhost", "10.0.0.1:1", "[fe80::1]:8000", "[::1]"])
def test_the_targets_are_where_prometheus_has_asked(host: str) -> None:
    assert asked_host({b"accept": b"x", b"host": host.encode()}) == host


@pytest.mark.parametrize("host", [None, "", "a b", "a/b", "a@b:1", "a:123456", "a,b", '"'])
def test_what_is_no_host_is_refused(host: str | None) -> None:
    with pytest.raises(BadRequest, match="Host header"):
        asked_host({} if host is None else {b"host": host.encode()})


def test_the_end_of_a_job_is_a_metric_where_there_is_one() -> None:
    fleet = fleet_of(("decode-0", 0))
    ending = register("decode-1", Part.AGENT, end_time=1.5e9, gpus=(4, 5))
    fleet.apply(Registering(peer("decode-1", Part.AGENT), ending), 0.0)
    told = {name: samples for name, _, samples in gauges(fleet, flights_of(fleet), "p0.0", 0)}
    assert told["sluice_worker_end_time_seconds"] == [({"worker": "decode-1", "generation": "0"}, 1.5e9)]
    assert len(told["sluice_worker_up"]) == 2
    assert overview(fleet, JobBoard())["workers"][1]["gpus"] == [4, 5]


# ---------------------------------------------------------------- the overview


def flights_of(fleet: Fleet) -> Flights:
    return Flights(fleet, PrefixIndex(), Router(RoutingSpec(), Random(1)), Limits(), Deadlines())


def overview(fleet: Fleet, board: JobBoard, *, since: int = 0, traffic: Traffic | None = None) -> dict[str, Any]:
    shown = fleet_json(fleet, flights_of(fleet), Turns(0), board.jobs, (), "r", now=20.0, unix=1_700_000_000.0)
    snapshot = Snapshot(
        fleet=shown,
        totals=Totals(traffic=traffic or Traffic()),
        gauges=[],
        journal=[],
        gpus_per_node=board.gpus_per_node,
        controller_silent_s=board.silence_s(20.0),
    )
    value = overview_json(snapshot, proxy_spec(), since=since, unix=1_700_000_000.0)
    encoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return encoded


def test_a_worker_is_shown_with_its_load_and_the_age_of_it() -> None:
    fleet = fleet_of(("decode-0", 0))
    fleet.apply(LoadTold(("decode-0", 0), Load(3, 1, 0, 0, kv_used=0.5)), 17.5)
    [worker] = overview(fleet, JobBoard())["workers"]
    assert (worker["running"], worker["waiting"], worker["kv_used"], worker["heard_s_ago"]) == (3, 1, 0.5, 2.5)


def test_what_waits_is_shown_with_what_it_wants() -> None:
    board = JobBoard()
    board.told(Jobs((JOB,), 8))
    shown = overview(fleet_of(), board)
    assert (shown["gpus_per_node"], shown["wanted"]) == (8, {"prefill-0": "prefill", "decode-0": "decode"})
    [job] = shown["jobs"]
    assert (job["reason"], job["num_nodes"], job["gpus"], job["nodes"]) == ("Resources", 2, 8, [])


def test_only_the_asked_part_of_the_hour_is_told() -> None:
    traffic = Traffic()
    for second in (0, 10, 20):
        traffic.history.at(1_699_999_970 + second).answered = second
    told = overview(fleet_of(), JobBoard(), since=1_699_999_980, traffic=traffic)["history"]["intervals"]
    assert [interval["answered"] for interval in told] == [10, 20]


@pytest.mark.parametrize(("query", "since"), [(b"", 0), (b"since=1700000000", 1_700_000_000), (b"other=1", 0)])
def test_since(query: bytes, since: int) -> None:
    assert since_of(query) == since


@pytest.mark.parametrize("query", [b"since=-1", b"since=x", b"since=1.5", b"since=1&since=2", b"since=" + b"9" * 13])
def test_a_bad_since_is_refused(query: bytes) -> None:
    with pytest.raises(BadRequest, match="unix time"):
        since_of(query)


# ---------------------------------------------------------------- how old it is, and what was


def test_the_controllers_word_ages_once_its_last_link_is_gone() -> None:
    board = JobBoard()
    assert board.silence_s(5.0) is None
    board.joined(b"a")
    board.joined(b"b")
    board.told(Jobs((JOB,), 8))
    board.left(b"a", 6.0)
    board.left(b"a worker", 6.5)
    assert board.silence_s(7.0) == 0.0
    board.left(b"b", 8.0)
    assert board.silence_s(10.0) == 2.0
    assert board.jobs == (JOB,), "old, and told as old"


def test_the_journal_is_bounded() -> None:
    journal = Journal()
    for i in range(2 * MAX_ENTRIES):
        journal.note(float(i), ("decode-0", 0), f"lost: {'x' * 1000}\nand a log")
    assert len(journal.entries) == MAX_ENTRIES and journal.entries[-1].at == 2 * MAX_ENTRIES - 1
    assert len(journal.entries[0].text) == MAX_TEXT
