"""What flights have given to workers: counts on the fleet's records, promises in the index, and what legs taught.

Pure. A leg's prompt counts until it is computed, its place until it ends; a flight's place is held from when it is
placed, so that once prefilled it does not wait. Knows no queue and no message.
"""

from __future__ import annotations

from proxy.fleet.worker import Worker
from proxy.flights.flight import Flight, LegRecord
from proxy.prefixes.prefix_index import NO_MARKS, PrefixIndex, Target
from proxy.routing.router import Route
from workers.protocol import Leg


def take_place(flight: Flight, route: Route) -> None:
    if not flight.demand.scrape:
        # The same wherever it goes: a place that it has left may be given back later.
        flight.held_tokens = flight.held_tokens or flight.demand.num_tokens
        route.decode.num_decodes += 1
        route.decode.held_tokens += flight.held_tokens


def leave_place(flight: Flight, worker: Worker) -> None:
    worker.num_decodes -= 1
    worker.held_tokens -= flight.held_tokens


def begin(leg: LegRecord, rid: int, index: PrefixIndex, now: float) -> None:
    """It is sent to its worker."""
    worker = leg.worker
    leg.sent_at = now
    if leg.kind != Leg.DECODE:
        if not worker.num_prompts:
            worker.computing_since = now
        worker.num_prompts += 1
        worker.prefill_tokens += leg.compute_tokens
    if leg.place is not None:
        worker.last_chosen = leg.place.last_chosen = rid
    if leg.flight.demand.marks.hashes:
        leg.promised = leg.flight.demand.marks
        index.promise(_target(leg), leg.promised)
        _count_reuse(leg, index)


def _count_reuse(leg: LegRecord, index: PrefixIndex) -> None:
    demand, route, loaded = leg.flight.demand, leg.flight.route, leg.worker.capabilities
    if leg.kind != Leg.DECODE and route is not None and loaded is not None and demand.chain:
        num_blocks = -(-route.reason.cached_tokens // loaded.block_size)  # a prompt's last token never counts as cached
        if 0 < num_blocks <= len(demand.chain):
            index.reuse.add(demand.chain[num_blocks - 1])


def computed(leg: LegRecord, num_tokens: int | None, index: PrefixIndex, now: float) -> None:
    """Its first token is there; `num_tokens` of the prompt had to be computed, by its engine's word if it has one."""
    if leg.computed_at is not None:
        return
    leg.computed_at = now
    rates, route = leg.worker.rates, leg.flight.route
    if leg.begun:
        leg.worker.begun_tokens += leg.flight.held_tokens
    if leg.kind == Leg.DECODE:
        if route is not None:
            rates.learn_transfer(route.reason.transfer_tokens, now - leg.sent_at)
    elif not leg.flight.demand.scrape:
        seconds = now - max(leg.sent_at, leg.worker.computing_since)
        rates.learn_prefill(leg.compute_tokens if num_tokens is None else num_tokens, seconds, now)
        leg.worker.computing_since = now
    leg.stalls_before_s = rates.computed_s
    _settle(leg, index)


def end(leg: LegRecord, index: PrefixIndex) -> None:
    """Its worker's last word: whatever is still counted for it is given back."""
    if leg.computed_at is None:
        _settle(leg, index)
    elif leg.begun:
        leg.worker.begun_tokens -= leg.flight.held_tokens
    if leg.place is not None:
        leave_place(leg.flight, leg.place)
        leg.place = None


def answered(leg: LegRecord, num_output_tokens: int, now: float) -> None:
    """The time between its tokens, less what the prompts that came between took."""
    if leg.computed_at is None or num_output_tokens < 2:
        return
    rates = leg.worker.rates
    decoding_s = now - leg.computed_at - (rates.computed_s - leg.stalls_before_s)
    rates.learn_answer(num_output_tokens, leg.worker.held_tokens, max(0.0, decoding_s))


def _settle(leg: LegRecord, index: PrefixIndex) -> None:
    if leg.kind != Leg.DECODE:
        leg.worker.num_prompts -= 1
        leg.worker.prefill_tokens -= leg.compute_tokens
    if leg.promised.hashes:
        index.keep(_target(leg), leg.promised)
        leg.promised = NO_MARKS


def _target(leg: LegRecord) -> Target:
    return leg.worker.key, leg.flight.submit.dp_rank
