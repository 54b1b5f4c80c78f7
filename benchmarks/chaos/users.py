"""Users of a run who never stop asking, while things happen to it.

Owns the clients, in a thread of their own, and what they saw: when each stream's data came, and its text. Judges
nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Self

import httpx
import msgspec
import uvloop

from benchmarks.load import CUT, BadAnswer, Client, Endpoint, ask
from launcher.rundir import Endpoint as RunEndpoint

ANSWER_TIMEOUT_S = 120.0
PAUSE_S = 0.05  # before a user asks again where the endpoint did not answer
EVENT = b"data: {"


class Stream(msgspec.Struct, kw_only=True):
    """One answer, by `perf_counter`. `arrivals`: of each piece of its body."""

    prompt: int
    asked_at: float
    arrivals: list[float] = []
    text: str = ""
    fault: str = ""
    ended_at: float = 0.0

    @property
    def began(self) -> bool:
        return bool(self.arrivals)

    @property
    def was_cut(self) -> bool:
        return self.fault.startswith(CUT)


class Users:
    """`endpoint_file`: read anew for each question, as a client does that follows a run."""

    def __init__(self, endpoint_file: Path, number: int, num_tokens: int, prompts: list[str]) -> None:
        self.streams: list[Stream] = []  # that have ended
        self._endpoint_file = endpoint_file
        self._number = number
        self._num_tokens = num_tokens
        self._prompts = prompts
        self._enough = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._all()), name="users")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """What is open is read to its end."""
        self._enough.set()
        self._thread.join()

    def all_have_asked(self) -> bool:
        return len({stream.prompt for stream in list(self.streams)}) == len(self._prompts)

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for user in range(self._number):
                tasks.create_task(self._one(user))

    async def _one(self, user: int) -> None:
        number = user
        while not self._enough.is_set():
            stream = Stream(prompt=number % len(self._prompts), asked_at=time.perf_counter())
            await self._ask(stream)
            stream.ended_at = time.perf_counter()
            self.streams.append(stream)
            if stream.fault:
                await asyncio.sleep(PAUSE_S)
            number += self._number

    async def _ask(self, stream: Stream) -> None:
        endpoint = read_endpoint(self._endpoint_file)
        question = ask(endpoint, self._prompts[stream.prompt], self._num_tokens)
        try:
            _, client = await asyncio.get_running_loop().create_connection(Client, endpoint.host, endpoint.port)
        except OSError as fault:
            stream.fault = f"no connection: {fault}"
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await client.ask(question.data)
            stream.fault = fault_of(answer)
            stream.text = text_of(answer)
        except (BadAnswer, TimeoutError) as fault:
            stream.fault = str(fault) or f"no whole answer within {ANSWER_TIMEOUT_S:.0f} s"
        finally:
            stream.arrivals = client.arrivals
            client.close()


def read_endpoint(file: Path) -> Endpoint:
    found = msgspec.json.decode(file.read_bytes(), type=RunEndpoint)
    url = httpx.URL(found.url)
    assert url.port is not None
    key = Path(found.api_key_file).read_text()
    return Endpoint(host=url.host, port=url.port, model=found.models[0], key=key)


def fault_of(answer: bytes) -> str:
    if not answer.startswith(b"HTTP/1.1 200 "):
        return answer[:300].decode(errors="replace")
    whole = b"data: [DONE]" in answer and b'"error"' not in answer
    return "" if whole else "broken off: " + answer[-300:].decode(errors="replace")


def text_of(answer: bytes) -> str:
    events = (line[len(b"data: ") :] for line in answer.splitlines() if line.startswith(EVENT))
    return "".join(choice["text"] for event in events for choice in msgspec.json.decode(event)["choices"])
