"""The scheduler of the simulated engine: continuous batching over a paged prefix cache, with KV hand-over.

Pure: no await, clock, socket or randomness, so that the same code runs live and in virtual time. One
mutator, `apply(event, now)`; its driver applies `Tick` at `next_at` and carries the effects out.

The model is a rule: a sequence's next token follows from the hash of all its tokens and, where one of
its blocks contains something else than it should (a ticket read too late), from that difference too.
"""

from __future__ import annotations

from collections import deque

from workers.engines.sim import events as ev
from workers.engines.sim.blocks import BlockPool
from workers.engines.sim.sequence import Sequence
from workers.engines.sim.tokenizer import next_token


class Scheduler:
    """A live sequence is in exactly one of `_waiting`, `_fetching`, `_arrived`, `_running`."""

    def __init__(self, config: ev.CoreConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.counters = ev.Counters()
        self._live: dict[int, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._fetching: dict[int, Sequence] = {}
        self._arrived: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._tickets: dict[int, tuple[float, list[int]]] = {}  # in the order of their deadlines
        self._pass: list[tuple[Sequence, int]] = []  # and how many new tokens of each
        self._pass_end = 0.0

    # ------------------------------------------------------------ what a driver may read

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._fetching) + len(self._arrived)

    @property
    def num_tickets(self) -> int:
        return len(self._tickets)

    @property
    def next_at(self) -> float | None:
        """When `Tick` is due; None: only an event changes anything."""
        due = [self._pass_end] if self._pass else []
        if self._tickets:
            due.append(next(iter(self._tickets.values()))[0])
        return min(due, default=None)

    def contents(self, blocks: list[int]) -> list[int]:
        """What these blocks contain now, whoever they belong to now."""
        return [self.pool.contents[block] for block in blocks]

    # ------------------------------------------------------------ the mutator

    def apply(self, event: ev.Event, now: float) -> list[ev.Effect]:
        effects: list[ev.Effect] = []
        self._expire(now, effects)
        if self._pass and now >= self._pass_end:
            self._finish_pass(now, effects)
        self._handle(event, now, effects)
        if not self._pass:
            self._begin_pass(now, effects)
        if evicted := self.pool.take_evicted():
            effects.append(ev.Removed(evicted))
        return effects

    def _handle(self, event: ev.Event, now: float, effects: list[ev.Effect]) -> None:
        match event:
            case ev.Submit():
                self._submit(event)
            case ev.Arrived(id, contents):
                self._arrive(id, contents, effects)
            case ev.Lost(id):
                self._remove(id, "error", effects)
            case ev.Abort(id):
                self._remove(id, "abort", effects)
            case ev.Release(ticket):
                self.pool.drop(self._tickets.pop(ticket, (0.0, []))[1])
            case ev.Extend(ticket):
                self._extend(ticket, now)
            case ev.Tick():
                pass

    def _expire(self, now: float, effects: list[ev.Effect]) -> None:
        while self._tickets:
            ticket, (deadline, blocks) = next(iter(self._tickets.items()))
            if deadline > now:
                return
            del self._tickets[ticket]
            self.pool.drop(blocks)
            self.counters.expired_tickets += 1
            effects.append(ev.Expired(ticket))

    def _extend(self, ticket: int, now: float) -> None:
        if ticket not in self._tickets:
            return
        deadline, blocks = self._tickets[ticket]
        self._tickets[ticket] = (max(deadline, now + self.config.lease_s * 2 / 3), blocks)
        self._tickets = dict(sorted(self._tickets.items(), key=lambda item: item[1][0]))

    def _submit(self, event: ev.Submit) -> None:
        end = len(event.prompt) + event.max_tokens
        assert event.prompt and event.max_tokens > 0 and event.id not in self._live
        assert self._num_blocks(end) <= self.config.num_blocks, "it could never run: the driver checks its limit"
        assert event.max_tokens == 1 or not event.hold, "a prefill leg makes one token"
        sequence = Sequence(event.id, list(event.prompt), len(event.prompt), end, event.salt, event.hold, event.remote)
        sequence.extend_hash(self.config.block_size)
        self._live[event.id] = sequence
        self._waiting.append(sequence)
        self.counters.prompt_tokens += sequence.num_prompt

    def _remove(self, id: int, reason: str, effects: list[ev.Effect]) -> None:
        sequence = self._live.pop(id, None)
        if sequence is None:
            return
        if self._fetching.pop(id, None) is None:
            queue = next(queue for queue in (self._running, self._arrived, self._waiting) if sequence in queue)
            queue.remove(sequence)
        self.pool.drop(sequence.blocks)
        effects.append(ev.Ended(id, reason, []))

    # ------------------------------------------------------------ a pass

    def _begin_pass(self, now: float, effects: list[ev.Effect]) -> None:
        budget, preempted = self._continue_running(self.config.max_num_batched_tokens)
        if not preempted or not self._pass:
            self._admit(budget, effects)
        if self._pass:
            prefill_tokens = sum(new for _, new in self._pass if new > 1)
            num_decodes = sum(new == 1 for _, new in self._pass)
            self._pass_end = now + self.config.timing.pass_s(prefill_tokens, num_decodes, self.pool.usage)

    def _continue_running(self, budget: int) -> tuple[int, bool]:
        """Returns the budget left, and whether blocks ran out and the youngest had to give theirs."""
        preempted = False
        position = 0
        while position < len(self._running) and budget:
            sequence = self._running[position]
            new = min(len(sequence.tokens) - sequence.num_computed, budget)
            missing = self._num_blocks(sequence.num_computed + new) - len(sequence.blocks)
            while missing > self.pool.num_available and position < len(self._running):
                self._preempt(self._running.pop())
                preempted = True
            if position < len(self._running):
                if missing > 0:
                    sequence.blocks += self.pool.allocate(missing)
                self._pass.append((sequence, new))
                budget -= new
            position += 1
        return budget, preempted

    def _preempt(self, sequence: Sequence) -> None:
        """Its blocks go; it is computed again, from what the prefix cache then still has of it."""
        self.pool.drop(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
        self._waiting.appendleft(sequence)
        self.counters.preemptions += 1

    def _admit(self, budget: int, effects: list[ev.Effect]) -> None:
        """First come, first served, but first those whose KV has arrived: they hold blocks others wait for."""
        while budget and len(self._running) < self.config.max_num_seqs:
            if self._arrived:
                sequence = self._arrived.popleft()
            elif self._waiting and self._place(self._waiting[0], budget, effects):
                sequence = self._waiting.popleft()
            else:
                return
            if sequence.remote:
                self._fetching[sequence.id] = sequence
                continue
            new = min(len(sequence.tokens) - sequence.num_computed, budget)
            self._running.append(sequence)
            self._pass.append((sequence, new))
            budget -= new

    def _place(self, sequence: Sequence, budget: int, effects: list[ev.Effect]) -> bool:
        """Give it its cached blocks and new ones for this pass (for a fetch: for the whole prompt)."""
        size = self.config.block_size
        total = len(sequence.tokens)
        found = self.pool.find(sequence.keys[: (total - 1) // size])
        num_cached = len(found) * size
        target = total if sequence.remote else min(total, num_cached + budget)
        missing = self._num_blocks(target) - len(found)
        if missing > self.pool.num_available - self.pool.num_unreferenced(found):
            return False
        self.pool.reference(found)
        sequence.blocks = found + self.pool.allocate(missing)
        sequence.num_computed = num_cached
        sequence.taint = 0
        sequence.compare(self.contents(found), sequence.keys[: len(found)])
        if not sequence.seen:
            sequence.seen = True
            self.counters.cache_queries += total
            self.counters.cache_hits += num_cached
            effects.append(ev.Scheduled(sequence.id, num_cached))
        if sequence.remote:
            effects.append(ev.Fetch(sequence.id, len(found), total - 1 - num_cached))
        return True

    def _finish_pass(self, now: float, effects: list[ev.Effect]) -> None:
        tokens = ev.Tokens([], [])
        ended: list[ev.Effect] = []
        for sequence, new in self._pass:
            if sequence.id not in self._live:
                continue
            self._advance(sequence, sequence.num_computed + new, effects)
            if sequence.num_computed < len(sequence.tokens):
                continue
            if sequence.hold and sequence.num_computed % self.config.block_size:
                self.pool.contents[sequence.blocks[-1]] = sequence.state ^ sequence.taint
            token = next_token(sequence.state ^ sequence.taint ^ sequence.salt)
            sequence.append(token, self.config.block_size)
            tokens.ids.append(sequence.id)
            tokens.tokens.append(token)
            if len(sequence.tokens) == sequence.end:
                ended.append(self._complete(sequence, now))
        self._pass = []
        if ended:
            self._running = [sequence for sequence in self._running if sequence.id in self._live]
        self.counters.generated_tokens += len(tokens.ids)
        if tokens.ids:
            effects.append(tokens)
        effects += ended

    def _advance(self, sequence: Sequence, num_computed: int, effects: list[ev.Effect]) -> None:
        """Its KV is there up to `num_computed`: blocks that became full enter the cache."""
        size = self.config.block_size
        first, last = sequence.num_computed // size, num_computed // size
        sequence.num_computed = num_computed
        if first < last:
            contents = [key ^ sequence.taint for key in sequence.keys[first:last]]
            self._store(sequence, first, contents, effects)

    def _complete(self, sequence: Sequence, now: float) -> ev.Ended:
        del self._live[sequence.id]
        if not sequence.hold:
            self.pool.drop(sequence.blocks)
            return ev.Ended(sequence.id, "length", [])
        self._tickets[sequence.id] = (now + self.config.lease_s, sequence.blocks)
        return ev.Ended(sequence.id, "length", sequence.blocks)

    # ------------------------------------------------------------ KV

    def _arrive(self, id: int, contents: list[int], effects: list[ev.Effect]) -> None:
        sequence = self._fetching.pop(id, None)
        if sequence is None:
            return
        total = sequence.num_prompt
        first = sequence.num_computed // self.config.block_size
        expected = [*sequence.keys, sequence.state][first : self._num_blocks(total - 1)]
        contents = (contents + [0] * len(expected))[: len(expected)]
        sequence.compare(contents, expected)
        self._store(sequence, first, contents[: (total - 1) // self.config.block_size - first], effects)
        self.counters.remote_tokens += total - 1 - sequence.num_computed
        sequence.num_computed = total - 1  # the last prompt token is computed here, for the first output
        sequence.remote = False
        self._arrived.append(sequence)

    def _store(self, sequence: Sequence, first: int, contents: list[int], effects: list[ev.Effect]) -> None:
        """The sequence's blocks from `first` on are full and contain `contents`."""
        new = [
            position
            for position, content in enumerate(contents, first)
            if self.pool.fill(sequence.blocks[position], sequence.keys[position], content)
        ]
        if new:  # one event for all: to tell again of one in between that was cached does no harm
            start, stop = new[0], new[-1] + 1
            size = self.config.block_size
            parent = sequence.keys[start - 1] if start else 0
            effects.append(ev.Stored(sequence.keys[start:stop], parent, sequence.tokens[start * size : stop * size]))

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)
