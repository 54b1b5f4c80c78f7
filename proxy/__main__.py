"""`python -m proxy SPEC`: one proxy process, started by the controller.

Owns the process: keys, sockets, its file in `proxies/`, signals and the orderly end. The file is how
workers and the controller find it; a proxy that starts again takes its old ports where it can.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from pathlib import Path

import msgspec
import uvloop
import zmq

from proxy.app import App
from proxy.auth import ApiKeys
from proxy.dispatch import Dispatch
from proxy.link import CONTROLLER, WORKER
from proxy.serve import Server
from proxy.spec import ProxySpec
from proxy.zap import Zap
from workers.logs import start_logging
from workers.network import address_of
from workers.rendezvous import ProxyFile
from workers.spec import read_spec, write_json
from workers.zmq_loop import read_keys

log = logging.getLogger("sluice.proxy")

KEY_RELOAD_S = 5.0
# Requests make little garbage in cycles: a collection per 700 new objects would only walk what is alive.
GC_THRESHOLD = 50_000
GRACE_S = 10.0


def old_ports(path: Path) -> tuple[int, int]:
    """(links, http) of this proxy's life before; 0: none known."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=ProxyFile)
    except (FileNotFoundError, msgspec.DecodeError):
        return 0, 0
    return int(file.addresses[0].rsplit(":", 1)[1]), int(file.http.rsplit(":", 1)[1])


def tls_context(spec: ProxySpec) -> ssl.SSLContext | None:
    if spec.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(spec.tls_cert, spec.tls_key)
    return context


async def start_http(server: Server, app: App, spec: ProxySpec, address: str, old_port: int) -> None:
    """A configured port is taken or it is an error; an old one is taken if it is free."""
    tls = tls_context(spec)
    try:
        await server.start(address, spec.http_port or old_port, app.handle, app.admit, spec.limits, tls)
    except OSError:
        if spec.http_port or not old_port:
            raise
        await server.start(address, 0, app.handle, app.admit, spec.limits, tls)


async def watch_keys(keys: ApiKeys) -> None:
    while True:
        await asyncio.sleep(KEY_RELOAD_S)
        await asyncio.to_thread(keys.reload_if_changed)


async def main(spec: ProxySpec) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    zap = Zap(context, {read_keys(spec.run_dir, who).public.encode(): who for who in (WORKER, CONTROLLER)})
    zap.start()
    try:
        await serve(spec, context, zap)
    finally:
        zap.stop()
        context.destroy(linger=500)


async def serve(spec: ProxySpec, context: zmq.Context[zmq.Socket[bytes]], zap: Zap) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    run_dir = Path(spec.run_dir)
    path = run_dir / "proxies" / f"{spec.proxy}.json"
    link_port, http_port = await asyncio.to_thread(old_ports, path)
    address = address_of(spec.interface)
    keys = ApiKeys(run_dir / "keys" / "api_keys.json")
    curve = read_keys(spec.run_dir, "proxy")
    server = Server()
    dispatch = Dispatch(spec, context, address, link_port, curve, zap, lambda: server.connections)
    await start_http(server, App(spec, keys, zap, dispatch), spec, address, http_port)
    file = ProxyFile(
        id=spec.proxy,
        addresses=(f"tcp://{address}:{dispatch.links.port}",),
        public_key=curve.public,
        http=f"{'https' if spec.tls_cert else 'http'}://{address}:{server.port}",
        pid=os.getpid(),
    )
    await asyncio.to_thread(write_json, path, file)
    log.info("proxy %s serves %s, links on %s", spec.proxy, file.http, file.addresses[0])
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    watching = asyncio.ensure_future(watch_keys(keys))
    await stop.wait()
    log.info("stopping")
    watching.cancel()
    await server.close(GRACE_S)
    dispatch.close("the proxy stops")
    await asyncio.to_thread(path.unlink, missing_ok=True)


if __name__ == "__main__":
    listener = start_logging("proxy")
    uvloop.run(main(read_spec(Path(sys.argv[1]), ProxySpec)))
    listener.stop()
