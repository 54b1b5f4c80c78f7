"""An engine's events over real sockets into an index, which is the engine's cache whatever was lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest

from proxy.spec import RoutingSpec
from tests.digesting import ProxyEnd, followed, held_by, until
from tests.live import live, sim_engine, wait_for
from tests.sim_engine import engine, post, run
from workers.engines.sim.tokenizer import encode

BLOCK_SIZE = 4
WORDS = "this prompt begins as no other does and then it goes on and on" + " and on" * 20


@pytest.fixture
def engine_dir() -> Iterator[str]:
    with TemporaryDirectory(prefix="sluice-") as path:
        yield path


def test_what_is_lost_on_the_way_is_asked_for_again(engine_dir: str) -> None:
    """The cache is small: blocks come and go."""

    async def test() -> None:
        small = engine(local_dir=engine_dir, num_blocks=60, max_model_len=200)
        async with small as sim, followed(engine_dir, BLOCK_SIZE) as (way, publisher):
            proxy = ProxyEnd(publisher)
            way.drop = lambda number: number % 3 != 0
            for number in range(20):
                await post(sim, prompt=f"{number} {WORDS}")
            way.drop = lambda number: False
            await post(sim, prompt=f"last {WORDS}")
            held = await held_by(engine_dir, BLOCK_SIZE)
            await until(lambda: proxy.has_exactly(held), "the index to be the cache")
            assert way.num_dropped > 20 and 0 < len(held) <= 60
            assert publisher.num_losses == 0

    run(test)


def test_losses_at_the_end_are_noticed_though_nothing_follows(engine_dir: str) -> None:
    async def test() -> None:
        async with engine(local_dir=engine_dir) as sim, followed(engine_dir, BLOCK_SIZE) as (way, publisher):
            proxy, number = ProxyEnd(publisher), 0
            while not way.num_passed:  # what is published before the subscription has arrived is nobody's loss
                await post(sim, prompt=f"{number} {WORDS}")
                number += 1
            way.drop = lambda number: True
            await post(sim, prompt=WORDS)
            held = await held_by(engine_dir, BLOCK_SIZE)
            assert len(held)
            await until(lambda: proxy.has_exactly(held), "the index to be the cache")
            assert way.num_dropped

    run(test)


def test_a_proxy_that_comes_late_or_has_no_room_is_told_all(engine_dir: str) -> None:
    async def test() -> None:
        async with engine(local_dir=engine_dir) as sim, followed(engine_dir, BLOCK_SIZE) as (_, publisher):
            early = ProxyEnd(publisher)
            early.has_room = False
            for number in range(5):
                await post(sim, prompt=f"{number} {WORDS}")
            held = await held_by(engine_dir, BLOCK_SIZE)
            late = ProxyEnd(publisher)
            await until(lambda: late.has_exactly(held), "the late one's index to be the cache")
            assert early.num_bytes == 0
            early.has_room = True
            await until(lambda: early.has_exactly(held), "the slow one's index to be the cache")
            publisher.leave(late.link)
            await post(sim, prompt=f"more {WORDS}")
            more = await held_by(engine_dir, BLOCK_SIZE)
            await until(lambda: early.has_exactly(more), "the index to follow")
            assert late.has_exactly(held) and len(more) > len(held)

    run(test)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_process_of_a_proxy_follows_every_worker(
    tmp_path_factory: pytest.TempPathFactory, processes: int
) -> None:
    path = tmp_path_factory.mktemp("digests") / "run"
    routing, workers = RoutingSpec(policy="kv"), {"decode-0": sim_engine(), "decode-1": sim_engine()}
    with live(path, workers, routing=routing, processes=processes) as started:

        def index() -> dict[str, int]:
            fleet = started.fleet()["workers"]
            assert all(told["whole"] for worker in fleet for told in worker["digests"])
            return {worker["worker"]: sum(told["blocks"] for told in worker["digests"]) for worker in fleet}

        before, prompts = sum(index().values()), [f"{number} {WORDS * 3}" for number in range(6)]
        for text in prompts:
            with started.client() as client:  # each on a connection of its own: processes take turns
                body = {"model": "tiny", "prompt": text, "max_tokens": 8}
                assert client.post("/v1/completions", json=body).status_code == 200
        num_blocks = sum(len(encode(text)) // 16 for text in prompts)
        wait_for(lambda: sum(index().values()) >= before + num_blocks, "the blocks of all prompts in the index")
        held = index()
        assert started.metric("sluice_worker_index_blocks") == sum(held.values())
        assert started.metric("sluice_digest_resyncs_total") == 0
        started.kill("proxy")
        started.start_proxy(dict.fromkeys(workers, "decode"))
        started.wait_ready()
        wait_for(lambda: all(index()[name] >= held[name] for name in workers), "the index of a new proxy")
        started.kill("decode-1")
        wait_for(lambda: list(index()) == ["decode-0"], "the loss of a worker")


def test_least_loaded_pays_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    with live(tmp_path_factory.mktemp("digests") / "run", {"decode-0": sim_engine()}) as started:
        assert [worker["digests"] for worker in started.fleet()["workers"]] == [[]]
