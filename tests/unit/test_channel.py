"""The channel between a process and its child, with the words of an agent and its engine process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from workers.agent.channel import (
    ENGINE_WORDS,
    LENGTH_BYTES,
    Broken,
    Channel,
    ChannelMessage,
    EngineChannel,
    Finish,
    Idle,
    Ready,
)


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[EngineChannel, EngineChannel]]:
    ours, theirs = [await Channel.over(end, ENGINE_WORDS) for end in socket.socketpair()]
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


async def heard(channel: EngineChannel) -> list[ChannelMessage]:
    return [message async for message in channel.messages()]


def test_messages_pass_both_ways_in_order_until_the_other_end_closes() -> None:
    async def scenario() -> None:
        async with channels() as (agent, engine):
            said: list[ChannelMessage] = [Ready(), Idle(), Broken('two\nlines and a "quote"')]
            for message in said:
                engine.say(message)
            agent.say(Finish(2.5))
            assert await anext(engine.messages()) == Finish(2.5)
            engine.close()
            assert await heard(agent) == said

    asyncio.run(scenario())


def test_an_end_that_left_words_unread_is_an_end_all_the_same() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        agent = await Channel.over(ours, ENGINE_WORDS)
        agent.say(Finish(2.5))
        theirs.close()
        assert await heard(agent) == []
        agent.close()

    asyncio.run(scenario())


def test_half_a_message_is_none() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        agent = await Channel.over(ours, ENGINE_WORDS)
        idle, broken = (msgspec.msgpack.encode(message) for message in (Idle(), Broken("out of memory")))
        for data, kept in ((idle, len(idle)), (broken, 9)):
            theirs.send(len(data).to_bytes(LENGTH_BYTES) + data[:kept])
        theirs.close()
        assert await heard(agent) == [Idle()]
        agent.close()

    asyncio.run(scenario())


def test_saying_something_to_a_peer_that_has_gone_is_no_error() -> None:
    async def scenario() -> None:
        async with channels() as (agent, engine):
            engine.close()
            assert await heard(agent) == []
            for _ in range(3):
                agent.say(Finish(2.5))
                await asyncio.sleep(0)
            agent.close()
            agent.say(Finish(2.5))

    asyncio.run(scenario())
