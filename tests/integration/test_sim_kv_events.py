"""The simulated engine's KV events in the hands of a listener made for vLLM: its decoder, its replay protocol."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import zmq

from tests.sim_engine import engine, metric, new_call, post, prefilled, run, ticket_of
from workers.engines import Engine
from workers.engines.sim.tokenizer import encode
from workers.protocol import Leg

pytestmark = [pytest.mark.vllm]

BLOCK_SIZE = 4
RECEIVE_TIMEOUT_MS = 30_000


def vllm_kv_events() -> Any:
    """Imported late: it takes seconds and brings torch along, whose own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("vllm.distributed.kv_events")


class Listener:
    """It hears what is sent from now on, and asks for what it has missed."""

    def __init__(self, context: zmq.Context[Any], local_dir: str) -> None:
        kv_events = vllm_kv_events()
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kv_events.KVEventBatch).decode
        self._end = kv_events.ZmqEventPublisher.END_SEQ
        self._sub: zmq.Socket[bytes] = context.socket(zmq.SUB)
        self._sub.subscribe(b"")
        self._sub.connect(f"ipc://{local_dir}/kv-events")
        self._ask: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self._ask.connect(f"ipc://{local_dir}/kv-replay")
        for socket in (self._sub, self._ask):
            socket.setsockopt(zmq.RCVTIMEO, RECEIVE_TIMEOUT_MS)

    @property
    def hears(self) -> bool:
        return bool(self._sub.poll(20))

    def heard(self, last: int) -> dict[int, Any]:
        """The batches up to number `last`, which was sent."""
        batches: dict[int, Any] = {}
        while last not in batches:
            batches |= [self._batch(self._sub.recv_multipart())]
        return batches

    async def replay(self, first: int) -> dict[int, Any]:
        return await asyncio.to_thread(self._replay, first)

    def _replay(self, first: int) -> dict[int, Any]:
        self._ask.send_multipart([b"", first.to_bytes(8, "big")])
        answers = []
        while (frames := self._ask.recv_multipart())[2] != self._end:
            answers.append(self._batch(frames[1:]))
        assert frames == [b"", b"", self._end, b""]
        return dict(answers)

    def _batch(self, frames: list[bytes]) -> tuple[int, Any]:
        topic, sequence, payload = frames
        assert (topic, len(sequence)) == (b"", 8)
        batch = self._decode(payload)
        assert (batch.data_parallel_rank, bool(batch.events)) == (0, True)
        return int.from_bytes(sequence, "big"), batch


class Index:
    """What a listener makes of the events: where each cached prefix ends."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}  # by the hash of its last block: all of it
        self.removed: set[int] = set()

    def apply(self, batches: dict[int, Any]) -> None:
        assert list(batches) == list(range(len(batches)))
        for event in itertools.chain.from_iterable(batch.events for batch in batches.values()):
            assert event.medium == "GPU"
            if type(event).__name__ == "BlockStored":
                self._store(event)
            else:
                assert type(event).__name__ == "BlockRemoved"
                for key in event.block_hashes:
                    del self.tokens[key]
                self.removed.update(event.block_hashes)

    def _store(self, event: Any) -> None:
        assert (event.block_size, event.lora_id, event.lora_name) == (BLOCK_SIZE, None, None)
        assert len(event.token_ids) == BLOCK_SIZE * len(event.block_hashes)
        prefix = [] if event.parent_block_hash is None else self.tokens[event.parent_block_hash]
        for position, key in enumerate(event.block_hashes):
            prefix = [*prefix, *event.token_ids[position * BLOCK_SIZE :][:BLOCK_SIZE]]
            self.tokens[key] = prefix

    def longest(self, prompt: list[int]) -> int:
        return max((len(found) for found in self.tokens.values() if found == prompt[: len(found)]), default=0)


@pytest.fixture
def local_dir() -> Iterator[str]:
    with TemporaryDirectory(prefix="sluice-") as path:
        yield path


def scenario(local_dir: str, test: Callable[[Engine, Listener], Any], **args: Any) -> None:
    async def body() -> None:
        async with engine(local_dir=local_dir, **args) as sim:
            with zmq.Context() as context:
                listener = Listener(context, local_dir)
                try:
                    await test(sim, listener)
                finally:
                    context.destroy(linger=0)

    run(body)


def prompt_of(number: int) -> str:
    return f"{number:04d} is where this prompt begins and then it goes on and on" + " and on" * 20


def full(prompt: str) -> int:
    return len(encode(prompt)) // BLOCK_SIZE * BLOCK_SIZE


def test_stored_blocks_chain_to_the_tokens_of_the_prompts(local_dir: str) -> None:
    async def test(sim: Engine, listener: Listener) -> None:
        for number in (1, 2, 1):
            await post(sim, prompt=prompt_of(number))
        index = Index()
        index.apply(await listener.replay(0))
        for number in (1, 2):
            assert index.longest(encode(prompt_of(number))) == full(prompt_of(number))
        assert not index.removed

    scenario(local_dir, test)


def test_evicted_blocks_are_told_of(local_dir: str) -> None:
    async def test(sim: Engine, listener: Listener) -> None:
        for number in range(5):
            await post(sim, prompt=prompt_of(number))
        index = Index()
        index.apply(await listener.replay(0))
        assert index.longest(encode(prompt_of(4))) == full(prompt_of(4))
        assert index.longest(encode(prompt_of(0))) == 0
        assert index.removed
        assert len(index.tokens) <= 40

    scenario(local_dir, test, num_blocks=40, max_model_len=160)


def test_what_is_missed_can_be_replayed(local_dir: str) -> None:
    async def test(sim: Engine, listener: Listener) -> None:
        assert await listener.replay(0) == {}
        numbers = itertools.count()
        while not listener.hears:  # what is published before the subscription has arrived is lost
            await post(sim, prompt=prompt_of(next(numbers)))
        await post(sim, prompt=prompt_of(next(numbers)))
        everything = await listener.replay(0)
        heard = listener.heard(max(everything))
        assert heard == {number: everything[number] for number in heard}
        first = min(heard)
        assert list(heard) == list(range(first, len(everything)))
        assert await listener.replay(first) == heard

    scenario(local_dir, test)


def test_both_sides_of_a_hand_over_tell_the_same_blocks(local_dir: str) -> None:
    async def test(holder: Engine, listener: Listener) -> None:
        with TemporaryDirectory(prefix="sluice-") as other_dir, zmq.Context() as context:
            async with engine(local_dir=other_dir) as decoder:
                reader = Listener(context, other_dir)
                await post(decoder, call=new_call(Leg.DECODE, ticket_of(await prefilled(holder))), max_tokens=1)
                assert await metric(decoder, "vllm:external_prefix_cache_hits_total") > 0
                ours, theirs = Index(), Index()
                ours.apply(await listener.replay(0))
                theirs.apply(await reader.replay(0))
                assert ours.tokens == theirs.tokens != {}
            context.destroy(linger=0)

    scenario(local_dir, test)


def test_a_folder_with_a_long_path_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(zmq.ZMQError, match="longer than 107"):
            async with engine(local_dir=str(tmp_path / ("x" * 100))):
                pass

    run(test)
