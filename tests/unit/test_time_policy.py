"""The policy `kv`: where the KV lies against how long the queue is, whole against split, and what legs teach."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import LoadTold
from proxy.fleet.rates import NUM_KNOWN, Line, Rates
from proxy.flights import given_work
from proxy.flights.flight import LegRecord
from proxy.prefixes.prefix_index import PrefixIndex, marks_of
from proxy.routing.router import Demand, Route, Router
from proxy.routing.time_policy import PATIENCE, REUSES_PER_COPY, TOLERANCE_S
from proxy.spec import LatencyTargets, PoolCaps, RoutingSpec
from tests.unit.proxies import BLOCK, bring_up, flight, proxy_spec
from workers.protocol import Leg, Load

CHAIN = [(number + 1) * 0x9E3779B97F4A7C15 % 2**64 for number in range(64)]
TOKENS = len(CHAIN) * BLOCK + 1
NUM_BLOCKS = 20_000


def fleet(num_prefill: int = 0, num_decode: int = 2) -> Fleet:
    able = PoolCaps(max_prefill_tokens=100_000, max_decodes=64)
    made = Fleet(proxy_spec(pools={"prefill": PoolCaps(max_prefill_tokens=100_000, max_decodes=0), "decode": able}))
    for role, number in (("prefill", num_prefill), ("decode", num_decode)):
        for i in range(number):
            worker = made.workers[bring_up(made, f"{role}-{i}")]
            assert worker.capabilities is not None
            worker.capabilities = msgspec.structs.replace(worker.capabilities, num_blocks=NUM_BLOCKS)
    return made


def route(made: Fleet, index: PrefixIndex, demand: Demand, now: float = 0.0, **targets: float) -> Route:
    spec = RoutingSpec(policy="kv", targets=LatencyTargets(**targets))
    found = Router(spec, Random(1)).route(made, index, demand, now)
    assert found is not None
    return found


def placed(made: Fleet, index: PrefixIndex, demand: Demand, waited_s: float) -> str | None:
    found = Router(RoutingSpec(policy="kv"), Random(1)).route(made, index, demand, 0.0, waited_s)
    return None if found is None else found.decode.key[0]


def holding(*names: str, num_blocks: int = len(CHAIN)) -> PrefixIndex:
    index = PrefixIndex()
    for name in names:
        index.store(((name, 0), 0), CHAIN[:num_blocks])
    return index


def test_a_prompt_goes_to_where_its_prefix_lies() -> None:
    found = route(fleet(), holding("decode-1", num_blocks=60), Demand(TOKENS, None, chain=CHAIN))
    assert found.decode.key[0] == "decode-1"
    assert (found.reason.cached_tokens, found.reason.compute_tokens) == (60 * BLOCK, TOKENS - 60 * BLOCK)


def test_but_not_once_the_queue_there_costs_more_than_computing_it_elsewhere() -> None:
    made, index, demand = fleet(), holding("decode-1"), Demand(TOKENS, None, chain=CHAIN)
    busy = made.workers["decode-1", 0]
    busy.num_prompts, busy.prefill_tokens = 1, 500
    assert route(made, index, demand).decode is busy
    busy.prefill_tokens = 5000
    assert route(made, index, demand).decode is not busy


def asked(made: Fleet, index: PrefixIndex, number: int, chain: list[int]) -> Route:
    """And answered: from here on it is cached where it was computed."""
    request = flight(number, TOKENS, chain=chain, marks=marks_of(chain))
    request.route = found = route(made, index, request.demand)
    leg = LegRecord(request, Leg.WHOLE, found.decode, found.reason.compute_tokens, None)
    given_work.begin(leg, number, index, 0.0)
    given_work.end(leg, index)
    index.store((found.decode.key, 0), chain)
    found.decode.last_chosen = number + 1
    return found


def test_what_is_used_again_and_again_is_hot_and_copied_to_who_has_least_to_do() -> None:
    made, index = fleet(0, 4), holding("decode-0", num_blocks=60)
    made.workers["decode-0", 0].num_decodes = 1
    routes = [asked(made, index, number, [*CHAIN[:60], number]) for number in range(50)]
    copied = [
        number for number, found in enumerate(routes) if not found.reason.cached_tokens
    ]  # what is told stays true
    assert copied == [REUSES_PER_COPY, 2 * REUSES_PER_COPY + 1, 3 * REUSES_PER_COPY + 2]


def test_what_one_conversation_grows_is_not() -> None:
    made, index = fleet(0, 2), PrefixIndex()
    first, *others = [asked(made, index, number, CHAIN[: number + 1]) for number in range(50)]
    assert {found.decode.key for found in others} == {first.decode.key}


def test_who_is_new_is_taken_to_be_as_fast_as_its_peers() -> None:
    made = fleet(0, 2)
    for _ in range(NUM_KNOWN):
        made.workers["decode-0", 0].rates.learn_prefill(4000, 2.0, 0.0)
    assert made.workers["decode-1", 0].rates.prefill.seconds(4000) < 1
    for name in ("decode-0", "decode-1"):
        made.apply(LoadTold((name, 0), Load(0, 0, 0, 0)), 0.0)
    assert abs(made.workers["decode-1", 0].rates.prefill.seconds(4000) - 2) < 0.5
    made.workers["decode-1", 0].rates.learn_prefill(4000, 0.1, 0.0)  # from here on it learns by itself
    made.apply(LoadTold(("decode-1", 0), Load(0, 0, 0, 0)), 0.0)
    assert made.workers["decode-1", 0].rates.prefill.seconds(4000) < made.workers["decode-0", 0].rates.prefill.seconds(
        4000
    )


def test_those_that_start_together_learn_together() -> None:
    made = fleet(0, NUM_KNOWN)
    for worker in made.workers.values():
        worker.rates.learn_prefill(4000, 2.0, 0.0)  # each but once
        worker.rates.learn_answer(101, 0, 10.0)
    for key in made.workers:
        made.apply(LoadTold(key, Load(0, 0, 0, 0)), 0.0)
    for worker in made.workers.values():
        assert abs(worker.rates.prefill.seconds(4000) - 2) < 0.5 and abs(worker.rates.step.seconds(0) - 0.1) < 0.05


def test_a_full_worker_is_waited_for_while_that_takes_less_than_the_next_best() -> None:
    made, index, demand = fleet(), holding("decode-1"), Demand(TOKENS, None, chain=CHAIN)
    full = made.workers["decode-1", 0]
    full.caps, full.num_decodes = PoolCaps(max_prefill_tokens=100_000, max_decodes=1), 1
    assert placed(made, index, demand, 0.0) is None
    assert placed(made, index, demand, made.workers["decode-0", 0].rates.prefill.seconds(TOKENS)) == "decode-0"
    full.num_decodes = 0
    assert placed(made, index, demand, 0.0) == "decode-1"


def test_nothing_is_sent_where_the_cache_is_full() -> None:
    made, demand = fleet(), Demand(TOKENS, None)
    for name, num_answers in (("decode-0", 10), ("decode-1", 20)):
        made.workers[name, 0].num_decodes = num_answers
    full = made.workers["decode-0", 0]
    assert placed(made, PrefixIndex(), demand, 0.0) == "decode-0"
    made.apply(LoadTold(full.key, Load(10, 0, 0, 0, kv_used=0.999)), 0.0)
    assert placed(made, PrefixIndex(), demand, 0.0) is None  # while to wait for it costs less
    assert placed(made, PrefixIndex(), demand, 1.0) == "decode-1"
    full.num_decodes = 0  # nobody to wait for
    assert placed(made, PrefixIndex(), demand, 0.0) == "decode-0"


def test_what_has_been_sent_counts_in_full_until_the_engine_says_what_it_takes() -> None:
    made, demand = fleet(0, 1), Demand(TOKENS, None)
    worker = made.workers["decode-0", 0]
    worker.num_decodes, worker.held_tokens = 10, NUM_BLOCKS * BLOCK
    assert placed(made, PrefixIndex(), demand, 0.0) is None
    worker.begun_tokens = worker.held_tokens
    assert placed(made, PrefixIndex(), demand, 0.0) is None
    made.apply(LoadTold(worker.key, Load(10, 0, 0, 0, kv_used=0.5)), 0.0)  # they share what they have in common
    assert placed(made, PrefixIndex(), demand, 0.0) == "decode-0"


def test_what_is_lost_anyway_goes_where_answers_are_lost_and_spares_the_others() -> None:
    made = fleet(1, 2)
    lost, kept = (made.workers[name, 0] for name in ("decode-0", "decode-1"))
    for worker, held_tokens in ((lost, 250_000), (kept, 80_000)):
        worker.caps = PoolCaps(max_prefill_tokens=0, max_decodes=64)
        worker.num_decodes, worker.held_tokens = 40, held_tokens
        worker.rates.step = Line(0.010, 1e-7)  # 35 and 18 ms
    assert route(made, PrefixIndex(), Demand(1000, None), itl_s=0.025).decode is kept
    assert route(made, PrefixIndex(), Demand(40_000, None), itl_s=0.025).decode is lost


def test_who_has_waited_long_and_can_only_be_whole_spares_nobody() -> None:
    made, demand = fleet(0, 2), Demand(TOKENS, None)
    made.workers["decode-0", 0].num_decodes = 40
    made.workers["decode-1", 0].num_prompts, made.workers["decode-1", 0].prefill_tokens = 1, 3000
    assert placed(made, PrefixIndex(), demand, 0.0) == "decode-1"
    assert placed(made, PrefixIndex(), demand, PATIENCE * LatencyTargets().ttft_s) == "decode-0"


def test_nobody_waits_for_who_may_never_take_it() -> None:
    made, index, demand = fleet(), holding("decode-1"), Demand(TOKENS, None, chain=CHAIN)
    for caps in (PoolCaps(max_prefill_tokens=100_000, max_decodes=0), PoolCaps(max_prefill_tokens=0, max_decodes=64)):
        made.workers["decode-1", 0].caps = caps
        assert placed(made, index, demand, 0.0) == "decode-0"


def test_a_queue_shrinks_with_time() -> None:
    made = fleet()
    worker = made.workers["decode-0", 0]
    worker.num_prompts, worker.prefill_tokens, worker.computing_since = 1, 5000, 10.0
    assert worker.queue_s(10.0) > worker.queue_s(10.1) > worker.queue_s(20.0) == 0.0


def test_what_is_asked_twice_in_a_row_is_promised_to_one_place() -> None:
    """Before the first event of the engine: see also `given_work`."""
    made, index = fleet(), PrefixIndex()
    demand = Demand(TOKENS, None, marks=marks_of(CHAIN))
    first = route(made, index, demand).decode
    index.promise((first.key, 0), demand.marks)
    first.num_prompts, first.prefill_tokens = 1, 200
    assert route(made, index, demand).decode is first


def test_a_prompt_is_computed_elsewhere_where_many_decode_and_their_target_is_near() -> None:
    made = fleet(1, 1)
    decode = made.workers["decode-0", 0]
    demand = Demand(4000, None)
    assert route(made, PrefixIndex(), demand).prefill is None
    decode.num_decodes, decode.held_tokens = 40, 40_000
    found = route(made, PrefixIndex(), demand, ttft_s=2.0, itl_s=0.02)
    assert found.prefill is made.workers["prefill-0", 0]
    assert found.reason.transfer_tokens == 4000 and found.reason.why == "prefill elsewhere takes less"


def test_short_answers_are_not_decoded_where_many_prompts_wait_to_be_computed() -> None:
    """What waits before a prompt is as much as will wait behind it, and a stall spoils a short answer."""
    made, demand = fleet(1, 2), Demand(2000, None)
    for worker in made.workers.values():
        worker.num_prompts, worker.prefill_tokens = 10, 10_000
    made.workers["decode-1", 0].num_prompts, made.workers["decode-1", 0].prefill_tokens = 12, 12_000
    assert route(made, PrefixIndex(), demand, itl_s=0.15).prefill is None
    for worker in made.workers.values():
        worker.rates.answer_share.value = 1 / 8
    assert route(made, PrefixIndex(), demand, itl_s=0.15).prefill is not None


def test_whoever_is_becoming_clear_of_prompts_is_left_clear_where_nobody_else_can_decode_in_time() -> None:
    made, demand = fleet(2, 1), Demand(4000, None)
    full, clear, busy = (made.workers[name, 0] for name in ("decode-0", "prefill-0", "prefill-1"))
    full.caps = PoolCaps(max_prefill_tokens=0, max_decodes=64)
    full.num_decodes, full.held_tokens, full.rates.step = 40, 250_000, Line(0.010, 1e-7)  # 35 ms
    for worker, busy_s in ((clear, 6.0), (busy, 60.0)):
        worker.rates.learn_prefill(4000, busy_s, 0.0)
        worker.rates.prefill = Line(0.02, 5e-5)
    busy.num_prompts, busy.prefill_tokens = 1, 4000  # its queue is longer
    assert route(made, PrefixIndex(), demand, itl_s=0.02).prefill is clear  # neither will ever decode
    clear.caps = busy.caps = PoolCaps(max_prefill_tokens=100_000, max_decodes=64)
    assert route(made, PrefixIndex(), demand, itl_s=0.02).prefill is busy
    assert route(made, PrefixIndex(), demand, itl_s=0.1).prefill is clear


def test_a_stall_counts_more_for_answers_that_come_than_for_those_that_were_met() -> None:
    made = fleet(0, 2)
    coming, met = (made.workers[name, 0] for name in ("decode-0", "decode-1"))
    for worker in (coming, met):
        worker.num_decodes, worker.rates.answer_share.value = 6, 1 / 8
    coming.num_prompts, coming.computing_since = 6, -60.0  # its queue is all but done
    assert route(made, PrefixIndex(), Demand(2000, None)).decode is met


def test_stalls_of_late_do_not_count_where_no_prompts_come_any_more() -> None:
    made = fleet(1, 1)
    moved = made.workers["decode-0", 0]
    moved.rates.learn_prefill(4000, 15.0, 0.0)
    moved.caps = PoolCaps(max_prefill_tokens=0, max_decodes=64)
    assert route(made, PrefixIndex(), Demand(4000, None)).reason.itl_s == moved.rates.step.seconds(4000)


def test_a_second_turn_stays_where_the_first_was_decoded() -> None:
    made = fleet(1, 2)
    for name in ("decode-0", "decode-1"):
        made.workers[name, 0].num_decodes = 20
    found = route(made, holding("decode-1", 63), Demand(TOKENS, None, chain=CHAIN))
    assert found.prefill is None and found.decode.key[0] == "decode-1"


def test_what_may_not_be_split_is_not() -> None:
    made = fleet(1, 1)
    made.workers["decode-0", 0].num_decodes = 60
    assert route(made, PrefixIndex(), Demand(4000, "beam search"), itl_s=0.001).reason.why == "beam search"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 50_000), st.integers(0, 64)), min_size=1, max_size=6),
    st.integers(1, 90_000),
)
def test_numbers_add_up_and_the_least_cost_is_taken(states: list[tuple[int, int, int]], num_tokens: int) -> None:
    """What has waited for ever goes to the soonest first token among workers alike that have room."""
    made, index = fleet(0, len(states)), PrefixIndex()
    demand = Demand(num_tokens, None, chain=CHAIN[: num_tokens // BLOCK])
    soonest = float("inf")
    for i, (num_prompts, waiting, held) in enumerate(states):
        worker = made.workers[f"decode-{i}", 0]
        worker.num_prompts, worker.prefill_tokens = num_prompts, waiting if num_prompts else 0
        index.store((worker.key, 0), CHAIN[:held])
        cached = min(held, num_tokens // BLOCK) * BLOCK
        if worker.prefill_tokens == 0 or worker.prefill_tokens + num_tokens - min(cached, num_tokens - 1) <= 100_000:
            computing = worker.rates.prefill.seconds(num_tokens - min(cached, num_tokens - 1))
            soonest = min(soonest, worker.queue_s(0.0) + computing)
    assume(soonest < float("inf"))  # else there is no room anywhere
    found = Router(RoutingSpec(policy="kv"), Random(1)).route(made, index, demand, 0.0, waited_s=1e6)
    assert found is not None
    reason = found.reason
    assert reason.cached_tokens + reason.compute_tokens == num_tokens and reason.cached_tokens < num_tokens
    assert reason.ttft_s is not None and -1e-6 < reason.ttft_s - soonest < TOLERANCE_S + 1e-3


def test_answers_are_decoded_where_others_are_so_that_the_rest_stay_clear_for_prompts() -> None:
    made = fleet(1, 3)
    for worker in made.workers.values():
        worker.rates.answer_share.value = 1 / 8
    made.workers["decode-1", 0].num_decodes = 2
    for prompts in (0, 4):
        made.workers["decode-0", 0].num_prompts = made.workers["decode-2", 0].num_prompts = prompts
        assert route(made, PrefixIndex(), Demand(4000, None), itl_s=0.05).decode.key[0] == "decode-1"


def test_what_comes_from_elsewhere_is_decoded_where_it_slows_few_down() -> None:
    """Though its own answer would take longer there; but not well below the target of the others."""
    made, demand = fleet(1, 2), Demand(4000, None)
    many, few = (made.workers[name, 0] for name in ("decode-0", "decode-1"))
    for worker, num_decodes, held_tokens in ((many, 40, 20_000), (few, 2, 40_000)):
        worker.caps = PoolCaps(max_prefill_tokens=0, max_decodes=64)
        worker.num_decodes, worker.held_tokens = num_decodes, held_tokens
        worker.rates.step = Line(0.010, 2e-7)
    found = route(made, PrefixIndex(), demand, itl_s=0.02)
    assert found.decode is few and found.reason.itl_s is not None
    assert found.reason.itl_s > many.rates.step.seconds(many.held_tokens + demand.num_tokens)
    assert route(made, PrefixIndex(), demand, itl_s=0.1).decode is many


def test_what_hardly_differs_goes_to_who_has_fewest_answers_to_make() -> None:
    made = fleet(0, 3)
    for number, (decodes, fixed_s) in enumerate([(3, 0.010), (1, 0.015), (2, 0.020)]):
        worker = made.workers[f"decode-{number}", 0]
        worker.num_decodes, worker.rates.prefill.fixed_s = decodes, fixed_s
    assert route(made, PrefixIndex(), Demand(100, None)).decode.key[0] == "decode-1"
    made.workers["decode-1", 0].rates.prefill.fixed_s = 0.5
    assert route(made, PrefixIndex(), Demand(100, None)).decode.key[0] == "decode-2"


def test_rates_are_learnt_from_what_prompts_took() -> None:
    line, random = Line(0.02, 5e-5), Random(1)
    for _ in range(300):
        size = random.randrange(100, 8000)
        line.learn(size, 0.05 + size / 40_000)
    assert abs(line.each_s * 40_000 - 1) < 0.05 and abs(line.fixed_s - 0.05) < 0.01


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), max_size=100), st.floats(0, 1e6))
def test_a_prediction_is_never_below_zero(seen: list[tuple[float, float]], size: float) -> None:
    line = Line(0.02, 5e-5)
    for of_size, seconds in seen:
        line.learn(of_size, seconds)
    assert line.each_s >= 0 and line.seconds(size) >= -1e-6


def test_prompts_make_those_that_decode_wait_longer() -> None:
    rates = Rates()
    quiet = rates.itl_s(100_000, 0.0)
    for second in range(60):
        rates.learn_prefill(4000, 0.5, float(second))
    assert rates.itl_s(100_000, 60.0) > 1.4 * quiet
    assert rates.itl_s(100_000, 1000.0) < 1.01 * quiet
