"""How long the proxy thinks about where a long prompt should go, by the number of workers.

Drives the proxy's cores as the proxy does, on one thread: a body comes, its prompt is looked up, the request is
placed, its engine tells of its prompt, the answer ends. Owns the fleets it makes and the clock around them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from benchmarks.load import prompt
from launcher.twin.card import Card
from launcher.twin.percentiles import percentile
from launcher.twin.setup import MODEL, equal_engines
from proxy.flights import flight_events as ev
from proxy.flights.flight import Flight
from proxy.flights.flights import Flights
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.prefixes.prompt_key import fields_of
from proxy.prefixes.prompts import Prompts, Seen
from proxy.routing.router import Demand, Router
from proxy.spec import Deadlines, Limits, RoutingSpec
from workers.digest.chains import Hasher, pack
from workers.kv_messages import PromptTrace
from workers.protocol import End, Leg, Start, Submit

PATH = "/v1/chat/completions"
BYTES_PER_TOKEN = 4
TURN_CHARS = 2000
SHARED = 0.25  # of each prompt is the system prompt of all
NEW = 0.05  # of each prompt is new, at its end
SESSIONS_PER_WORKER = 2


class Case(msgspec.Struct, frozen=True, kw_only=True):
    num_workers: int
    num_tokens: int
    block_size: int
    policy: str
    seed: int


class Conversation:
    """One that has been answered before by some worker, and goes on."""

    def __init__(self, system: str, num_chars: int, rng: random.Random) -> None:
        own = prompt(num_chars - len(system), rng)
        turns = [own[at : at + TURN_CHARS] for at in range(0, len(own), TURN_CHARS)]
        self.messages = [{"role": "user", "content": text} for text in (system, *turns)]

    def body(self, *more: str) -> bytes:
        messages = [*self.messages, *({"role": "user", "content": text} for text in more)]
        return msgspec.json.encode({"model": MODEL, "messages": messages, "stream": True, "max_tokens": 4})


class Cores:
    """The proxy without its sockets, all workers up and holding what they have computed."""

    def __init__(self, case: Case) -> None:
        routing = RoutingSpec(policy=case.policy, whole_below_tokens=0)
        card = msgspec.structs.replace(Card(), block_size=case.block_size)
        setup = equal_engines(card, "whole", case.num_workers, routing=routing)
        self.fleet = setup.fleet()
        self.index = PrefixIndex()
        limits = Limits(max_queued=1 << 20)
        router = Router(routing, random.Random(case.seed))
        self.flights = Flights(self.fleet, self.index, router, limits, Deadlines())
        self.hasher = Hasher(b"secret")
        self.prompts = Prompts(setup.proxy_spec(), b"secret", self.hasher)
        self.loaded = setup.capabilities("any")
        self.wants_chain = router.wants_chain(case.policy)
        self._number = 0

    def look(self, body: bytes) -> Seen:
        return self.prompts.look(PATH, b"", fields_of(body), MODEL, None, self.loaded)

    def flight(self, seen: Seen, body: bytes) -> Flight:
        self._number += 1
        submit = Submit(0, "r", Leg.WHOLE, "POST", PATH, b"", (), body, wants_trace=seen.key is not None)
        if seen.known is None:
            demand = Demand(len(body) // BYTES_PER_TOKEN, None)
        else:
            demand = Demand(seen.known.num_tokens, None, chain=seen.known.chain, marks=seen.known.marks)
        flight = Flight(self._number, "r", submit, demand, streams=True)
        flight.prompt = seen.key
        return flight

    def answer(self, flight: Flight, token_ids: list[int], now: float) -> None:
        """All that a worker says."""
        rid = flight.leg
        assert rid is not None and flight.route is not None
        hashes = self.hasher.chain(token_ids, self.loaded.block_size)
        worker = self.flights.legs[rid].worker
        if flight.prompt is not None:
            trace = PromptTrace(rid, pack(hashes), len(token_ids))
            self.prompts.traced(self.flights.legs[rid], trace)
        self.flights.apply(Start(rid, 200, ()), now)
        self.flights.apply(End(rid, len(token_ids), 0, 4), now + 0.1)
        self.index.store((worker.key, 0), hashes)


def tokens_of(body: bytes) -> list[int]:
    """A token per four bytes, as a tokenizer would give them: the same beginning, the same tokens."""
    texts = "".join(message["content"] for message in msgspec.json.decode(body)["messages"]).encode()
    return [int.from_bytes(texts[at : at + BYTES_PER_TOKEN]) & 0xFFFFFF for at in range(0, len(texts), BYTES_PER_TOKEN)]


def decisions(case: Case, num_decisions: int) -> Iterator[tuple[float, float]]:
    """Seconds of this thread for each: of the look at the body, and of placing the request."""
    rng = random.Random(case.seed)
    cores = Cores(case)
    num_chars = int(case.num_tokens * BYTES_PER_TOKEN * (1 - NEW))
    system = prompt(int(num_chars * SHARED), rng)
    sessions = [Conversation(system, num_chars, rng) for _ in range(SESSIONS_PER_WORKER * min(case.num_workers, 64))]
    now = 0.0
    for number, session in enumerate(sessions + rng.choices(sessions, k=num_decisions)):
        now += 1.0
        body = session.body(*([prompt(int(num_chars * NEW), rng)] if number >= len(sessions) else []))
        started = time.thread_time()
        seen = cores.look(body) if cores.wants_chain else Seen(None, None)
        looked = time.thread_time()
        flight = cores.flight(seen, body)
        began = time.thread_time()
        cores.flights.apply(ev.Arrived(flight), now)
        ended = time.thread_time()
        cores.answer(flight, tokens_of(body), now)
        if number >= len(sessions):
            yield looked - started, ended - began


def decision_figures(case: Case, num_decisions: int) -> dict[str, float]:
    looks, places = zip(*decisions(case, num_decisions), strict=True)
    figures: dict[str, Any] = {}
    for name, seconds in (("look", looks), ("place", places)):
        figures |= {f"{name}_p{share}_us": 1e6 * percentile(seconds, share / 100) for share in (50, 99)}
    return figures
