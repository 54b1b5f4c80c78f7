"""The whole that the proxy's processes make, and what it never does: count back."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from proxy.monitoring.history import INTERVAL_S
from proxy.monitoring.journal import Entry
from proxy.monitoring.metrics import Scrape
from proxy.monitoring.snapshot import Snapshot, merged
from proxy.monitoring.totals import Totals
from proxy.processes.family import Answer, Ask, Show, Shown
from proxy.processes.gathering import ANSWER_TIMEOUT_S, Gathering, Notice

T0 = 1_700_000_000


def totals(number: int) -> Totals:
    """Of a process that has answered so many."""
    made = Totals(requests={("/v1/completions", 200): number}, num_chunks=10 * number)
    traffic = made.traffic
    for _ in range(number):
        traffic.ttft.add(0.125)
        traffic.history.at(T0).ttft.add(0.125)
    traffic.history.at(T0).answered += number
    traffic.routes["prefill-0", "decode-0"] = number
    return made


def snapshot(pid: int = 1, number: int = 1, **changes: Any) -> Snapshot:
    """Of one process, which has given the one worker `number` decodes."""
    worker = {"worker": "decode-0", "generation": 0, "phase": "ready", "running": 5}
    process = {"process": f"p0.{pid}", "pid": pid, "takes_connections": changes.pop("takes_connections", True)}
    pressure = {"queue_s": 1.0, "computed_s": number, "decodes": number, "held_tokens": number, "kv_used": 0.5}
    fleet = {
        "run": "r",
        "ready": True,
        "serving": True,
        "queued": number,
        "queued_tokens": number,
        "open_requests": number,
        "open_tickets": number,
        "workers": [worker | {"prefill_tokens": 100 * number, "decodes": number, "pressure": pressure}],
        "jobs": [],
        "pairs": [{"prefill": "prefill-0", "decode": "decode-0", "proven": True, "fault": ""}],
        "refusals": [],
        "processes": [process],
    }
    gauges = [
        ("sluice_open_requests", "Open.", [({}, float(number))]),
        ("sluice_connections", "Open, by process.", [({"process": f"p0.{pid}"}, float(number))]),
        ("sluice_worker_running", "By the host.", [({"worker": "decode-0"}, 5.0)]),
    ]
    fields: dict[str, Any] = {
        "totals": totals(number),
        "gauges": gauges,
        "journal": [],
        "gpus_per_node": 8,
        "controller_silent_s": None,
    }
    return Snapshot(fleet=fleet | changes.pop("fleet", {}), **(fields | changes))


def test_what_the_processes_do_adds_up_and_a_workers_own_word_does_not() -> None:
    whole = merged(snapshot(1, 1), [snapshot(2, 3)], totals(4))
    assert [whole.fleet[name] for name in ("queued", "open_requests", "open_tickets")] == [4, 4, 4]
    (worker,) = whole.fleet["workers"]
    assert (worker["running"], worker["decodes"], worker["prefill_tokens"]) == (5, 4, 400)
    assert worker["pressure"] == {"queue_s": 2.0, "computed_s": 4, "decodes": 4, "held_tokens": 4, "kv_used": 0.5}
    assert [process["process"] for process in whole.fleet["processes"]] == ["p0.1", "p0.2"]
    assert whole.totals == totals(8)
    page = Scrape(whole.totals, whole.gauges).render().decode().splitlines()
    assert 'sluice_requests_total{path="/v1/completions",status="200"} 8.0' in page
    assert "sluice_ttft_seconds_count 8.0" in page
    assert "sluice_open_requests 4.0" in page
    assert 'sluice_worker_running{worker="decode-0"} 5.0' in page
    assert 'sluice_connections{process="p0.1"} 1.0' in page and 'sluice_connections{process="p0.2"} 3.0' in page


def test_the_proxy_is_ready_when_all_that_take_connections_are() -> None:
    unready = {"ready": False, "serving": False}
    starting = snapshot(2, takes_connections=False, fleet={**unready, "pairs": [], "workers": []})
    assert merged(snapshot(1), [starting], Totals()).fleet["ready"]
    assert merged(starting, [snapshot(1)], Totals()).fleet["serving"]
    assert not merged(snapshot(1), [snapshot(2, fleet=unready)], Totals()).fleet["ready"]
    assert not merged(starting, [], Totals()).fleet["serving"]


def test_a_pair_that_one_has_not_seen_proven_is_not() -> None:
    pair = {"prefill": "prefill-0", "decode": "decode-0", "proven": False, "fault": "no KV came"}
    for one, other in ((snapshot(1), snapshot(2, fleet={"pairs": [pair]})),) * 2:
        assert merged(one, [other], Totals()).fleet["pairs"] == [pair]
        assert merged(other, [one], Totals()).fleet["pairs"] == [pair]


def test_the_same_news_of_two_processes_is_told_once() -> None:
    ready = Entry(T0, "decode-0", 0, "ready")
    late = msgspec.structs.replace(ready, at=T0 + 0.3)
    again = msgspec.structs.replace(ready, at=T0 + 60.0)
    whole = merged(snapshot(1, journal=[late]), [snapshot(2, journal=[ready, again])], Totals())
    assert whole.journal == [ready, again]


def test_who_was_never_silent_and_who_never_heard_of_a_controller() -> None:
    assert merged(snapshot(1), [snapshot(2, controller_silent_s=3.0)], Totals()).controller_silent_s == 3.0
    assert merged(snapshot(1), [snapshot(2)], Totals()).controller_silent_s is None


def test_of_the_last_hour_only_the_asked_part_is_told() -> None:
    made = totals(1)
    made.traffic.history.at(T0 + INTERVAL_S).answered += 1
    assert [interval.start for interval in made.since(T0 + 1).traffic.history.intervals] == [T0 + INTERVAL_S]
    assert len(made.traffic.history.intervals) == 2
    assert made.since(T0 + 1).num_chunks == made.num_chunks


def test_what_is_shown_travels_as_it_is() -> None:
    message = Shown(1, snapshot(1, 2))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Shown) == message


# ---------------------------------------------------------------- gathering


def answered(notices: list[Notice]) -> list[Answer]:
    return [message for _, message in notices if isinstance(message, Answer)]


def test_one_alone_is_answered_at_once() -> None:
    assert Gathering().ask(0, Ask(7, 0, snapshot()), [], 0.0) == [(0, Answer(7, (), Totals()))]


def test_all_others_are_asked_and_the_last_makes_the_answer() -> None:
    gathering = Gathering()
    assert gathering.ask(0, Ask(7, T0, snapshot(1)), [1, 2], 0.0) == [(1, Show(1, T0)), (2, Show(1, T0))]
    assert gathering.shown(1, Shown(1, snapshot(2)), 0.1) == []
    assert gathering.shown(2, Shown(1, snapshot(3)), 0.2) == [(0, Answer(7, (snapshot(2), snapshot(3)), Totals()))]
    assert gathering.tick(60.0) == []


def test_one_that_hangs_is_shown_as_it_was() -> None:
    gathering = Gathering()
    gathering.ask(0, Ask(1, 0, snapshot(1)), [1], 0.0)
    gathering.shown(1, Shown(1, snapshot(2, 5)), 0.0)
    gathering.ask(0, Ask(2, 0, snapshot(1)), [1], 1.0)
    assert gathering.tick(1.0 + ANSWER_TIMEOUT_S) == [(0, Answer(2, (snapshot(2, 5),), Totals()))]


def test_one_that_ends_is_not_waited_for_and_its_counts_stay() -> None:
    gathering = Gathering()
    gathering.ask(0, Ask(1, 0, snapshot(1, 1)), [1], 0.0)
    assert gathering.ended(1, 0.1) == [(0, Answer(1, (), Totals()))]  # it had shown nothing yet
    gathering.shown(2, Shown(0, snapshot(3, 4)), 0.2)
    gathering.ended(2, 0.3)
    assert gathering.ask(0, Ask(2, 0, snapshot(1, 1)), [], 0.4) == [(0, Answer(2, (), totals(4)))]
    gathering.ended(0, 0.5)
    assert gathering.past == totals(5)


@given(st.lists(st.tuples(st.sampled_from(["count", "ask", "die", "leave"]), st.integers(0, 2))))
def test_no_total_ever_goes_back_whoever_is_asked_and_whoever_dies(history: list[tuple[str, int]]) -> None:
    gathering = Gathering()
    counted = dict.fromkeys(range(3), 0)
    told = 0
    for act, number in history:
        if number not in counted:
            continue
        if act == "count":
            counted[number] += 1
        elif act == "ask":
            own = snapshot(number, counted[number])
            others = counted.keys() - {number}
            notices = gathering.ask(number, Ask(1, 0, own), others, 0.0)
            for asked, show in [(to, message) for to, message in notices if isinstance(message, Show)]:
                notices = gathering.shown(asked, Shown(show.number, snapshot(asked, counted[asked])), 0.0)
            (answer,) = answered(notices)
            whole = merged(own, answer.others, answer.past).totals.num_chunks
            assert whole >= told
            told = whole
        else:
            if act == "leave":
                gathering.shown(number, Shown(0, snapshot(number, counted[number])), 0.0)
            del counted[number]
            gathering.ended(number, 0.0)
