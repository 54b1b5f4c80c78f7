"""The allow-list before real sockets: who gets in, who does not, and how that is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

import pytest
import zmq

from proxy.zap import Zap
from tests.unit.http_clients import eventually, run

SERVER, WORKER, CONTROLLER, STRANGER = (zmq.curve_keypair() for _ in range(4))
Socket = zmq.Socket[bytes]


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Zap, Socket, str]]:
    """A protected ROUTER, its handler and its address; everything is gone afterwards."""
    with zmq.Context() as context:
        zap = Zap(context, {WORKER[0]: "worker", CONTROLLER[0]: "controller"})
        zap.start()
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        zap.protect(router, *SERVER)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        try:
            yield zap, router, f"tcp://127.0.0.1:{port}"
        finally:
            zap.stop()
            router.close()


@contextlib.contextmanager
def knocking(context: zmq.Context[Socket], address: str, **options: bytes) -> Iterator[Socket]:
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    for name, value in options.items():
        setattr(dealer, name, value)
    dealer.connect(address)
    dealer.send(b"hello")
    try:
        yield dealer
    finally:
        dealer.close()


def curve(keys: tuple[bytes, bytes], server: bytes = SERVER[0]) -> dict[str, bytes]:
    return {"curve_serverkey": server, "curve_publickey": keys[0], "curve_secretkey": keys[1]}


async def heard(router: Socket) -> zmq.Frame:
    await eventually(lambda: bool(router.poll(0)))
    return router.recv_multipart(copy=False)[-1]


@pytest.mark.parametrize(("keys", "role"), [(WORKER, "worker"), (CONTROLLER, "controller")])
def test_a_listed_key_gets_in_and_each_message_tells_its_role(keys: tuple[bytes, bytes], role: str) -> None:
    async def test() -> None:
        with guarded() as (zap, router, address), zmq.Context() as theirs:
            with knocking(theirs, address, **curve(keys)) as dealer:
                frame = await heard(router)
                assert (frame.bytes, frame.get("User-Id")) == (b"hello", role)
                dealer.send(b"again")
                assert (await heard(router)).get("User-Id") == role
            assert zap.refusals == () and zap.num_refused == 0

    run(test)


STRANGERS = {
    "unknown key": (curve(STRANGER), f"127.0.0.1: key {STRANGER[0][:8].decode()}"),
    "another server's key": (curve(WORKER, STRANGER[0]), "another server key"),
}
KEYLESS = {"no key": {}, "password": {"plain_username": b"worker", "plain_password": b"x"}}


async def honest_is_heard_alone(router: Socket, address: str) -> None:
    """A worker is served while strangers knock, and nothing of theirs is heard."""
    with zmq.Context() as context, knocking(context, address, **curve(WORKER)):
        assert (await heard(router)).get("User-Id") == "worker"
    assert not router.poll(0)


@pytest.mark.parametrize(("options", "reason"), STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_s_key_is_refused_with_a_visible_reason(
    options: dict[str, bytes], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        with guarded() as (zap, router, address), zmq.Context() as theirs, knocking(theirs, address, **options):
            await eventually(lambda: bool(zap.refusals))
            assert reason in zap.refusals[0]
            await honest_is_heard_alone(router, address)

    with caplog.at_level(logging.WARNING):
        run(test)
    assert len([record for record in caplog.records if reason in record.getMessage()]) == 1


@pytest.mark.parametrize("options", KEYLESS.values(), ids=KEYLESS.keys())
def test_a_peer_without_curve_never_gets_in(options: dict[str, bytes]) -> None:
    async def test() -> None:
        with guarded() as (_, router, address), zmq.Context() as theirs, knocking(theirs, address, **options):
            await honest_is_heard_alone(router, address)

    run(test)


@pytest.mark.parametrize("mechanism", [b"NULL", b"PLAIN"])
def test_a_peer_without_curve_is_told_by_name(mechanism: bytes) -> None:
    """By hand, since libzmq's own client may see the mismatch first and hang up."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)

    async def test() -> None:
        with guarded() as (zap, _, address):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
            writer.write(greeting)
            await eventually(lambda: bool(zap.refusals))
            assert "without CURVE" in zap.refusals[0] and zap.num_refused == 1
            assert len(await reader.read()) <= len(greeting)  # the server's greeting, then the end
            writer.close()
            await writer.wait_closed()

    run(test)


def test_a_stranger_that_knocks_again_is_counted_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        with guarded() as (zap, _, address), zmq.Context() as theirs:
            for number in range(1, 4):
                with knocking(theirs, address, **curve(STRANGER)):
                    await eventually(lambda least=number: zap.num_refused >= least)  # type: ignore[misc]
            assert len(zap.refusals) == 1 and "times)" in zap.refusals[0]

    with caplog.at_level(logging.WARNING):
        run(test)
    assert len(caplog.records) == 1


def test_without_a_handler_nobody_gets_in() -> None:
    async def test() -> None:
        with zmq.Context() as context, zmq.Context() as theirs:
            router = context.socket(zmq.ROUTER)
            router.linger = 0
            zap = Zap(context, {WORKER[0]: "worker"})  # never started
            zap.protect(router, *SERVER)
            port = router.bind_to_random_port("tcp://127.0.0.1")
            with knocking(theirs, f"tcp://127.0.0.1:{port}", **curve(WORKER)):
                await asyncio.sleep(0.3)
                assert not router.poll(0)
            zap.stop()
            router.close()

    run(test)
