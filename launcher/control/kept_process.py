"""Keeps processes running beside the controller: the proxy, and the one for OpenAI's batches.

Owns the child. Same spec and id at every start, so the proxy takes its old port and file where it can.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("sluice.kept_process")

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 30.0
STEADY_S = 60.0
END_TIMEOUT_S = 15.0


class KeptProcess:
    """A Python module with one argument. `on_death(reason, count)`: it ended by itself, the `count`th time in a row."""

    def __init__(self, module: str, argument: Path, log_file: Path, on_death: Callable[[str, int], None]) -> None:
        self._module, self._argument = module, argument
        self._log_file = log_file
        self._on_death = on_death

    async def run(self) -> None:
        """Until cancelled; then the process is ended too."""
        loop = asyncio.get_running_loop()
        deaths, delay_s = 0, FIRST_DELAY_S
        while True:
            started_at = loop.time()
            code = await self._one_life()
            if loop.time() - started_at > STEADY_S:
                deaths, delay_s = 0, FIRST_DELAY_S
            deaths += 1
            log.error("%s ended by itself with status %s; see %s", self._module, code, self._log_file)
            self._on_death(f"{self._module} ended with status {code}", deaths)
            await asyncio.sleep(delay_s)
            delay_s = min(LAST_DELAY_S, 2 * delay_s)

    async def _one_life(self) -> int:
        with self._log_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                str(self._argument),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        log.info("%s started: process %d", self._module, process.pid)
        try:
            return await process.wait()
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        log.warning("it did not end within %.0f s: killed", END_TIMEOUT_S)
        process.kill()
        await process.wait()
