"""A worker is proven by an answer and by KV that its engine counted; neither alone is enough."""

import msgspec

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import ProofFailed, Proven
from proxy.fleet.prober import COUNTER_TIMEOUT_S, RETRY_S, Prober, proof
from tests.unit.proxies import bring_up, proxy_spec
from workers.protocol import Capabilities, Load

PREFILL, DECODE = ("prefill-0", 0), ("decode-0", 0)
PAIR = (PREFILL, DECODE)


def two_workers() -> tuple[Fleet, Prober]:
    fleet = Fleet(proxy_spec())
    bring_up(fleet, "prefill-0", prove=False)
    bring_up(fleet, "decode-0", prove=False)
    return fleet, Prober(fleet)


def received(tokens: int) -> Load:
    return Load(0, 0, 0, 0, kv_tokens_received=tokens)


def test_an_answer_and_a_counter_prove_a_pair() -> None:
    _, prober = two_workers()
    assert prober.due(0.0) == [PAIR]
    assert prober.due(0.0) == [], "it is under way"
    assert prober.counted(DECODE, received(50)) == [], "nothing was answered yet"
    assert prober.answered(PAIR, 1.0) == []
    assert prober.counted(DECODE, received(0)) == []
    assert prober.counted(DECODE, received(50)) == [Proven(PAIR)]


def test_an_answer_without_kv_is_no_proof() -> None:
    _, prober = two_workers()
    prober.due(0.0)
    prober.answered(PAIR, 1.0)
    (failed,) = prober.tick(1.1 + COUNTER_TIMEOUT_S)
    assert isinstance(failed, ProofFailed)
    assert "received no KV" in failed.reason


def test_a_failed_proof_is_tried_again_after_a_while() -> None:
    _, prober = two_workers()
    prober.due(0.0)
    assert prober.failed(PAIR, "no", 1.0) == [ProofFailed(PAIR, "no")]
    assert prober.due(1.0) == []
    assert prober.due(1.0 + RETRY_S) == [PAIR]


def test_a_lone_decode_worker_is_proven_by_its_answer() -> None:
    fleet = Fleet(proxy_spec())
    bring_up(fleet, "decode-0", prove=False)
    prober = Prober(fleet)
    assert prober.due(0.0) == [(None, DECODE)]
    assert prober.answered((None, DECODE), 1.0) == [Proven((None, DECODE))]


def test_one_proof_at_a_time_per_decode_worker() -> None:
    fleet, prober = two_workers()
    bring_up(fleet, "prefill-1", prove=False)
    assert len(prober.due(0.0)) == 1
    prober.lost(PREFILL)
    assert len(prober.due(0.0)) == 1


def test_the_prompt_fills_two_blocks_and_is_never_the_same() -> None:
    loaded = Capabilities(("tiny",), 4096, 16, 2048, 256, 1, True, True)
    bodies = {proof("r", "tiny", loaded, nonce).body for nonce in ("a1", "b2")}
    assert len(bodies) == 2
    assert all(body.count(b" ") >= 31 for body in bodies)
    pools = proof("r", "tiny", msgspec.structs.replace(loaded, generates=False), "c3")
    assert pools.path == "/pooling" and pools.body.count(b" ") >= 31
