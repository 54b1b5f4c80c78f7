"""The simulated engine's scheduler: continuous batching over a paged prefix cache, with KV hand-over.

Pure, the same live and in virtual time: one mutator, `apply(event, now)`; its driver applies `Tick` at `next_at` and
carries the effects out. It counts tokens and blocks and knows neither's values.
"""

from __future__ import annotations

import itertools
from array import array
from collections import deque

from workers.engines.sim.cache import Cache
from workers.engines.sim.events import CoreConfig
from workers.engines.sim.passes import MAX_PLANNED, NEVER, Passes
from workers.engines.sim.steps import Steps
from workers.engines.sim.work import (
    Abort,
    Arrive,
    Effect,
    Ended,
    Event,
    Fetch,
    Job,
    Placed,
    Read,
    Release,
    Stored,
    Tick,
    Work,
)

_ANSWERS = 1 << 63  # made-up hashes of answers' blocks begin here; prompts' are mixed over all 64 bits


class Scheduler:
    """A request is in exactly one of `_waiting`, `_fetching`, `_arrived`, `_prefilling`, `decoding`, `_held`."""

    def __init__(self, config: CoreConfig, steps: Steps, max_planned_passes: int = MAX_PLANNED) -> None:
        """`max_planned_passes=1`: every pass is told, for who must know of each token."""
        self.config = config
        self.cache = Cache(config.num_blocks)
        self.num_preemptions = 0
        self.unread_tokens = 0  # of prompts whose first output has not come
        self._steps = steps
        self._passes = Passes(self.cache, steps, config.block_size, max_planned_passes)
        self.decoding = self._passes.decoding
        self._size = config.block_size
        self._max_running = min(config.max_num_seqs, config.max_num_batched_tokens)
        self._waiting: deque[Job] = deque()
        self._fetching: dict[int, Job] = {}
        self._arrived: deque[Job] = deque()
        self._prefilling: list[Job] = []  # all younger than those that decode
        self._held: dict[int, Job] = {}
        self._chunks: list[tuple[Job, int]] = []  # of the pass, and how many new tokens of each
        self._answer_blocks = itertools.count(_ANSWERS)

    @property
    def next_at(self) -> float:
        return self._passes.next_at

    @property
    def num_running(self) -> int:
        return len(self.decoding) + len(self._prefilling)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._fetching) + len(self._arrived)

    @property
    def num_held_blocks(self) -> int:
        return sum(sequence.num_blocks for sequence in self._held.values())

    def made(self, id: int, now: float) -> int:
        """Tokens of an answer that has begun."""
        job = self.decoding.get(id)
        return 1 if job is None else 1 + self._passes.num_computed(job, now) - job.work.num_prompt

    # ------------------------------------------------------------ the mutator

    def apply(self, event: Event, now: float) -> list[Effect]:
        effects: list[Effect] = []
        # Ticks change nothing, and nobody gets past those who wait.
        if type(event) is not Tick and not (type(event) is Work and self._waiting):
            self._passes.cut(now)
        if now >= self.next_at:
            self._finish(effects)
        self._handle(event, effects)
        if self.next_at == NEVER:
            self._begin(now, effects)
        return effects

    def _handle(self, event: Event, effects: list[Effect]) -> None:
        match event:
            case Work():
                self._submit(event)
            case Arrive(id):
                self._arrive(id, effects)
            case Release(id):
                if (job := self._held.pop(id, None)) is not None:
                    self._drop(job)
            case Abort(id):
                self._abort(id, effects)
            case Tick():
                pass

    def _submit(self, work: Work) -> None:
        assert self._blocks(work.num_prompt + work.num_output) <= self.config.num_blocks, "it could never run"
        self._waiting.append(Job(work, work.chain, work.num_prompt, work.remote))
        self.unread_tokens += 0 if work.remote else work.num_prompt

    def _arrive(self, id: int, effects: list[Effect]) -> None:
        job = self._fetching.pop(id, None)
        if job is None:
            return
        first = self._full(job.num_computed)
        job.num_computed = job.total - 1  # the last token is computed here, for the first output
        self._name(job, first, effects)
        self._arrived.append(job)

    def _abort(self, id: int, effects: list[Effect]) -> None:
        """Its pass goes on without it."""
        if (job := self.decoding.get(id)) is not None:
            self._stop_decoding(job, effects)
        elif (job := self._fetching.pop(id, None)) is None:
            queues = (self._waiting, self._arrived, self._prefilling)
            found = next(((queue, job) for queue in queues for job in queue if job.id == id), None)
            if found is None:
                return
            queue, job = found
            queue.remove(job)
            self._chunks = [chunk for chunk in self._chunks if chunk[0] is not job]
        self.unread_tokens -= 0 if job.told or job.work.remote else job.work.num_prompt
        self._drop(job)

    # ------------------------------------------------------------ the beginning of a pass

    def _begin(self, now: float, effects: list[Effect]) -> None:
        preempted = self._grow(effects)
        budget, also = self._continue_prefills(self.config.max_num_batched_tokens - len(self.decoding), effects)
        if not (preempted or also) or not (self.decoding or self._chunks):
            self._admit(budget, effects)
        if self._chunks:
            self._passes.plan_one(now + self._chunk_step_s())
        elif self.decoding:
            self._passes.plan_decodes(now, only_one=preempted or also)

    def _chunk_step_s(self) -> float:
        """Who has one token to compute is to the engine like one that decodes."""
        chunks = [(sequence.num_computed, new) for sequence, new in self._chunks if new > 1]
        ones = [sequence.num_computed for sequence, new in self._chunks if new == 1]
        num_decodes, num_pairs = len(self.decoding), sum(new * (before + new / 2) for before, new in chunks)
        kv_tokens = self._passes.kv_tokens + sum(ones)
        num_tokens = sum(new for _, new in chunks)
        return self._steps.chunk_step_s(num_tokens, num_pairs, num_decodes + len(ones), kv_tokens, self.cache.usage)

    def _grow(self, effects: list[Effect]) -> bool:
        """Blocks for those that decode, in this pass."""
        preempted = False
        while (blocks := self._passes.blocks_needed) > self.cache.num_available:
            self._preempt(effects)
            preempted = True
        self.cache.allocate(blocks)
        return preempted

    def _continue_prefills(self, budget: int, effects: list[Effect]) -> tuple[int, bool]:
        preempted = False
        for sequence in list(self._prefilling):
            new = min(sequence.total - sequence.num_computed, budget)
            if not new:
                break
            missing = self._blocks(sequence.num_computed + new) - sequence.num_blocks
            while missing > self.cache.num_available and sequence in self._prefilling:
                self._preempt(effects)
                preempted = True
            if sequence not in self._prefilling:
                break
            self._take(sequence, missing, new)
            budget -= new
        return budget, preempted

    def _take(self, sequence: Job, num_blocks: int, new: int) -> None:
        self.cache.allocate(num_blocks)
        sequence.num_blocks += num_blocks
        self._chunks.append((sequence, new))

    def _preempt(self, effects: list[Effect]) -> None:
        """The youngest gives its blocks and is computed again, from what is then still cached."""
        self.num_preemptions += 1
        if self._prefilling:
            sequence = self._prefilling.pop()
        else:
            sequence = self.decoding[next(reversed(self.decoding))]
            self._stop_decoding(sequence, effects)
            sequence.total = sequence.num_computed + 1
        self._drop(sequence)
        self._waiting.appendleft(sequence)

    def _admit(self, budget: int, effects: list[Effect]) -> None:
        """First come, first served, but first those whose KV has arrived: they hold blocks others wait for."""
        while budget > 0 and self.num_running < self._max_running:
            if self._arrived:
                sequence = self._arrived.popleft()
            elif self._waiting and self._place(self._waiting[0], budget, effects):
                sequence = self._waiting.popleft()
            else:
                return
            if sequence.remote:
                sequence.remote = False
                self._fetching[sequence.id] = sequence
                continue
            new = min(sequence.total - sequence.num_computed, budget)
            self._prefilling.append(sequence)
            self._take(sequence, 0, new)
            budget -= new

    def _place(self, sequence: Job, budget: int, effects: list[Effect]) -> bool:
        cache, total = self.cache, sequence.total
        found = sequence.chain[: cache.find(sequence.chain, self._full(total - 1))]
        num_cached = len(found) * self._size
        target = total if sequence.remote else min(total, num_cached + budget)
        missing = self._blocks(target) - len(found)
        if missing > cache.num_available - cache.num_unused(found):
            return False
        cache.share(found)
        cache.allocate(missing)
        sequence.named = list(found)
        sequence.num_blocks = len(found) + missing
        sequence.num_computed = num_cached
        if sequence.num_cached is None:
            sequence.num_cached = num_cached
        effects.append(Placed(sequence.id, num_cached))
        if sequence.remote:
            effects.append(Fetch(sequence.id, total - 1 - num_cached))
        return True

    # ------------------------------------------------------------ its end

    def _finish(self, effects: list[Effect]) -> None:
        """All passes of the plan are over."""
        for sequence in self._passes.finish():
            self._stop_decoding(sequence, effects)
            self._complete(sequence, effects)
        chunks, self._chunks = self._chunks, []
        for sequence, new in chunks:
            self._advance(sequence, new, effects)

    def _advance(self, sequence: Job, new: int, effects: list[Effect]) -> None:
        first = self._full(sequence.num_computed)
        sequence.num_computed += new
        self._name(sequence, first, effects)
        if sequence.num_computed < sequence.total:
            return
        self._prefilling.remove(sequence)
        assert sequence.num_cached is not None
        effects.append(Read(sequence.id, sequence.num_cached, again=sequence.told))
        self.unread_tokens -= 0 if sequence.told or sequence.work.remote else sequence.work.num_prompt
        sequence.told = True
        if sequence.total + 1 == sequence.end:
            self._complete(sequence, effects)
        else:
            self._passes.start(sequence)

    def _stop_decoding(self, sequence: Job, effects: list[Effect]) -> None:
        """Its full blocks are named now: nobody could have asked for them before. Where nobody knows what is in them
        they get names that nobody asks for, and nobody is told."""
        self._passes.stop(sequence)
        first, num_computed = self._full(sequence.num_computed), self._passes.num_over + sequence.base
        sequence.num_computed = num_computed
        sequence.num_blocks = self._blocks(num_computed + self._passes.num_open)
        missing = self._full(num_computed) - len(sequence.chain)
        if missing > 0:
            answer = list(itertools.islice(self._answer_blocks, missing))
            sequence.chain = array("Q", [*sequence.chain, *answer])
            sequence.named += self.cache.name(answer)
        else:
            self._name(sequence, first, effects)

    def _complete(self, sequence: Job, effects: list[Effect]) -> None:
        if sequence.work.hold:
            self._held[sequence.id] = sequence
        else:
            self._drop(sequence)
        effects.append(Ended(sequence.id))

    def _name(self, sequence: Job, first: int, effects: list[Effect]) -> None:
        """Its blocks from `first` on are full, as far as it is computed."""
        last = self._full(sequence.num_computed)
        if first < last and (new := self.cache.name(sequence.chain[first:last])):
            sequence.named += new
            effects.append(Stored(sequence.id, new))

    def _drop(self, sequence: Job) -> None:
        self.cache.drop(sequence.named, sequence.num_blocks - len(sequence.named))
        sequence.named = []
        sequence.num_blocks = 0

    def _full(self, num_tokens: int) -> int:
        return num_tokens // self._size

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._size)
