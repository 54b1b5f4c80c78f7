"""The same replay through a real proxy and real workers: every request at its time, its answer read to the end.

Owns the requests' bytes and the clock's scale. The engines are the simulator's, `speed` times as fast as the card.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from benchmarks.load import PATH, Ask, Client, Endpoint, check
from benchmarks.processes import fleet
from benchmarks.routing.options import Options
from launcher.twin.card import Card
from launcher.twin.records import Record
from launcher.twin.setup import MAX_MODEL_LEN, MODEL
from launcher.twin.traces import Request
from workers.spec import EngineSpec, HandoffSpec

FIRST_TOKEN_ID = 256  # of the simulator's tokens of one byte
PATIENCE_S = 600.0
START_S = 0.5  # for all requests to be waiting for their time


def engine_spec(card: Card, speed: float) -> EngineSpec:
    return EngineSpec(
        kind="sim",
        device="cpu",
        version=None,
        model_path=MODEL,
        served_names=(MODEL,),
        max_model_len=MAX_MODEL_LEN,
        block_size=card.block_size,
        tensor_parallel=1,
        pipeline_parallel=1,
        args=card.sim_args(speed),
        environment={},
        prefix=(),
        handoff=HandoffSpec(connector="NixlConnector", buffer_device="cpu", lease_s=card.lease_s, redeem_s=30.0),
    )


def token_ids(request: Request, number: int, block_size: int) -> list[int]:
    """Equal blocks have equal tokens; what follows the last full block is the request's own."""
    filler = bytes(block_size - 8)
    data = b"".join(block.to_bytes(8, "little") + filler for block in request.chain)
    own = number.to_bytes(8, "little") + filler
    return [FIRST_TOKEN_ID + byte for byte in data + own[: request.num_prompt - len(data)]]


def request_bytes(endpoint: Endpoint, request: Request, number: int, block_size: int, **more: bool) -> bytes:
    """`more` fields of the body, as they are."""
    fields = {
        "model": endpoint.model,
        "prompt": token_ids(request, number, block_size),
        "max_tokens": request.num_output,
        "temperature": 0,
        "stream": True,
        **more,
    }
    body = msgspec.json.encode(fields)
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {endpoint.host}\r\nauthorization: Bearer {endpoint.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask(endpoint: Endpoint, request: Request, number: int, block_size: int) -> Ask:
    data = request_bytes(endpoint, request, number, block_size)
    return Ask(data, request.num_output, request.num_output, streams=True)


async def _one(endpoint: Endpoint, asked: Ask, record: Record, start_s: float, speed: float) -> None:
    """Times count from when it was sent, not from when it was due: a busy client is not the proxy's fault."""
    request = record.request
    await asyncio.sleep(start_s + request.at_s / speed - time.perf_counter())
    _, client = await asyncio.get_running_loop().create_connection(Client, endpoint.host, endpoint.port)
    try:
        sent_s = time.perf_counter()
        async with asyncio.timeout(PATIENCE_S):
            check(asked, await client.ask(asked.data))
        record.first_s = request.at_s + (client.arrivals[0] - sent_s) * speed
        record.end_s = request.at_s + (client.arrivals[-1] - sent_s) * speed
    finally:
        client.close()


async def _all(endpoint: Endpoint, asks: Sequence[Ask], records: Sequence[Record], speed: float) -> None:
    start_s = time.perf_counter() + START_S
    async with asyncio.TaskGroup() as tasks:
        for asked, record in zip(asks, records, strict=True):
            tasks.create_task(_one(endpoint, asked, record, start_s, speed))


def replay_live(options: Options, policy: str, requests: Sequence[Request]) -> list[Record]:
    """Of which worker did what, only the answers' times are known."""
    setup, card, speed = options.setup(policy), options.card, options.live_speed
    records = [Record(request) for request in requests]
    with (
        tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder,
        fleet(Path(folder) / "run", setup.workers, engine_spec(card, speed), routing=setup.routing) as running,
    ):
        asks = [ask(running.endpoint, request, number, card.block_size) for number, request in enumerate(requests)]
        uvloop.run(_all(running.endpoint, asks, records, speed))
    return records


def compare(options: Options, policy: str, requests: Sequence[Request]) -> dict[str, float]:
    """Mean times of both, and the live one's to the virtual one's. In a short slice the means depend on a few requests
    that went to another worker: so also the median of each request's own ratio.
    """
    live, virtual = replay_live(options, policy, requests), options.replay(policy, requests).run().records
    figures = {}
    for name, records in (("live", live), ("virtual", virtual)):
        figures[f"{name}.ttft_mean_s"] = statistics.fmean(record.ttft_s for record in records)
        figures[f"{name}.itl_mean_ms"] = 1e3 * statistics.fmean(record.itl_s or 0.0 for record in records)
    for name in ("ttft_mean_s", "itl_mean_ms"):
        figures[f"live_to_virtual.{name}"] = figures[f"live.{name}"] / figures[f"virtual.{name}"]
    each = [one.ttft_s / other.ttft_s for one, other in zip(live, virtual, strict=True)]
    figures["live_to_virtual.ttft_median_of_ratios"] = statistics.median(each)
    return figures
