"""The engine process as its agent sees it: its words, its output, its end."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from tests.live import SOURCE, wait_for
from workers.agent.channel import LENGTH_BYTES, Broken, ChannelMessage, Ready
from workers.agent.engine_child import lines_of, started

LIMIT = 8


def lines(data: bytes, limit: int = LIMIT) -> list[str]:
    async def scenario() -> list[str]:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        return [line async for line in lines_of(stream, limit)]

    return asyncio.run(scenario())


def test_lines_come_without_their_ends_and_the_last_needs_none() -> None:
    assert lines(b"one\n\ntwo\nthree") == ["one", "", "two", "three"]
    assert lines(b"one\n") == ["one"]
    assert lines(b"") == []


def test_an_endless_line_is_cut() -> None:
    pieces = lines(b"x" * 100 + b"\nend\n")
    assert "".join(pieces) == "x" * 100 + "end" and pieces[-1] == "end"
    assert all(0 < len(piece) <= 2 * LIMIT for piece in pieces)


def test_what_is_no_text_is_no_error() -> None:
    assert lines(b"caf\xc3\xa9 \xff\n", 64) == ["café \N{REPLACEMENT CHARACTER}"]


@given(st.lists(st.text("ab", max_size=LIMIT - 1), max_size=20))
def test_short_lines_come_as_they_are_however_they_arrive(told: list[str]) -> None:
    assert lines("".join(f"{line}\n" for line in told).encode()) == told


def said(message: ChannelMessage) -> str:
    """As a shell would write it on the channel."""
    data = msgspec.msgpack.encode(message)
    return f"{{ echo {base64.b64encode(len(data).to_bytes(LENGTH_BYTES) + data).decode()} | base64 -d; }} >&0"


def test_its_words_its_output_and_an_end_that_leaves_nothing_of_its_group() -> None:
    """The sleep holds the output's pipe: this could not return while it lives. On the agent's own loop."""

    async def scenario() -> list[str]:
        words = f"{said(Ready())}; {said(Broken('no memory'))}"
        script = f"sleep 1000 & echo loading; {words}; echo $WORD; cat"
        async with started(["sh", "-c", script], {"WORD": "from the environment"}) as child:
            assert await child.word() == Ready()
            assert await child.word() == Broken("no memory")
        return list(child.tail)

    assert uvloop.run(scenario()) == ["loading", "from the environment"]


def test_a_process_that_ends_by_itself_is_told() -> None:
    async def scenario() -> None:
        async with started(["sh", "-c", "exit 3"], {}) as child:
            assert await child.word() is None

    uvloop.run(scenario())


AGENT = """
import asyncio
from workers.agent.engine_child import started

async def agent():
    async with started(["sh", "-c", "sleep 1000 & sleep 1000 & echo $$; exec sleep 1000"], {}, print_now):
        await asyncio.Event().wait()

def print_now(line):
    print(line, flush=True)

asyncio.run(agent())
"""


def test_nothing_stays_where_agent_and_engine_process_are_killed_at_once() -> None:
    """The agent stands still first, so that it cannot see its child die."""
    agent = subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True, cwd=SOURCE)
    with agent:
        assert agent.stdout is not None
        group = int(agent.stdout.readline())
        assert len(members(group)) == 4, "the child, its two children, the guard"
        for pid, number in ((agent.pid, signal.SIGSTOP), (group, signal.SIGKILL), (agent.pid, signal.SIGKILL)):
            os.kill(pid, number)
        agent.wait()
        wait_for(lambda: not members(group), "the group to end", 60.0)


def members(group: int) -> list[str]:
    """The processes of a group that live."""
    stats = [text.rpartition(")")[2].split() for text in map(stat, Path("/proc").glob("[0-9]*")) if text]
    return [state for state, _, of, *_ in stats if int(of) == group and state != "Z"]


def stat(process: Path) -> str:
    try:
        return (process / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
