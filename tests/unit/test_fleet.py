"""Who is there, who is refused, and what must be proven before it serves."""

import pytest

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import (
    Accept,
    CapsTold,
    PeerLost,
    PhaseTold,
    ProofFailed,
    Proven,
    Refuse,
    Registering,
    WorkerLost,
)
from proxy.fleet.turns import Turns
from proxy.monitoring.view import fleet_view
from proxy.spec import PoolCaps
from tests.unit.proxies import bring_up, capabilities, peer, proxy_spec, register
from workers.agent.lifecycle import DRAINING, FAILED, READY, STOPPED
from workers.protocol import Part


def test_a_worker_is_up_only_with_both_links_and_a_ready_phase() -> None:
    fleet = Fleet(proxy_spec())
    fleet.apply(Registering(b"a", register("decode-0", Part.AGENT)), 0.0)
    assert not fleet.workers["decode-0", 0].up
    bring_up(fleet, "decode-0")
    assert fleet.workers["decode-0", 0].up


def test_the_end_of_a_start_is_seen_by_the_proxy() -> None:
    """Its agent tells what it did; how long the link and the proof took is ours to see. A prefill worker's too."""
    fleet = Fleet(proxy_spec())
    keys = {}
    for worker, at in (("prefill-0", 0.0), ("decode-0", 1.0)):
        agent, host = peer(worker, Part.AGENT), peer(worker, Part.HOST)
        fleet.apply(Registering(agent, register(worker, Part.AGENT)), at)
        fleet.apply(PhaseTold(agent, READY, "", (("load", 9.0),)), at + 10.0)
        fleet.apply(Registering(host, register(worker, Part.HOST)), at + 10.5)
        keys[worker] = (worker, 0)
    assert dict(fleet.workers[keys["decode-0"]].stages) == {"load": 9.0, "register": 0.5}
    fleet.apply(Proven((keys["prefill-0"], keys["decode-0"])), 12.0)
    fleet.apply(Proven((keys["prefill-0"], keys["decode-0"])), 99.0)
    assert [dict(fleet.workers[key].stages)["proof"] for key in keys.values()] == [1.5, 0.5]
    assert [view.stages for view in fleet_view(fleet, Turns(0)).workers] == [
        worker.stages for worker in fleet.workers.values()
    ]


def test_draining_takes_it_out() -> None:
    fleet = Fleet(proxy_spec())
    key = bring_up(fleet, "decode-0")
    fleet.apply(PhaseTold(peer("decode-0", Part.AGENT), DRAINING, "SIGTERM"), 1.0)
    assert not fleet.workers[key].up
    assert not fleet.serving


def test_a_failed_engine_is_lost_before_its_links_end() -> None:
    fleet = Fleet(proxy_spec())
    key = bring_up(fleet, "decode-0")
    effects = fleet.apply(PhaseTold(peer("decode-0", Part.AGENT), FAILED, "it died\nits log"), 1.0)
    assert WorkerLost(key, "it died") in effects
    assert fleet.workers[key].detail == "it died\nits log"


@pytest.mark.parametrize(("phase", "as_asked"), [(READY, False), (FAILED, False), (DRAINING, True), (STOPPED, True)])
def test_a_worker_that_was_told_to_end_has_ended_as_asked(phase: str, as_asked: bool) -> None:
    fleet = Fleet(proxy_spec())
    key = bring_up(fleet, "decode-0")
    fleet.apply(PhaseTold(peer("decode-0", Part.AGENT), phase, "why"), 1.0)
    effects = fleet.apply(PeerLost(peer("decode-0", Part.HOST), "drained"), 2.0)
    assert WorkerLost(key, "drained", as_asked) in effects


def test_the_goodbye_of_a_drained_host_may_come_before_its_agents_word() -> None:
    fleet = Fleet(proxy_spec())
    key = bring_up(fleet, "decode-0")
    effects = fleet.apply(PeerLost(peer("decode-0", Part.HOST), "drained", as_asked=True), 1.0)
    assert WorkerLost(key, "drained", as_asked=True) in effects


def test_nothing_serves_before_its_proof() -> None:
    fleet = Fleet(proxy_spec())
    prefill = bring_up(fleet, "prefill-0", prove=False)
    decode = bring_up(fleet, "decode-0", prove=False)
    assert fleet.expected_pairs() == [(prefill, decode)]
    assert not fleet.serving
    fleet.apply(Proven((prefill, decode)), 0.0)
    assert fleet.serving
    assert fleet.ready


def test_a_lone_decode_worker_proves_itself_with_a_completion() -> None:
    fleet = Fleet(proxy_spec())
    decode = bring_up(fleet, "decode-0", prove=False)
    assert fleet.expected_pairs() == [(None, decode)]


def test_engines_that_cannot_exchange_kv_are_no_pair() -> None:
    fleet = Fleet(proxy_spec())
    bring_up(fleet, "prefill-0")
    decode = bring_up(fleet, "decode-0")
    fleet.workers[decode].capabilities = capabilities("other dtype")
    assert fleet.expected_pairs() == [(None, decode)]


