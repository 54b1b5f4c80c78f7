"""How a worker finds the proxies of its run."""

import asyncio
import socket
from pathlib import Path

import pytest

from workers.rendezvous import ProxyFile, reachable, read_proxies
from workers.spec import write_json


def proxy_file(id: str) -> ProxyFile:
    return ProxyFile(id, ("tcp://10.0.0.1:5000",), "public", "http://10.0.0.1:8000", 42)


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
