"""What the proxy's processes and the parent that keeps them say to each other, on the channel between them.

Owns the words only, and how processes are called. No token and no request travels here.
"""

from __future__ import annotations

import msgspec

from proxy.fleet.worker import Life, Proof
from proxy.monitoring.snapshot import Snapshot
from proxy.monitoring.totals import Totals
from workers.agent.channel import Channel
from workers.links.proxy_file import ProxyFile

ALIVE_S = 1.0


def process_id(proxy: str, number: int) -> str:
    return f"{proxy}.{number}"


# ---------------------------------------------------------------- process -> parent


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """Its links are bound: workers may come."""

    file: ProxyFile


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """Whom it could send requests to now, and what it has seen proven."""

    serving: frozenset[Life]
    proven: frozenset[Proof]


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Its loop runs: every ALIVE_S, whatever else is said."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """What do the others show? `since`: how much of the last hour is wanted; `own` is what the asker shows itself."""

    number: int
    since: int
    own: Snapshot


class Shown(msgspec.Struct, frozen=True, tag="shown"):
    """The answer to `Show`; `number` is that of the question, 0 of the last words of one that ends."""

    number: int
    snapshot: Snapshot


ToParent = Opened | Seen | Alive | Ask | Shown

# ---------------------------------------------------------------- parent -> process


class Family(msgspec.Struct, frozen=True, tag="family"):
    """The processes that take work, and what any of them has proven. One of them `proves` what is not proven yet.

    `ended`: the ids of the last ones that did.
    """

    processes: tuple[ProxyFile, ...]
    ended: tuple[str, ...]
    proven: frozenset[Proof]
    proves: bool


class AcceptOn(msgspec.Struct, frozen=True, tag="accept_on"):
    """The listening sockets it takes connections from, by number: these and no others."""

    slots: tuple[int, ...]


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Take no more connections, finish what runs, end. `at_once`: clients that wait to ask again are cut off.
    `accept_s`: connections are taken for so long yet, of clients that do not know of the next proxy so soon."""

    grace_s: float
    at_once: bool
    accept_s: float = 0.0


class Show(msgspec.Struct, frozen=True, tag="show"):
    """A sibling asks."""

    number: int
    since: int


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """To `Ask`: the others, and what those that have ended had counted."""

    number: int
    others: tuple[Snapshot, ...]
    past: Totals


ToProcess = Family | AcceptOn | Leave | Show | Answer

ChannelToProcess = Channel[ToProcess, ToParent]
ChannelToParent = Channel[ToParent, ToProcess]
PARENT_WORDS: msgspec.msgpack.Decoder[ToProcess] = msgspec.msgpack.Decoder(ToProcess)
PROCESS_WORDS: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
