"""How a worker finds the proxies of its run."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.unit.proxies import register
from workers.links import rendezvous
from workers.links.link import Link
from workers.links.proxy_file import ProxyFile, read_proxies
from workers.links.rendezvous import Rendezvous, reachable
from workers.links.wire import decode_to_worker
from workers.links.zmq_loop import CurveKeys
from workers.protocol import Part, Registered
from workers.spec import write_json

PATIENCE_S = 20.0
KEYS = CurveKeys(*(key.decode() for key in zmq.curve_keypair()))


def proxy_file(id: str, *addresses: str) -> ProxyFile:
    return ProxyFile(id, addresses or ("tcp://10.0.0.1:5000",), KEYS.public, "http://10.0.0.1:8000", 42)


def test_what_is_not_a_whole_file_is_a_proxy_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / "p0.json", proxy_file("p0"))
    write_json(tmp_path / "p3.json", proxy_file("p3"))
    (tmp_path / "p1.json").write_bytes((tmp_path / "p0.json").read_bytes()[:40])
    (tmp_path / "p2.json").write_text('{"id": "p2", "of": "another version"}')
    (tmp_path / "p4.json").symlink_to(tmp_path / "gone")
    (tmp_path / ".p5.json.77").write_text("being written")
    assert read_proxies(tmp_path) == [proxy_file("p0"), proxy_file("p3")]
    for name in ("p1", "p2", "p4"):
        assert f"skipping {name}.json" in caplog.text


def test_no_folder_yet_is_no_proxy(tmp_path: Path) -> None:
    assert read_proxies(tmp_path / "proxies") == []


def endpoint(listener: socket.socket) -> str:
    return "tcp://{}:{}".format(*listener.getsockname())


def test_the_first_address_that_answers_is_taken() -> None:
    with (
        socket.socket() as silent,
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        silent.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        addresses = (endpoint(silent), endpoint(first), endpoint(second))
        assert asyncio.run(reachable(addresses)) == endpoint(first)
        assert asyncio.run(reachable(addresses[:1])) is None
        assert asyncio.run(reachable(())) is None


# ---------------------------------------------------------------- keeping links


@pytest.fixture
def listening() -> Iterator[Callable[[str], ProxyFile]]:
    """listening(id): a process that takes connections, and says nothing on them."""
    with contextlib.ExitStack() as stack:

        def listen(id: str) -> ProxyFile:
            return proxy_file(id, endpoint(stack.enter_context(socket.create_server(("127.0.0.1", 0)))))

        yield listen


@contextlib.asynccontextmanager
async def meeting(folder: Path) -> AsyncIterator[Rendezvous]:
    context: zmq.Context[Any] = zmq.Context()
    hello = register("decode-0", Part.AGENT)

    def open_link(proxy: ProxyFile, endpoint: str, lost: Callable[[str, bool], None]) -> Link:
        return Link(
            context,
            endpoint,
            identity=proxy.id.encode(),
            server_public=proxy.public_key,
            keys=KEYS,
            hello=hello,
            decode=decode_to_worker,
            on_message=lambda message: None,
            on_lost=lost,
            silence_s=PATIENCE_S,
        )

    met = Rendezvous(folder, open_link)
    running = asyncio.ensure_future(met.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield met
    finally:
        running.cancel()
        met.close("done")
        context.destroy(linger=0)


async def linked(met: Rendezvous, *proxies: str) -> None:
    while set(met.links) != set(proxies):  # noqa: ASYNC110 (it has no event for its tests)
        await asyncio.sleep(0.01)


def test_one_process_tells_of_the_others_and_the_folder_is_not_read(
    tmp_path: Path, listening: Callable[[str], ProxyFile]
) -> None:
    async def test() -> None:
        a, b, c = (listening(id) for id in "abc")
        write_json(tmp_path / "a.json", a)
        async with meeting(tmp_path) as met:
            await linked(met, "a")
            write_json(tmp_path / "c.json", c)
            met.heard("a", Registered("a", 1, (a, b)))
            await linked(met, "a", "b")
            met.heard("a", Registered("a", 1, (a, b), ended=("b",)))  # as it is not: it answers
            await linked(met, "a")
            await linked(met, "a", "b")  # while it is named, its link is opened anew

    asyncio.run(test())


def test_one_that_does_not_name_itself_is_on_its_way_out(
    tmp_path: Path, listening: Callable[[str], ProxyFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "FIRST_DELAY_S", 0.05)

    async def test() -> None:
        a, b = (listening(id) for id in "ab")
        write_json(tmp_path / "a.json", a)
        async with meeting(tmp_path) as met:
            await linked(met, "a")
            met.heard("a", Registered("a", 1, ()))
            write_json(tmp_path / "b.json", b)
            await linked(met, "a", "b")  # looked for, while the old link is kept

    asyncio.run(test())
