"""The passes of a simulated engine and those that decode in them: many passes at once, in closed form.

Pure. While nothing but decoding goes on, passes are planned ahead up to the first end; whatever happens earlier cuts
the plan. The first pass of a plan has its blocks already, later ones get them when they are over.
"""

from __future__ import annotations

import heapq
import itertools

import numpy

from workers.engines.sim.cache import Cache
from workers.engines.sim.steps import Steps
from workers.engines.sim.work import Job

MAX_PLANNED = 512
NEVER = float("inf")
_PASSES = numpy.arange(MAX_PLANNED + 1)
_NO_PASSES = numpy.zeros(0)
_NO_BLOCKS = numpy.zeros(1, dtype=numpy.int64)


class Passes:
    def __init__(self, cache: Cache, steps: Steps, block_size: int, max_planned: int) -> None:
        self.decoding: dict[int, Job] = {}
        self.num_over = 0
        self._cache, self._steps, self._size, self._max_planned = cache, steps, block_size, max_planned
        self._plan = _NO_PASSES  # ends
        self._plan_blocks = _NO_BLOCKS  # needed beyond the first pass's, up to each
        self._bases = 0
        self._grows = numpy.zeros(block_size, dtype=numpy.int64)  # how many need a block, by pass modulo block size
        self._ends: list[tuple[int, int, Job]] = []  # heap of last passes
        self._order = itertools.count()

    @property
    def next_at(self) -> float:
        return float(self._plan[-1]) if self._plan.size else NEVER

    @property
    def num_open(self) -> int:
        """0 or 1, once the plan has been cut."""
        return self._plan.size

    @property
    def kv_tokens(self) -> int:
        """That decoding reads in the next pass."""
        return self._bases + len(self.decoding) * (self.num_over + 1)

    @property
    def blocks_needed(self) -> int:
        """By those that decode, for the next pass."""
        return int(self._grows[self.num_over % self._size])

    # ------------------------------------------------------------ who decodes

    def start(self, job: Job) -> None:
        job.base = job.num_computed - self.num_over
        job.last_pass = job.end - 2 - job.base
        self.decoding[job.id] = job
        self._bases += job.base
        self._grows[-job.base % self._size] += 1
        heapq.heappush(self._ends, (job.last_pass, next(self._order), job))

    def stop(self, job: Job) -> None:
        del self.decoding[job.id]
        self._grows[-job.base % self._size] -= 1
        self._bases -= job.base
        job.last_pass = -1

    def num_computed(self, job: Job, now: float) -> int:
        """By now, of one that decodes."""
        return self.num_over + int(self._plan.searchsorted(now, side="right")) + job.base

    # ------------------------------------------------------------ the plan

    def plan_one(self, end_at: float) -> None:
        self._plan, self._plan_blocks = numpy.array([end_at]), _NO_BLOCKS

    def plan_decodes(self, now: float, only_one: bool) -> None:
        """Up to the first end, or to where blocks run out."""
        cache, num_decodes = self._cache, len(self.decoding)
        most = min(self._first_end() - self.num_over + 1, 1 if only_one else self._max_planned)
        blocks = self._grows[(_PASSES[:most] + self.num_over) % self._size]
        blocks[0] = 0
        blocks = blocks.cumsum()
        count = int(blocks.searchsorted(cache.num_available, side="right"))
        self._plan_blocks = blocks[:count]
        kv_tokens = self._bases + num_decodes * (_PASSES[:count] + float(self.num_over + 1))
        usage = (cache.num_used + blocks[:count]) / cache.num_blocks
        self._plan = now + self._steps.decode_steps_s(num_decodes, kv_tokens, usage).cumsum()

    def cut(self, now: float) -> None:
        """What follows may begin in the next pass, so the plan ends with this one."""
        if self._plan.size > 1:
            over = min(int(self._plan.searchsorted(now)), self._plan.size - 1)
            self._cache.allocate(int(self._plan_blocks[over]))
            self.num_over += over
            self._plan, self._plan_blocks = self._plan[over : over + 1], _NO_BLOCKS

    def finish(self) -> list[Job]:
        """All of the plan are over. Whose last one it was, in the order in which they began."""
        self.num_over += self._plan.size
        self._cache.allocate(int(self._plan_blocks[-1]))
        self._plan, self._plan_blocks = _NO_PASSES, _NO_BLOCKS
        ended = []
        while self._ends and self._ends[0][0] < self.num_over:
            number, _, job = heapq.heappop(self._ends)
            if job.last_pass == number:
                job.last_pass = -1  # one that was stopped for a while may be here twice
                ended.append(job)
        return ended

    def _first_end(self) -> int:
        ends = self._ends
        while ends[0][2].last_pass != ends[0][0]:  # stopped since
            heapq.heappop(ends)
        return ends[0][0]