def test_one_lost_link_is_the_worker_lost_and_the_other_part_registers_anew() -> None:
    fleet = Fleet(proxy_spec())
    key = bring_up(fleet, "decode-0")
    effects = fleet.apply(PeerLost(peer("decode-0", Part.AGENT), "gone"), 1.0)
    assert WorkerLost(key, "gone") in effects
    assert any(isinstance(e, Refuse) and e.peer == peer("decode-0", Part.HOST) and not e.final for e in effects)
    assert not fleet.workers
    assert not fleet.by_peer
    assert not fleet.proven


def test_the_same_worker_from_another_process_is_refused_for_good() -> None:
    fleet = Fleet(proxy_spec())
    key = bring_up(fleet, "decode-0")
    stranger = register("decode-0", Part.AGENT, incarnation="other")
    effects = fleet.apply(Registering(b"stranger", stranger), 1.0)
    assert [e.final for e in effects if isinstance(e, Refuse)] == [True]
    assert "registered already" in fleet.refusals[0]
    assert fleet.workers[key].up


def test_a_new_session_of_the_same_process_replaces_the_old_one() -> None:
    fleet = Fleet(proxy_spec())
    bring_up(fleet, "decode-0")
    effects = fleet.apply(Registering(b"again", register("decode-0", Part.HOST)), 1.0)
    assert any(isinstance(e, WorkerLost) for e in effects)
    assert Accept(b"again", 1) in effects
    assert fleet.workers["decode-0", 0].host == b"again"


def test_another_protocol_and_another_pool_are_refused_with_the_reason() -> None:
    fleet = Fleet(proxy_spec())
    for stranger in (register("decode-0", Part.AGENT, protocol=9), register("other-0", Part.AGENT)):
        (refusal, _) = fleet.apply(Registering(b"x", stranger), 0.0)
        assert isinstance(refusal, Refuse)
        assert refusal.final
    assert "speaks protocol 9" in fleet.refusals[0]
    assert "not part of run r" in fleet.refusals[1]


def test_two_generations_live_side_by_side() -> None:
    fleet = Fleet(proxy_spec())
    bring_up(fleet, "decode-0", 0)
    bring_up(fleet, "decode-0", 1)
    assert {key for key, worker in fleet.workers.items() if worker.up} == {("decode-0", 0), ("decode-0", 1)}


def test_the_controller_is_told_why_a_hand_over_is_not_proven() -> None:
    fleet = Fleet(proxy_spec())
    prefill = bring_up(fleet, "prefill-0", prove=False)
    decode = bring_up(fleet, "decode-0", prove=False)
    fleet.apply(ProofFailed((prefill, decode), "no KV came"), 0.0)
    assert fleet_view(fleet, Turns(0)).faults == ("prefill-0 -> decode-0: no KV came",)
    fleet.apply(Proven((prefill, decode)), 1.0)
    assert fleet_view(fleet, Turns(0)).faults == ()


def moved(**caps: tuple[int, int]) -> CapsTold:
    return CapsTold(
        {name.replace("_", "-"): PoolCaps(max_prefill_tokens=p, max_decodes=d) for name, (p, d) in caps.items()}
    )


def both(*names: str) -> Fleet:
    able = PoolCaps(max_prefill_tokens=4096, max_decodes=4)
    fleet = Fleet(proxy_spec(pools={"any": able}, pairs=(("any", "any"),), workers=dict.fromkeys(names, "any")))
    for name in names:
        bring_up(fleet, name)
    return fleet


def test_a_moved_role_holds_until_it_is_taken_back() -> None:
    fleet = both("any-0", "any-1")
    assert len(fleet.decoders) == 2
    fleet.apply(moved(any_0=(4096, 0), any_1=(0, 4)), 1.0)
    assert [worker.key[0] for worker in fleet.decoders] == ["any-1"]
    assert fleet.ready  # what has been proven stays so, and nothing else has to be
    fleet.apply(CapsTold({}), 2.0)
    assert len(fleet.decoders) == 2


def test_nobody_waits_for_prompts_to_be_computed_where_none_may_be() -> None:
    fleet = both("any-0", "any-1")
    fleet.apply(moved(any_1=(0, 4)), 1.0)
    assert {key[0]: [worker.key[0] for worker in able] for key, able in fleet.prefillers.items()} == {
        "any-0": [],
        "any-1": ["any-0"],
    }


def test_a_role_is_moved_within_what_the_pool_may() -> None:
    fleet = both("any-0", "any-1")
    fleet.apply(moved(any_0=(9999, 9999)), 1.0)
    assert fleet.workers["any-0", 0].caps == PoolCaps(max_prefill_tokens=4096, max_decodes=4)


@pytest.mark.parametrize("left", ["any-0", "any-1"])
def test_who_is_left_alone_does_everything(left: str) -> None:
    """What was told of roles may be older than who is there."""
    fleet = both("any-0", "any-1")
    fleet.apply(moved(any_0=(4096, 0), any_1=(0, 4)), 1.0)
    other = ({"any-0", "any-1"} - {left}).pop()
    fleet.apply(PeerLost(peer(other, Part.AGENT), "gone"), 2.0)
    fleet.apply(Proven((None, (left, 0))), 3.0)
    assert [worker.key[0] for worker in fleet.decoders] == [left]
    assert fleet.workers[left, 0].caps == PoolCaps(max_prefill_tokens=4096, max_decodes=4)
