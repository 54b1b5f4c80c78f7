"""One simulated engine in virtual time, by blocks: what the simulator's scheduler does, many passes in one step.

Pure. The rules are those of `workers/engines/sim/core.py`, and a test holds both against each other. While nothing but
decoding goes on, passes are planned ahead up to the first end; whatever happens earlier cuts the plan. Tokens have no
values here, so an answer's blocks are cached under hashes that no prompt asks for.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections import deque

import numpy

from launcher.twin.cache import Cache
from launcher.twin.card import Card
from launcher.twin.work import Effect, Ended, Fetch, First, Job, Work

MAX_PLANNED_PASSES = 512
_PASSES = numpy.arange(MAX_PLANNED_PASSES + 1)
_NO_PASSES = numpy.zeros(0)
_NO_BLOCKS = numpy.zeros(0, dtype=numpy.int64)
NEVER = float("inf")
_ANSWERS = 1 << 63  # hashes of answers' blocks begin here; prompts' are mixed over all 64 bits


class Engine:
    def __init__(self, card: Card) -> None:
        self.card = card
        self.cache = Cache(card.num_blocks)
        self.next_at = NEVER
        self.num_preemptions = 0
        self.num_computed_tokens = 0
        self.stored: list[int] = []  # of prompts; the driver takes them with each step
        self.unread_tokens = 0  # of prompts whose first output has not come
        self._size = card.block_size
        self._waiting: deque[Job] = deque()
        self._fetching: dict[int, Job] = {}
        self._arrived: deque[Job] = deque()
        self._prefilling: list[Job] = []  # all younger than those that decode
        self._decoding: dict[int, Job] = {}
        self._held: dict[int, Job] = {}
        self._chunks: list[tuple[Job, int]] = []
        self._plan = _NO_PASSES  # ends of the passes of this step
        self._plan_blocks = _NO_BLOCKS  # that passes of the plan need beyond its first one's
        self._steps = card.steps
        self._pass = 0  # begun and over
        self._bases = 0  # of all that decode
        self._grows = numpy.zeros(
            card.block_size, dtype=numpy.int64
        )  # how many that decode need a block, by pass modulo block size
        self._ends: list[tuple[int, int, Job]] = []  # heap of last passes
        self._order = itertools.count()
        self._answer_blocks = itertools.count(_ANSWERS)

    @property
    def num_running(self) -> int:
        return len(self._decoding) + len(self._prefilling)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._fetching) + len(self._arrived)

    @property
    def num_held_blocks(self) -> int:
        return sum(sequence.num_blocks for sequence in self._held.values())

    @property
    def usage(self) -> float:
        return self.cache.num_used / self.card.num_blocks

    # ------------------------------------------------------------ events

    def submit(self, work: Work, now: float) -> list[Effect]:
        assert self._blocks(work.num_prompt + work.num_output) <= self.card.num_blocks, "it could never run"
        effects = self._reach(now, changes=not self._waiting)
        self._waiting.append(Job(work, work.chain, work.num_prompt, work.remote))
        self.unread_tokens += 0 if work.remote else work.num_prompt
        return self._go_on(effects, now)

    def arrive(self, id: int, now: float) -> list[Effect]:
        effects = self._reach(now, changes=True)
        sequence = self._fetching.pop(id)
        first = self._full(sequence.num_computed)
        sequence.num_computed = sequence.total - 1  # the last token is computed here, for the first output
        self._name(sequence, first, self._full(sequence.num_computed))
        self._arrived.append(sequence)
        return self._go_on(effects, now)

    def release(self, id: int, now: float) -> list[Effect]:
        effects = self._reach(now, changes=True)
        sequence = self._held.pop(id, None)
        if sequence is not None:
            self._drop(sequence)
        return self._go_on(effects, now)

    def cancel(self, id: int, now: float) -> list[Effect]:
        """Of one whose KV has not been used yet. One that is computed already goes on for nobody."""
        effects = self._reach(now, changes=True)
        left = [job for job in (*self._fetching.values(), *self._arrived) if job.id == id]
        for job in left:
            self._drop(job)
        self._fetching.pop(id, None)
        self._arrived = deque(job for job in self._arrived if job.id != id)
        self._waiting = deque(job for job in self._waiting if job.id != id)
        return self._go_on(effects, now)

    def made(self, id: int, now: float) -> int:
        """Tokens of an answer that has begun."""
        job = self._decoding.get(id)
        if job is None:
            return 1
        passes = self._pass + int(self._plan.searchsorted(now, side="right"))
        return 1 + passes + job.base - job.work.num_prompt

    def tick(self, now: float) -> list[Effect]:
        """Due at `next_at`."""
        return self._go_on(self._reach(now, changes=False), now)

    def _reach(self, now: float, changes: bool) -> list[Effect]:
        """`changes`: what follows may begin in the next pass, so the plan ends with this one."""
        effects: list[Effect] = []
        if changes and self._plan.size > 1:
            self._plan = self._plan[: int(self._plan.searchsorted(now)) + 1]
        if self._plan.size and now >= self._plan[-1]:
            self._finish(effects)
        return effects

    def _go_on(self, effects: list[Effect], now: float) -> list[Effect]:
        if not self._plan.size:
            self._begin(now, effects)
        self.next_at = float(self._plan[-1]) if self._plan.size else NEVER
        return effects

    # ------------------------------------------------------------ the beginning of a pass

    def _begin(self, now: float, effects: list[Effect]) -> None:
        preempted = self._grow()
        budget, also = self._continue_prefills(self.card.max_num_batched_tokens - len(self._decoding))
        if not (preempted or also) or not (self._decoding or self._chunks):
            self._admit(budget, effects)
        if self._chunks:
            self._plan = numpy.array([now + self._chunk_step_s()])
        elif self._decoding:
            self._plan_decodes(now, 1 if preempted or also else MAX_PLANNED_PASSES)

    def _plan_decodes(self, now: float, max_passes: int) -> None:
        """Up to the first end, or to where blocks run out. This pass's blocks are allocated, later ones' are not."""
        cache, num_decodes = self.cache, len(self._decoding)
        most = min(self._first_end() - self._pass + 1, max_passes)
        blocks = self._grows[(_PASSES[:most] + self._pass) % self._size]
        blocks[0] = 0
        blocks = blocks.cumsum()
        count = int(blocks.searchsorted(cache.num_available, side="right"))
        self._plan_blocks = blocks[:count]
        kv_tokens = self._bases + num_decodes * (_PASSES[:count] + float(self._pass + 1))
        steps_s = self._steps.decode_steps_s(
            num_decodes, kv_tokens, (cache.num_used + blocks[:count]) / cache.num_blocks
        )
        self._plan = now + steps_s.cumsum()

    def _chunk_step_s(self) -> float:
        """Who has one token to compute is to the engine like one that decodes."""
        chunks = [(sequence.num_computed, new) for sequence, new in self._chunks if new > 1]
        ones = [sequence.num_computed for sequence, new in self._chunks if new == 1]
        num_decodes, num_pairs = len(self._decoding), sum(new * (before + new / 2) for before, new in chunks)
        kv_tokens = self._bases + num_decodes * (self._pass + 1) + sum(ones)
        num_tokens = sum(new for _, new in chunks)
        return self._steps.chunk_step_s(num_tokens, num_pairs, num_decodes + len(ones), kv_tokens, self.usage)

    def _first_end(self) -> int:
        ends = self._ends
        while ends[0][2].last_pass != ends[0][0]:  # preempted since
            heapq.heappop(ends)
        return ends[0][0]

    def _grow(self) -> bool:
        """Blocks for those that decode, in this pass."""
        preempted = False
        while (blocks := int(self._grows[self._pass % self._size])) > self.cache.num_available:
            self._preempt()
            preempted = True
        self.cache.allocate(blocks)
        return preempted

    def _continue_prefills(self, budget: int) -> tuple[int, bool]:
        preempted = False
        for sequence in list(self._prefilling):
            new = min(sequence.total - sequence.num_computed, budget)
            if not new:
                break
            missing = self._blocks(sequence.num_computed + new) - sequence.num_blocks
            while missing > self.cache.num_available and sequence in self._prefilling:
                self._preempt()
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

    def _preempt(self) -> None:
        """The youngest gives its blocks and is computed again, from what is then still cached."""
        self.num_preemptions += 1
        if self._prefilling:
            sequence = self._prefilling.pop()
        else:
            _, sequence = self._decoding.popitem()
            self._stop_decoding(sequence, self._pass + sequence.base)
            sequence.total = sequence.num_computed + 1
        self._drop(sequence)
        self._waiting.appendleft(sequence)

    def _admit(self, budget: int, effects: list[Effect]) -> None:
        """First come, first served, but first those whose KV has arrived: they hold blocks others wait for."""
        while budget > 0 and self.num_running < self.card.max_num_seqs:
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
        if sequence.remote:
            effects.append(Fetch(sequence.id, total - 1 - num_cached))
        return True

    # ------------------------------------------------------------ its end

    def _finish(self, effects: list[Effect]) -> None:
        """All passes of the plan are over."""
        num_passes = self._plan.size
        self._pass += num_passes
        self._plan = _NO_PASSES
        if num_passes > 1:
            self.cache.allocate(int(self._plan_blocks[num_passes - 1]))
        ends = self._ends
        while ends and ends[0][0] < self._pass:
            number, _, sequence = heapq.heappop(ends)
            if sequence.last_pass == number:
                del self._decoding[sequence.id]
                self._stop_decoding(sequence, number + 1 + sequence.base)
                self._complete(sequence, effects)
        chunks, self._chunks = self._chunks, []
        for sequence, new in chunks:
            self._advance(sequence, new, effects)

    def _advance(self, sequence: Job, new: int, effects: list[Effect]) -> None:
        first = self._full(sequence.num_computed)
        sequence.num_computed += new
        self.num_computed_tokens += new
        self._name(sequence, first, self._full(sequence.num_computed))
        if sequence.num_computed < sequence.total:
            return
        self._prefilling.remove(sequence)
        if not sequence.told:
            sequence.told = True
            self.unread_tokens -= 0 if sequence.work.remote else sequence.work.num_prompt
            assert sequence.num_cached is not None
            effects.append(First(sequence.id, sequence.num_cached))
        if sequence.total + 1 == sequence.end:
            self._complete(sequence, effects)
        else:
            self._start_decoding(sequence)

    def _start_decoding(self, sequence: Job) -> None:
        sequence.base = sequence.num_computed - self._pass
        sequence.last_pass = sequence.end - 2 - sequence.base
        self._decoding[sequence.id] = sequence
        self._bases += sequence.base
        self._grows[-sequence.base % self._size] += 1
        heapq.heappush(self._ends, (sequence.last_pass, next(self._order), sequence))

    def _stop_decoding(self, sequence: Job, num_computed: int) -> None:
        """Its full blocks that no prompt has are named now: nobody could have asked for them before."""
        self._grows[-sequence.base % self._size] -= 1
        self._bases -= sequence.base
        sequence.last_pass = -1
        sequence.num_computed = num_computed
        sequence.num_blocks = self._blocks(num_computed)
        missing = self._full(num_computed) - len(sequence.chain)
        if missing > 0:
            answer = list(itertools.islice(self._answer_blocks, missing))
            sequence.chain = array("Q", [*sequence.chain, *answer])
            sequence.named += self.cache.name(answer)

    def _complete(self, sequence: Job, effects: list[Effect]) -> None:
        if sequence.work.hold:
            self._held[sequence.id] = sequence
        else:
            self._drop(sequence)
        effects.append(Ended(sequence.id))

    def _name(self, sequence: Job, first: int, last: int) -> None:
        """Its blocks from `first` to `last` are full."""
        if first < last:
            new = self.cache.name(sequence.chain[first:last])
            sequence.named += new
            self.stored += new

    def _drop(self, sequence: Job) -> None:
        self.cache.drop(sequence.named, sequence.num_blocks - len(sequence.named))
        sequence.named = []
        sequence.num_blocks = 0

    def _full(self, num_tokens: int) -> int:
        return num_tokens // self._size

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._size)
