"""What is counted for good: per key and worker, through losses, days, kills and writes that fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.report.report import Sources, make_report
from proxy.account_keeper import AccountKeeper
from proxy.errors import NoWorker, WorkerFailed
from proxy.fleet.fleet_events import PeerLost
from proxy.fleet.worker import Key
from proxy.flights import flight_events as ev
from proxy.flights.flight import Flight
from proxy.monitoring.accounts import MAX_INCIDENTS, Accounts, Book, Sums, day_of
from tests.unit.proxies import bring_up, flight, peer
from tests.unit.test_flights import World, split
from workers.agent.lifecycle import DRAINING
from workers.output_ids import pack
from workers.protocol import End, Part, Phase, Start

T0 = 1_700_000_000.0
DAY_S = 86_400.0


def new(life: str = "a", unix: float = T0) -> Accounts:
    return Accounts("p0.0", life, 7, unix)


def of(account: str, number: int = 1) -> Flight:
    made = flight(number)
    made.account = account
    return made


# ---------------------------------------------------------------- requests


def test_every_end_counts_once_under_the_name_of_its_key() -> None:
    accounts, flights = new(), [of("ann"), of("ann", 2), of("ben", 3), of("ben", 4), of("ben", 5)]
    accounts.failed(ev.Reject(flights[0], NoWorker("full", retry_after_s=1)))
    accounts.failed(ev.Reject(flights[1], WorkerFailed("died")))
    accounts.failed(ev.Break(flights[2], WorkerFailed("died")))
    accounts.left(flights[3])
    accounts.answered(flights[4], 400, End(1))
    assert accounts.book.keys == {
        "ann": Sums(requests=2, turned_away=1, failed=1),
        "ben": Sums(requests=3, broken=1, left=1, refused=1),
    }


def test_proofs_and_scrapes_are_nobodys_requests() -> None:
    accounts, proof = new(), flight(1, forced=(None, ("decode-0", 0)))
    accounts.left(proof)
    accounts.failed(ev.Reject(proof, NoWorker("full", retry_after_s=1)))
    assert accounts.book.keys == {}


def test_tokens_count_where_they_were_made() -> None:
    accounts, world = new(), World()
    asked = of("ann")
    asked.cached_tokens = 64
    world.apply(ev.Arrived(asked))
    accounts.answered(asked, 200, End(1, num_prompt_tokens=500, num_output_tokens=9))
    assert accounts.book.keys["ann"] == Sums(requests=1, prompt_tokens=500, cached_tokens=64, output_tokens=9)
    assert {name: (work.prompt_tokens, work.output_tokens) for name, work in accounts.book.workers.items()} == {
        "prefill-0.g0": (500, 0),
        "decode-0.g0": (0, 9),
    }


# ---------------------------------------------------------------- workers that go


def lose(accounts: Accounts, world: World, key: Key) -> None:
    world.fleet.apply(PeerLost(peer(key[0], Part.AGENT, key[1]), "killed"), 0.0)
    with accounts.loss(key, "lost: it is silent", world.flights, T0):
        world.apply(ev.WorkerGone(key, "it is silent"))


def test_a_loss_says_what_became_of_each_request_that_it_met() -> None:
    accounts, world = new(), World(num_decode=2)
    resumed, broken, prefilling = of("ann"), of("ann", 2), of("ann", 3)
    for request, ids in ((resumed, pack([1, 2])), (broken, b"")):
        rid, _ = split(world, request)
        world.apply(Start(rid, 200, (), output_ids=ids))
    assert resumed.route is not None and broken.route is not None
    first, second = resumed.route.decode.key, broken.route.decode.key
    assert first != second
    lose(accounts, world, first)
    lose(accounts, world, second)
    bring_up(world.fleet, "decode-0", 1)
    world.apply(ev.Arrived(prefilling))
    bring_up(world.fleet, "prefill-0", 1)
    lose(accounts, world, ("prefill-0", 0))
    told = [(one.open, one.moved, one.resumed, one.failed, one.broken) for one in accounts.book.incidents]
    assert told[:2] == [(1, 0, 1, 0, 0), (1, 0, 0, 0, 1)]
    assert told[2] == (2, 1, 1, 0, 0), "one with nothing sent yet, and the first on its way to be resumed"


def test_a_drain_is_told_once_with_what_is_open_then() -> None:
    accounts, world = new(), World()
    world.apply(ev.Arrived(of("ann")))
    worker = world.fleet.workers["prefill-0", 0]
    accounts.told(worker, Phase(DRAINING, "its walltime ends"), world.flights, T0)
    worker.phase = DRAINING
    accounts.told(worker, Phase(DRAINING, "1 left"), world.flights, T0 + 1)
    assert [(one.what, one.why, one.open) for one in accounts.book.incidents] == [(DRAINING, "its walltime ends", 1)]


def test_a_worker_that_comes_and_goes_all_day_does_not_grow_the_book() -> None:
    accounts, world = new(), World()
    for _ in range(2 * MAX_INCIDENTS):
        lose(accounts, world, ("decode-9", 0))
    assert len(accounts.book.incidents) == MAX_INCIDENTS


# ---------------------------------------------------------------- files

# What happens in a run's months: a request of a key ends, a book is written (or cannot be), a day goes by, the process
# ends as it should or is killed, and another takes its place.
HISTORY = st.lists(st.sampled_from(["ann", "ben", "write", "cannot write", "day", "end", "kill"]), max_size=60)


@given(HISTORY)
def test_files_hold_each_request_once_and_lose_only_what_a_killed_process_had_not_written(history: list[str]) -> None:
    files: dict[str, bytes] = {}
    safe, unsafe = 0, 0  # requests that are in files, and those since the last write
    now, lives = T0, 0
    accounts = new("0")
    pages: list[Book] = []

    def write() -> None:
        nonlocal safe, unsafe
        over = accounts.turn_page(now)
        for book in (*pages, *([over] if over else []), accounts.book):
            files[f"{book.life}.{book.day}"] = msgspec.json.encode(book)
        pages.clear()
        safe, unsafe = safe + unsafe, 0

    for step in history:
        match step:
            case "write":
                write()
            case "cannot write":
                over = accounts.turn_page(now)
                pages += [over] if over else []
            case "day":
                now += DAY_S
            case "end" | "kill":
                if step == "end":
                    write()
                pages, unsafe, lives = [], 0, lives + 1
                accounts = new(str(lives), now)
            case account:
                accounts.left(of(account))
                unsafe += 1
    books = [msgspec.json.decode(content, type=Book) for content in files.values()]
    report = make_report(Sources(run="r", records=(), gpus={}, books=books, lives=(), alive=()), now)
    assert report.totals.requests == safe
    assert sum(sums.requests for sums in report.keys.values()) == safe
    assert sum(sums.requests for sums in report.days.values()) == safe


def read(folder: Path) -> list[Book]:
    return [msgspec.json.decode(path.read_bytes(), type=Book) for path in folder.glob("*.json")]


def test_a_folder_that_takes_no_files_for_a_while_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "there" / "accounting"
    accounts = new()

    async def scenario() -> None:
        keeper = AccountKeeper(folder, accounts, lambda: 3)
        keeping = asyncio.create_task(keeper.run())
        accounts.left(of("ann"))
        await asyncio.sleep(0.05)  # there is nowhere to write
        await asyncio.to_thread(folder.parent.mkdir)
        accounts.left(of("ann", 2))
        keeper.close()
        await keeping

    accounts.book.day = day_of(2e9)  # this test's days do not end
    asyncio.run(scenario())
    [book] = read(folder)
    assert (book.keys["ann"].requests, book.ended, book.open_requests) == (2, True, 3)


def written(folder: Path) -> list[int]:
    return [path.stat().st_ino for path in folder.glob("*.json")]


def test_what_is_not_new_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.account_keeper.WRITE_EVERY_S", 0.01)
    accounts = new()
    accounts.book.day = day_of(2e9)

    async def scenario() -> None:
        keeper = AccountKeeper(tmp_path, accounts, lambda: 0)
        keeping = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.1)
        before = written(tmp_path)
        await asyncio.sleep(0.1)
        assert written(tmp_path) == before
        keeper.close()
        await keeping

    asyncio.run(scenario())
