"""`python -m launcher.batch.service RUN_DIR`: the run's process for OpenAI's batches, a child of the controller.

Owns the process: its port on this node, known to the proxy by `keys/batch_service.json`, and its end. What was under
way goes on when it is started again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import uvloop

from launcher.batch.run_view import RunView
from launcher.batch.service.http import Api
from launcher.batch.service.shelf import Shelf
from launcher.batch.service.working import Working
from launcher.rundir import RunDir
from proxy.forward import ServiceAddress, address_file
from proxy.http.listening import open_listeners
from proxy.http.serve import Server
from workers.logs import start_logging
from workers.spec import write_json

STOP_GRACE_S = 2.0
PARENT_LOOK_S = 1.0  # without its controller it ends: the next one starts its own
IDLE_S = 3600.0  # the proxy keeps no connection


async def main(run: RunDir) -> None:
    plan = run.read_plan()
    address = ServiceAddress(port=0, secret=secrets.token_urlsafe(32))
    shelf = Shelf(run.path / "batches")
    working = Working(shelf, plan, RunView(run, plan, time.time()))
    api = Api(shelf, working, address.secret)
    server = Server()
    server.start(api.handle, api.admit, msgspec.structs.replace(plan.proxy.limits, idle_timeout_s=IDLE_S))
    (listener,) = open_listeners("127.0.0.1", 0, 1)
    await server.accept_on({0: listener})
    write_json(address_file(run.path), msgspec.structs.replace(address, port=listener.getsockname()[1]))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    controller = os.getppid()
    while not stopped.is_set() and os.getppid() == controller:
        with suppress(TimeoutError):
            async with asyncio.timeout(PARENT_LOOK_S):
                await stopped.wait()
    working.close()
    listener.close()
    await server.close(STOP_GRACE_S)


if __name__ == "__main__":
    output = start_logging("batches")
    uvloop.run(main(RunDir(Path(sys.argv[1]))))
    output.stop()
