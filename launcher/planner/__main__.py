"""`python -m launcher.planner RUN_DIR`: looks at the fleet every second, and writes what it thinks of it.

A thin shell around `roles`, `sizes` and `forecast`, kept beside the controller. It asks the proxy over HTTP as anybody
may and writes `planner.json`; it touches neither jobs nor requests. Where it ends, all goes on as it said last, and
after a minute roles are as the router alone has them.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from launcher.job import Plan
from launcher.planner import roles
from launcher.planner.forecast import BUCKET_S, MAX_BUCKETS, Bucket, Forecast
from launcher.planner.roles import Roles, Sight
from launcher.planner.scale import Scaled
from launcher.planner.sizes import Requests, Sizes
from launcher.planner.word import MAX_DECISIONS, ON, Decision, Word, movable, read_word
from launcher.rundir import RunDir
from launcher.view.live_status import ask_fleet
from workers.logs import start_logging
from workers.spec import write_json

log = logging.getLogger("sluice.planner")

LOOK_S = 1.0
SIZE_S = 5.0
WRITE_S = 10.0


class Planner:
    """`look` once a second. Raises OSError where the run folder cannot be read or written."""

    def __init__(self, run: RunDir, now: float) -> None:
        self._run = run
        self._plan: Plan = run.read_plan()
        before = read_word(run) or Word()
        self._word = msgspec.structs.replace(before, mode=self._plan.planner, written_at=0.0)
        self._roles = Roles(self._plan.proxy.routing.targets, dict(before.roles))
        self._sizes: Sizes | None = None
        self._since = before.since
        self._sized_at = 0.0
        self._forecast = Forecast()
        for bucket in before.buckets:
            self._forecast.add(bucket)
        self._minute = before.minute or int(now) // BUCKET_S * BUCKET_S
        self._buckets = list(before.buckets)

    def look(self, now: float) -> None:
        fleet = ask_fleet(self._run)
        if fleet is None:
            return
        sights = _sights(fleet)
        if self._sizes is not None:
            requests = Requests(fleet["queued"], fleet["queued_tokens"], fleet["open_requests"])
            self._sizes.look(sights, requests, int(now) // BUCKET_S * BUCKET_S)
        if now >= self._minute + 2 * BUCKET_S:
            self._count(now)
        moved, scaled = self._move(sights, fleet["queued_tokens"], now), self._scale(now)
        for decision in (*moved, *scaled):
            log.info("%s", decision)
        if moved or scaled or now - self._word.written_at >= WRITE_S:
            self._write(moved, scaled, now)

    def _move(self, sights: dict[str, list[Sight]], queued_tokens: int, now: float) -> list[Decision]:
        proxy = self._plan.proxy
        able = movable(proxy.workers, proxy.pools, proxy.pairs)
        # Of two lives of a worker the newer.
        movers = {sight.worker: sight for pool in sights.values() for sight in pool if sight.worker in able}
        moves = self._roles.apply(roles.Looked(list(movers.values()), queued_tokens), now)
        done = self._plan.planner == ON
        return [
            Decision(at=now, worker=m.worker, before=m.before, role=m.role, pressure=m.pressure, done=done)
            for m in moves
        ]

    def _scale(self, now: float) -> list[Scaled]:
        """Once the run has served. The first look at a start of the run asks what was wanted, the plan how much may."""
        if self._plan.scaling is None or now - self._sized_at < SIZE_S or not self._run.endpoint.exists():
            return []
        self._sized_at = now
        since = self._run.read_desired().since
        if self._sizes is None or self._sizes.scaling != self._plan.scaling or since != self._since:
            wanted = {} if since != self._since else self._word.wanted
            self._sizes, self._since = Sizes(self._plan, dict(wanted), now), since
        scaled = self._sizes.decide(self._forecast, self._run.read_jobs(), since, now)
        return [msgspec.structs.replace(one, done=self._plan.planner == ON) for one in scaled]

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
            if self._sizes is not None:
                self._sizes.learn(start, bucket.computed * BUCKET_S)
        self._minute = end - BUCKET_S

    def _write(self, moved: list[Decision], scaled: list[Scaled], now: float) -> None:
        sizes = self._sizes
        self._word = Word(
            written_at=now,
            mode=self._plan.planner,
            roles=self._roles.roles,
            pressure=self._roles.pressure,
            demand={kind: dict(ahead) for kind, ahead in self._forecast.ahead().items()},
            drift=self._forecast.drift(),
            decisions=(*self._word.decisions, *moved)[-MAX_DECISIONS:],
            minute=self._minute,
            buckets=tuple(self._buckets),
            since=self._since,
            wanted=self._word.wanted if sizes is None else sizes.wanted,
            gpu_hours=self._word.gpu_hours if sizes is None else sizes.gpu_hours,
            scaled=(*self._word.scaled, *scaled)[-MAX_DECISIONS:],
        )
        write_json(self._run.planner, self._word)


def _sights(fleet: dict[str, Any]) -> dict[str, list[Sight]]:
    """Of workers that take requests, by pool."""
    sights: dict[str, list[Sight]] = {}
    for worker in fleet["workers"]:
        if worker["up"]:
            sights.setdefault(worker["pool"], []).append(msgspec.convert(worker["pressure"], Sight))
    return sights


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
