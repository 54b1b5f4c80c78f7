"""`python -m launcher.planner RUN_DIR`: looks at the fleet every second, and writes what it thinks of it.

A thin shell around `roles` and `forecast`, kept beside the controller. It asks the proxy over HTTP as anybody may and
writes `planner.json`; it touches neither jobs nor requests. Where it ends, all goes on as it said last, and after a
minute as the router alone has it.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from launcher.job import Plan
from launcher.planner.forecast import BUCKET_S, MAX_BUCKETS, Bucket, Forecast
from launcher.planner.roles import Looked, Roles, Sight
from launcher.planner.word import MAX_DECISIONS, ON, Decision, Word, movable
from launcher.rundir import RunDir, read_optional
from launcher.view.live_status import ask_fleet
from workers.logs import start_logging
from workers.spec import write_json

log = logging.getLogger("sluice.planner")

LOOK_S = 1.0
WRITE_S = 10.0


class Planner:
    """`look` once a second. Raises OSError where the run folder cannot be read or written."""

    def __init__(self, run: RunDir, now: float) -> None:
        self._run = run
        self._plan: Plan = run.read_plan()
        before = read_optional(run.planner, Word) or Word()
        self._word = msgspec.structs.replace(before, mode=self._plan.planner, written_at=0.0)
        self._roles = Roles(self._plan.proxy.routing.targets, dict(before.roles))
        self._forecast = Forecast()
        for bucket in before.buckets:
            self._forecast.add(bucket)
        self._minute = before.minute or int(now) // BUCKET_S * BUCKET_S
        self._buckets = list(before.buckets)

    def look(self, now: float) -> None:
        fleet = ask_fleet(self._run)
        if fleet is None:
            return
        if now >= self._minute + 2 * BUCKET_S:
            self._count(now)
        decisions = self._decide(fleet, now)
        if decisions or now - self._word.written_at >= WRITE_S:
            self._write(decisions, now)

    def _decide(self, fleet: dict[str, Any], now: float) -> list[Decision]:
        proxy = self._plan.proxy
        able = movable(proxy.workers, proxy.pools, proxy.pairs)
        seen = [worker["pressure"] for worker in fleet["workers"] if worker["up"] and worker["worker"] in able]
        sights = {sight["worker"]: msgspec.convert(sight, Sight) for sight in seen}  # of two lives the newer
        moves = self._roles.apply(Looked(list(sights.values()), fleet["queued_tokens"]), now)
        done = self._plan.planner == ON
        decisions = [
            Decision(at=now, worker=m.worker, before=m.before, role=m.role, pressure=m.pressure, done=done)
            for m in moves
        ]
        for decision in decisions:
            log.info("%s", decision)
        return decisions

    def _count(self, now: float) -> None:
        """Minutes that are over. What nobody has counted was nothing."""
        self._plan = self._run.read_plan()  # a live run may have been given another size
        end = int(now) // BUCKET_S * BUCKET_S
        first = max(self._minute + BUCKET_S, end - MAX_BUCKETS * BUCKET_S)
        seen = ask_fleet(self._run, f"/overview?since={first}")
        if seen is None:
            return
        for start in range(first, end, BUCKET_S):
            bucket = _bucket([i for i in seen["history"]["intervals"] if start <= i["start"] < start + BUCKET_S])
            self._forecast.add(bucket)
            self._buckets = [*self._buckets, bucket][-MAX_BUCKETS:]
        self._minute = end - BUCKET_S

    def _write(self, decisions: list[Decision], now: float) -> None:
        self._word = Word(
            written_at=now,
            mode=self._plan.planner,
            roles=self._roles.roles,
            pressure=self._roles.pressure,
            demand={kind: dict(ahead) for kind, ahead in self._forecast.ahead().items()},
            drift=self._forecast.drift(),
            decisions=(*self._word.decisions, *decisions)[-MAX_DECISIONS:],
            minute=self._minute,
            buckets=tuple(self._buckets),
        )
        write_json(self._run.planner, self._word)


def _bucket(intervals: list[dict[str, Any]]) -> Bucket:
    prompt, cached, output = (
        sum(interval[name] for interval in intervals) / BUCKET_S
        for name in ("prompt_tokens", "cached_tokens", "output_tokens")
    )
    return Bucket(prompt - cached, cached, output)


def main(run: RunDir) -> None:
    listener = start_logging("planner")
    try:
        planner = Planner(run, time.time())
        while True:
            try:
                planner.look(time.time())
            except OSError as fault:
                log.error("%s; it will be tried again", fault)
            time.sleep(LOOK_S)
    finally:
        listener.stop()


if __name__ == "__main__":
    main(RunDir(Path(sys.argv[1])))
