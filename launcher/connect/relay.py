"""A local port that leads to wherever the run's endpoint is: bytes go through as they are.

Owns the listening socket and the connections. A new connection goes to the endpoint of its moment, one that is open
stays with its own. Buffers are bounded: whoever reads slowly makes the other side wait. Reads no file and no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from proxy.http.exchange import reset

LOCALHOST = "127.0.0.1"
BUFFER_BYTES = 1 << 16  # per connection and direction
CONNECT_S = 5.0
PATIENCE_S = 20.0  # of a client while the endpoint is being replaced
RETRY_S = 0.2

Address = tuple[str, int]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """`target()` is where the endpoint is now, None: nowhere. `on_reach(works)` hears how each attempt went."""

    def __init__(self, target: Callable[[], Address | None], on_reach: Callable[[bool], None]) -> None:
        self._target = target
        self._on_reach = on_reach
        self._connections: set[asyncio.Task[None]] = set()
        self._num_open: Counter[Address] = Counter()

    async def serve(self, port: int) -> asyncio.Server:
        """Raises OSError where the port is taken."""
        return await asyncio.start_server(self._accepted, LOCALHOST, port, limit=BUFFER_BYTES)

    def num_open(self, target: Address) -> int:
        """Connections that went there and go on."""
        return self._num_open[target]

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect((reader, writer)))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, client: Stream) -> None:
        found = await self._reach()
        if found is None:
            reset(client[1].transport)
            return
        target, server = found
        self._num_open[target] += 1
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(client[0], server[1]))
                both.create_task(_pump(server[0], client[1]))
            server[1].close()
            client[1].close()
        except* OSError:
            pass  # one side has broken off: the other must not take it for an end
        finally:
            self._num_open[target] -= 1
            for _, writer in (server, client):
                if not writer.is_closing():
                    reset(writer.transport)

    async def _reach(self) -> tuple[Address, Stream] | None:
        """Tries on where the endpoint is then: it may be about to be started again."""
        give_up_at = asyncio.get_running_loop().time() + PATIENCE_S
        while asyncio.get_running_loop().time() < give_up_at:
            target = self._target()
            if target is not None:
                server = await reach(target)
                self._on_reach(server is not None)
                if server is not None:
                    return target, server
            await asyncio.sleep(RETRY_S)
        return None


async def reach(target: Address) -> Stream | None:
    """A connection, or None where there is none to be had."""
    try:
        async with asyncio.timeout(CONNECT_S):
            return await asyncio.open_connection(*target, limit=BUFFER_BYTES)
    except (OSError, TimeoutError):
        return None


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(BUFFER_BYTES):
        sink.write(data)
        await sink.drain()
    sink.write_eof()
