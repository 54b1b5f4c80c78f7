"""The simulated scheduler: what it says, and what holds after every event of any history."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engines.sim import events as ev
from workers.engines.sim.core import Core
from workers.engines.sim.tokenizer import decode, encode, next_token
from workers.engines.sim.work import Job

MS = ev.Timing(prefill_ms=(0, 0.1, 1), decode_ms=(0, 0, 1))


def config(**changes: object) -> ev.CoreConfig:
    values = {
        "block_size": 4,
        "num_blocks": 16,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 10,
        "lease_s": 0.05,
        "timing": MS,
    }
    return ev.CoreConfig(**{**values, **changes})  # type: ignore[arg-type]


class Run:
    """A driver in virtual time: it records every effect and checks every invariant."""

    def __init__(self, **changes: object) -> None:
        self.core = Core(config(**changes))
        self.now = 0.0
        self.output: dict[int, list[int]] = {}
        self.ended: dict[int, ev.Ended] = {}
        self.fetches: list[ev.Fetch] = []
        self.tickets: dict[int, float] = {}
        self.cached: set[int] = set()
        self.effects: list[ev.Effect] = []

    def apply(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.core.apply(event, self.now)
        for effect in effects:
            match effect:
                case ev.Tokens(ids, tokens):
                    for id, token in zip(ids, tokens, strict=True):
                        assert id not in self.ended, "a token after the end"
                        self.output.setdefault(id, []).append(token)
                case ev.Ended(id):
                    assert id not in self.ended, "ended twice"
                    self.ended[id] = effect
                    if effect.held_blocks:
                        self.tickets[id] = self.now + self.core.config.lease_s
                case ev.Fetch():
                    self.fetches.append(effect)
                case ev.Stored(keys, _, token_ids):
                    assert len(token_ids) == len(keys) * self.core.config.block_size
                    self.cached.update(keys)
                case ev.Removed(keys):
                    self.cached.difference_update(keys)
                case ev.Expired(ticket):
                    del self.tickets[ticket]
        if isinstance(event, ev.Release):
            self.tickets.pop(event.ticket, None)
        if isinstance(event, ev.Extend) and event.ticket in self.tickets:
            until = self.now + self.core.config.lease_s * 2 / 3
            self.tickets[event.ticket] = max(self.tickets[event.ticket], until)
        self.effects += effects
        self.check()
        return effects

    def check(self) -> None:
        core, scheduler, cache = self.core, self.core.scheduler, self.core.scheduler.cache
        queues = (scheduler._waiting, scheduler._arrived, scheduler._prefilling, scheduler._fetching.values())
        live = [job for queue in (*queues, scheduler.decoding.values()) for job in queue]
        assert Counter(job.id for job in live) == Counter(core._live.keys())
        assert scheduler._held.keys() == core._tickets.keys()
        jobs = [*live, *scheduler._held.values()]
        assert Counter(key for job in jobs for key in job.named) == cache._refs
        nameless = sum(job.num_blocks - len(job.named) for job in jobs)
        nameless += sum(map(self.grown, scheduler.decoding.values()))
        assert nameless + len(cache._refs) == cache.num_used <= cache.num_blocks
        assert {*cache._refs, *cache._lru} == self.cached, "the KV events tell what is cached"
        assert not cache._refs.keys() & cache._lru.keys()
        assert {ticket: deadline for ticket, (deadline, _) in core._tickets.items()} == self.tickets
        assert all(deadline > self.now for deadline in self.tickets.values()), "open beyond its lease"
        new = sum(new for _, new in scheduler._chunks) + len(scheduler.decoding)
        assert new <= core.config.max_num_batched_tokens
        assert scheduler.num_running <= core.config.max_num_seqs
        assert scheduler.num_running + scheduler.num_waiting == len(core._live)
        if core._live and not scheduler._fetching:
            assert core.next_at is not None, "work is left, and nothing would ever happen"

    def grown(self, job: Job) -> int:
        """Blocks since it began to decode, with that of the pass that goes on."""
        size, passes = self.core.config.block_size, self.core.scheduler._passes
        return -(-(passes.num_over + job.base + passes.num_open) // size) - job.num_blocks

    def tick(self) -> None:
        assert self.core.next_at is not None
        self.now = max(self.now, self.core.next_at)
        self.apply(ev.Tick())

    def finish(self) -> None:
        """Answer every fetch with loss and let time pass until nothing is left."""
        for _ in range(10_000):
            for fetch in self.fetches:
                self.apply(ev.Lost(fetch.id))
            self.fetches.clear()
            if self.core.next_at is None:
                return
            self.tick()
        raise AssertionError("it never ends")


def generate(prompt: list[int], max_tokens: int, **changes: object) -> list[int]:
    run = Run(**changes)
    run.apply(ev.Submit(1, prompt, max_tokens))
    run.finish()
    assert run.ended[1].reason == "length"
    return run.output[1]


def prefill(run: Run, id: int, prompt: list[int]) -> list[int]:
    """The blocks of ticket `id`."""
    run.apply(ev.Submit(id, prompt, 1, hold=True))
    while id not in run.ended:
        run.tick()
    return run.ended[id].held_blocks


def decode_with(contents: list[int], prompt: list[int], max_tokens: int) -> list[int]:
    run = Run()
    run.apply(ev.Submit(1, prompt, max_tokens, remote=True))
    [fetch] = run.fetches
    run.fetches.clear()
    run.apply(ev.Arrived(1, contents[fetch.first_block :]))
    run.finish()
    assert run.core.counters.remote_tokens == fetch.num_tokens
    return run.output[1]


def test_output_depends_on_every_token_of_the_prompt() -> None:
    prompt = list(range(100, 121))
    plain = generate(prompt, 8)
    assert generate(prompt, 8) == plain
    for position in range(len(prompt)):
        changed = [*prompt]
        changed[position] = 99
        assert generate(changed, 8) != plain


@given(length=st.integers(1, 30), split=st.integers(1, 20), budget=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_output_does_not_depend_on_how_it_is_computed(length: int, split: int, budget: int) -> None:
    """Chunks, and outputs given back as prompt, as recovery by token ids does."""
    prompt = list(range(100, 100 + length))
    plain = generate(prompt, 21)
    assert generate(prompt, 21, max_num_batched_tokens=budget) == plain
    assert generate(prompt + plain[:split], 21 - split) == plain[split:]


@given(length=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_through_a_ticket_the_output_is_the_same(length: int) -> None:
    prompt = list(range(100, 100 + length))
    holder = Run()
    blocks = prefill(holder, 7, prompt)
    assert holder.core.num_tickets == 1
    assert decode_with(holder.core.contents(7, blocks), prompt, 12) == generate(prompt, 12)
    holder.apply(ev.Release(7))
    assert holder.core.scheduler.cache.usage == 0


def test_a_read_after_the_lease_gives_wrong_tokens_without_error() -> None:
    prompt = list(range(100, 118))
    holder = Run()
    blocks = prefill(holder, 1, prompt)
    holder.tick()
    assert holder.core.num_tickets == 0
    assert decode_with(holder.core.contents(1, blocks), prompt, 12) != generate(prompt, 12)


def test_a_ticket_whose_reader_waits_outlives_its_lease() -> None:
    prompt = list(range(100, 118))
    holder = Run()
    blocks = prefill(holder, 1, prompt)
    prefill(holder, 2, list(range(200, 218)))  # nobody waits for this one
    for _ in range(12):
        holder.now += holder.core.config.lease_s / 6
        holder.apply(ev.Extend(1))
    assert holder.tickets.keys() == {1}
    prefill(holder, 3, list(range(500, 540)))
    assert decode_with(holder.core.contents(1, blocks), prompt, 12) == generate(prompt, 12)
    holder.finish()
    assert holder.core.counters.expired_tickets == 3, "a reader that died keeps nothing"


def test_a_heartbeat_never_shortens_a_lease_and_revives_none() -> None:
    run = Run()
    prefill(run, 1, list(range(20)))
    deadline = run.tickets[1]
    run.apply(ev.Extend(1))
    assert run.core.next_at == deadline
    run.tick()
    assert run.apply(ev.Extend(1)) == []
    assert run.core.num_tickets == 0


def test_another_prompts_ticket_gives_wrong_tokens() -> None:
    holder = Run()
    blocks = prefill(holder, 1, list(range(200, 218)))
    prompt = list(range(100, 118))
    assert decode_with(holder.core.contents(1, blocks), prompt, 12) != generate(prompt, 12)


def test_only_what_is_not_cached_is_fetched() -> None:
    prompt = list(range(100, 118))
    run = Run()
    run.apply(ev.Submit(1, prompt, 2))
    run.finish()
    run.apply(ev.Submit(2, prompt, 2, remote=True))
    assert run.fetches == [ev.Fetch(2, 4, 1)]
    assert run.core.counters.cache_hits == 16


def test_unread_tickets_hold_up_the_queue_until_their_lease_ends() -> None:
    run = Run()
    for id in (1, 2, 3):
        prefill(run, id, list(range(id * 100, id * 100 + 20)))
    run.now = 0.04
    run.apply(ev.Submit(4, list(range(40)), 1))
    assert run.core.scheduler.num_waiting == 1
    run.finish()
    assert run.ended[4].reason == "length"
    assert run.core.counters.expired_tickets == 3


def test_blocks_that_run_out_preempt_the_youngest_and_change_nothing() -> None:
    run = Run()
    prompts = {id: list(range(id * 100, id * 100 + 8)) for id in (1, 2, 3)}
    for id, prompt in prompts.items():
        run.apply(ev.Submit(id, prompt, 30))
    run.finish()
    assert run.core.counters.preemptions > 0
    assert run.output == {id: generate(prompt, 30) for id, prompt in prompts.items()}


def test_a_pass_takes_what_the_model_of_time_says() -> None:
    run = Run()
    run.apply(ev.Submit(1, list(range(9)), 2))
    assert run.core.next_at == pytest.approx(0.0019)
    run.tick()
    assert run.core.next_at == pytest.approx(0.0029)


def test_aborted_while_it_runs_and_while_it_waits_it_is_gone_at_once() -> None:
    run = Run(max_num_seqs=1)
    run.apply(ev.Submit(1, list(range(9)), 5))
    run.apply(ev.Submit(2, list(range(9)), 5))
    for id in (2, 1):
        assert run.apply(ev.Abort(id)) == [ev.Ended(id, "abort", [])]
    assert run.core.scheduler.cache.usage == 0
    run.finish()


PROMPTS = st.tuples(st.integers(0, 2), st.integers(1, 40)).map(lambda p: [*range(p[0], p[0] + 9), *range(40)][: p[1]])
SUBMIT = st.tuples(st.just("submit"), PROMPTS, st.integers(1, 24), st.sampled_from(("whole", "hold", "remote")))
OTHER = st.tuples(st.sampled_from(("abort", "release", "extend", "arrive", "lose", "tick", "wait")), st.integers(0, 8))


@given(st.lists(st.one_of(SUBMIT, OTHER), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_history_keeps_the_invariants_and_ends_every_request_once(history: list[tuple]) -> None:  # type: ignore[type-arg]
    run = Run()
    submitted = 0
    for what, *detail in history:
        if what == "submit":
            prompt, max_tokens, leg = detail
            submitted += 1
            max_tokens = 1 if leg == "hold" else max_tokens
            run.apply(ev.Submit(submitted, prompt, max_tokens, hold=leg == "hold", remote=leg == "remote"))
            continue
        [number] = detail
        if what == "abort":
            run.apply(ev.Abort(number))
        elif what == "release":
            run.apply(ev.Release(number))
        elif what == "extend":
            run.apply(ev.Extend(number))
        elif what in ("arrive", "lose") and run.fetches:
            fetch = run.fetches.pop(number % len(run.fetches))
            run.apply(ev.Arrived(fetch.id, [number]) if what == "arrive" else ev.Lost(fetch.id))
        elif what == "tick" and run.core.next_at is not None:
            run.tick()
        elif what == "wait":
            run.now += number / 100
            run.apply(ev.Tick())
    run.finish()
    assert run.ended.keys() == set(range(1, submitted + 1))
    assert run.core.scheduler.cache.usage == 0
    assert run.core.num_tickets == 0


@given(st.text())
def test_the_tokenizer_is_reversible(text: str) -> None:
    assert decode(encode(text)) == text


def test_generated_text_comes_back_as_the_same_tokens() -> None:
    token_ids = [next_token(state << 16) for state in range(1200)]
    assert encode(decode(token_ids)) == token_ids
    with pytest.raises(ValueError, match="Token id 5 is out of vocabulary"):
        decode([5])
