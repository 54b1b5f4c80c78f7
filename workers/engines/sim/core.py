"""What the simulated engine says: tokens and what blocks contain, over the scheduler that counts them; and tickets.

Pure: no await, clock, socket or randomness. One mutator, `apply(event, now)`; its driver applies `Tick` at `next_at`
and carries the effects out.

The model is a rule: a sequence's next token follows from the hash of all its tokens and, where one of
its blocks contains something else than it should (a ticket read too late), from that difference too.
"""

from __future__ import annotations

from workers.engines.sim import events as ev
from workers.engines.sim import work
from workers.engines.sim.passes import NEVER
from workers.engines.sim.scheduler import Scheduler
from workers.engines.sim.sequence import Sequence
from workers.engines.sim.steps import SimSteps
from workers.engines.sim.tokenizer import next_token


class Core:
    def __init__(self, config: ev.CoreConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config, SimSteps(config.timing), max_planned_passes=1)
        self.counters = ev.Counters()
        self._live: dict[int, Sequence] = {}
        self._tickets: dict[int, tuple[float, list[int]]] = {}  # ends and contents, in the order of their ends
        self._wrong: dict[int, int] = {}  # what cached blocks contain, by key, where it is not what it should be

    @property
    def num_tickets(self) -> int:
        return len(self._tickets)

    @property
    def next_at(self) -> float | None:
        """When `Tick` is due; None: only an event changes anything."""
        lease_end = next(iter(self._tickets.values()))[0] if self._tickets else NEVER
        due = min(self.scheduler.next_at, lease_end)
        return None if due == NEVER else due

    def contents(self, ticket: int, blocks: list[int]) -> list[int]:
        """What these blocks of a ticket contain. When its time is over they contain anything but what they should."""
        _, contents = self._tickets.get(ticket, (0.0, []))
        return [contents[block] if 0 <= block < len(contents) else 0 for block in blocks]

    # ------------------------------------------------------------ the mutator

    def apply(self, event: ev.Event, now: float) -> list[ev.Effect]:
        effects: list[ev.Effect] = []
        self._expire(now, effects)
        self._step(self._told(event, now), now, effects)
        if isinstance(event, ev.Abort | ev.Lost) and self._live.pop(event.id, None) is not None:
            effects.append(ev.Ended(event.id, "abort" if isinstance(event, ev.Abort) else "error", []))
        if evicted := self.scheduler.cache.take_evicted():
            for key in evicted if self._wrong else ():
                self._wrong.pop(key, None)
            effects.append(ev.Removed(evicted))
        self.counters.preemptions = self.scheduler.num_preemptions
        return effects

    def _told(self, event: ev.Event, now: float) -> work.Event:
        """The scheduler's part of it."""
        match event:
            case ev.Submit():
                return self._submit(event)
            case ev.Arrived(id, contents) if id in self._live:
                return self._arrive(self._live[id], contents)
            case ev.Abort(id) | ev.Lost(id) if id in self._live:
                return work.Abort(id)
            case ev.Release(ticket) if self._tickets.pop(ticket, None) is not None:
                return work.Release(ticket)
            case ev.Extend(ticket):
                self._extend(ticket, now)
        return work.Tick()

    def _expire(self, now: float, effects: list[ev.Effect]) -> None:
        while self._tickets:
            ticket, (deadline, _) = next(iter(self._tickets.items()))
            if deadline > now:
                return
            del self._tickets[ticket]
            self._step(work.Release(ticket), now, effects)
            self.counters.expired_tickets += 1
            effects.append(ev.Expired(ticket))

    def _extend(self, ticket: int, now: float) -> None:
        if ticket not in self._tickets:
            return
        deadline, contents = self._tickets[ticket]
        self._tickets[ticket] = (max(deadline, now + self.config.lease_s * 2 / 3), contents)
        self._tickets = dict(sorted(self._tickets.items(), key=lambda item: item[1][0]))

    def _submit(self, event: ev.Submit) -> work.Work:
        assert event.prompt and event.max_tokens > 0 and event.id not in self._live
        assert event.max_tokens == 1 or not event.hold, "a prefill leg makes one token"
        sequence = Sequence(event.id, list(event.prompt), len(event.prompt), event.salt, event.hold)
        sequence.extend_hash(self.config.block_size)
        self._live[event.id] = sequence
        self.counters.prompt_tokens += sequence.num_prompt
        # The chain is the sequence's own: it grows as the answer does.
        return work.Work(
            event.id, sequence.keys, sequence.num_prompt, event.max_tokens, hold=event.hold, remote=event.remote
        )

    def _arrive(self, sequence: Sequence, contents: list[int]) -> work.Arrive:
        size, num_new = self.config.block_size, sequence.num_prompt - 1 - sequence.num_cached
        first, last = sequence.num_cached // size, -(-(sequence.num_prompt - 1) // size)
        expected = [*sequence.keys, sequence.state][first:last]
        sequence.compare((contents + [0] * len(expected))[: len(expected)], expected)
        self.counters.remote_tokens += num_new
        return work.Arrive(sequence.id)

    # ------------------------------------------------------------ what the scheduler says of it

    def _step(self, event: work.Event, now: float, effects: list[ev.Effect]) -> None:
        """At the end of a pass each that decodes has a token."""
        ids = list(self.scheduler.decoding) if now >= self.scheduler.next_at else []
        told = self.scheduler.apply(event, now)
        tokens = ev.Tokens([], [])
        for id in ids:
            self._speak(self._live[id], tokens)
        ended: list[ev.Effect] = []
        for effect in told:
            self._hear(effect, tokens, effects, ended, now)
        if tokens.ids:
            self.counters.generated_tokens += len(tokens.ids)
            effects.append(tokens)
        effects += ended

    def _hear(
        self, effect: work.Effect, tokens: ev.Tokens, effects: list[ev.Effect], ended: list[ev.Effect], now: float
    ) -> None:
        sequence = self._live[effect.id]
        match effect:
            case work.Read():
                if sequence.hold:  # its one token is no part of what it holds
                    self._tickets[sequence.id] = (now + self.config.lease_s, sequence.contents)
                self._speak(sequence, tokens)
            case work.Stored(_, keys):
                effects.append(self._store(sequence, keys))
            case work.Placed(_, num_cached):
                self._place(sequence, num_cached, effects)
            case work.Fetch(id, num_tokens):
                effects.append(ev.Fetch(id, sequence.num_cached // self.config.block_size, num_tokens))
            case work.Ended(id):
                del self._live[id]
                blocks = range(len(self._tickets[id][1])) if sequence.hold else ()
                ended.append(ev.Ended(id, "length", list(blocks)))

    def _speak(self, sequence: Sequence, tokens: ev.Tokens) -> None:
        token = next_token(sequence.state ^ sequence.taint ^ sequence.salt)
        sequence.append(token, self.config.block_size)
        tokens.ids.append(sequence.id)
        tokens.tokens.append(token)

    def _place(self, sequence: Sequence, num_cached: int, effects: list[ev.Effect]) -> None:
        found = sequence.keys[: num_cached // self.config.block_size]
        sequence.num_cached, sequence.taint = num_cached, 0
        sequence.compare((self._wrong.get(key, key) for key in found), found)
        if not sequence.seen:
            sequence.seen = True
            self.counters.cache_queries += len(sequence.tokens)
            self.counters.cache_hits += num_cached
            effects.append(ev.Scheduled(sequence.id, num_cached))

    def _store(self, sequence: Sequence, keys: list[int]) -> ev.Stored:
        """One event for all: to tell again of one in between that was cached does no harm."""
        if sequence.taint:
            self._wrong.update((key, key ^ sequence.taint) for key in keys)
        all, size = sequence.keys, self.config.block_size
        start, stop = all.index(keys[0]), all.index(keys[-1]) + 1
        parent = all[start - 1] if start else 0
        return ev.Stored(all[start:stop], parent, sequence.tokens[start * size : stop * size])
