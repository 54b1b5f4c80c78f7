"""What the controller tells people: `status.json` on change and every 10 s, `endpoint.json` once serving.

Owns these two files, and when the diary is written. Writes in threads: a shared file system that hangs delays the news,
never the run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import msgspec

from launcher.control.diary import Diary
from launcher.control.ownership import forget, is_owner
from launcher.control.proxy_links import ProxyLinks
from launcher.control.reconcile import Reconciler
from launcher.job import Plan
from launcher.keys import api_key_file
from launcher.rundir import Endpoint, Owner, RunDir
from launcher.view.run_status import ControllerEnd, RunStatus
from launcher.view.status import run_status
from workers.spec import write_json

log = logging.getLogger("sluice.reporter")

LOOK_EVERY_S = 0.5
WRITE_EVERY_S = 10.0


class Reporter:
    """Reads what the core and the links know at the moment of writing."""

    def __init__(
        self, run: RunDir, plan: Plan, owner: Owner, core: Reconciler, proxies: ProxyLinks, diary: Diary
    ) -> None:
        self._run = run
        self._diary = diary
        self.plan = plan  # of the newest revision
        self.queue_fault = ""
        self.end: ControllerEnd | None = None
        self._owner = owner
        self._core = core
        self._proxies = proxies

    async def run(self) -> None:
        """Returns when another controller has taken the run over."""
        last: RunStatus | None = None
        endpoint = ""
        while True:
            status = self._status()
            if last is None or _changed(last, status) or status.written_at - last.written_at >= WRITE_EVERY_S:
                if await self._is_over():
                    return
                await _write(self._run.status, status)
                await self._write_diary()
                last = status
            if status.served and status.url and status.url != endpoint:
                endpoint = status.url
                await _write(self._run.endpoint, self.endpoint(endpoint))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _is_over(self) -> bool:
        """Whether the run is another controller's. Where that cannot be read it is as it was."""
        try:
            return not await asyncio.to_thread(is_owner, self._run, self._owner)
        except OSError as fault:
            log.error("%s: %s; looking again", self._run.owner, fault)
            return False

    async def _write_diary(self) -> None:
        try:
            await asyncio.to_thread(self._diary.write, self._diary.content())
        except OSError as fault:
            log.error("the diary is not written, the next time says it all: %s", fault)

    async def last_words(self) -> None:
        await self._write_diary()
        if await asyncio.to_thread(is_owner, self._run, self._owner):
            await _write(self._run.status, self._status())
            await asyncio.to_thread(forget, self._run, self._owner)

    def _status(self) -> RunStatus:
        url = f"{self._proxies.http}/v1" if self._proxies.http else ""
        status = run_status(self.plan, self._core, self._owner.id, url, time.time())
        return msgspec.structs.replace(status, queue_fault=self.queue_fault, controller_end=self.end)

    def endpoint(self, url: str) -> Endpoint:
        return Endpoint(url=url, api_key_file=str(api_key_file(self._run.keys)), models=self.plan.proxy.models)


async def _write(path: Path, value: object) -> None:
    try:
        await asyncio.to_thread(write_json, path, value)
    except OSError as fault:
        log.error("cannot write %s: %s", path, fault)


def _changed(old: RunStatus, new: RunStatus) -> bool:
    return msgspec.structs.replace(old, written_at=0.0) != msgspec.structs.replace(new, written_at=0.0)
