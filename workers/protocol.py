"""The contract between workers, proxies and the controller: every message that travels on a link.

Owns the messages between worker and proxy, grouped by who receives them (on where the KV lies: `kv_messages`), and who
may be sent what (`controller_messages` included). Pure data: `wire` turns it into bytes, `session` owns sequence
numbers and credit.

Messages are tagged arrays: new fields go at the end with a default, so peers that speak protocol N and N-1
read each other; an unknown tag is an error that is told to the sender.
"""

from __future__ import annotations

import msgspec

from workers.controller_messages import ControllerHello, DrainWorker, FleetView, Jobs, SetCaps
from workers.kv_messages import AboutPrompts, DigestWanted
from workers.links.proxy_file import ProxyFile
from workers.message import Message
from workers.stages import StageTimes

PROTOCOL = 1
OLDEST_PROTOCOL = 1

# How often each side says something, and how long the other side may say nothing.
BEAT_INTERVAL_S = 0.5
HOST_SILENCE_S = 10.0  # one link alone: a host shares its interpreter with a busy engine
PROXY_SILENCE_S = 10.0  # after this a host cancels a proxy's requests and releases its tickets
WINDOW_BYTES = 16 << 20  # unacknowledged bytes per direction of a link


class Leg:
    """What a worker does for a request."""

    WHOLE = "whole"
    PREFILL = "prefill"
    DECODE = "decode"


class Turn:
    """How a worker stands to reading its model from the shared file system (`cluster.max_loading`)."""

    NONE = ""  # it does not, or not any more
    WAITS = "waits"  # for its turn
    READS = "reads"


class Part:
    """Which half of a worker holds a link: the agent's decides the phase, the host's carries the data."""

    AGENT = "agent"
    HOST = "host"


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """The KV blocks that a prefill worker holds for one decode leg, until read, released or expired.

    `params` is the engine's own hand-over description as JSON, opaque to everyone but the engine.
    `age_s` counts from the end of prefill; whoever holds the ticket adds its own elapsed time.
    """

    id: str
    worker: str
    generation: int
    params: bytes
    num_blocks: int
    num_prompt_tokens: int
    age_s: float = 0.0
    dp_rank: int = 0


class Resume(msgspec.Struct, frozen=True, array_like=True):
    """A stream's answer so far: what its client has of it, and the tokens that it was made of.

    There may be tokens whose text has not been sent; there are no bytes of tokens that are not here.
    """

    output_ids: bytes  # see `workers.output_ids`
    num_bytes: int  # of the body
    created: int  # as the answer's events say
    num_resumed: int  # how often the stream has been taken up, this time included


class Capabilities(msgspec.Struct, frozen=True, array_like=True):
    """What a loaded engine is able to do, as the engine itself reports it."""

    models: tuple[str, ...]
    max_model_len: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    dp_ranks: int
    can_prefill: bool
    can_decode: bool
    # Workers exchange KV only where these are equal: engine version, model path, dtype, attention
    # backend, cache dtype, block size.
    kv_format: str = ""
    generates: bool = True  # else it pools: embeddings, scores


# ---------------------------------------------------------------- worker -> proxy


class Register(Message, frozen=True, tag="register"):
    """First message of every session. The socket identity is worker/generation/session."""

    protocol: int
    code: str
    engine_version: str
    worker: str
    pool: str
    role: str
    generation: int
    incarnation: str  # one life of the agent's process: the same worker from elsewhere is a stranger
    session: str
    part: str
    capabilities: Capabilities | None = None  # a host's
    node: str = ""
    job: str = ""
    end_time: float | None = None  # unix time at which Slurm ends the job
    addresses: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()  # of its node, as the node counts them; empty: none, or not told


class Phase(Message, frozen=True, tag="phase"):
    """The agent's word on its worker: a phase of `workers.agent.lifecycle` and what a person should know."""

    phase: str
    detail: str = ""
    stages: StageTimes = ()  # of its start, as far as they have ended
    turn: str = Turn.NONE
    waited_s: float = 0.0  # for its turn, so far


class Load(Message, frozen=True, tag="load"):
    """The host's own figures: an idle engine reports nothing, so its gauges go stale.

    Sent with each beat; where several proxies send work, at once when another's share changes.
    """

    running: int
    waiting: int
    pinned_blocks: int
    prefill_tokens: int  # prompt tokens submitted to the engine whose first output has not come
    kv_tokens_received: int = 0  # total since start, from the engine's own connector counter
    dp_rank: int = 0
    kv_used: float = 0.0  # the part of the KV cache that requests hold
    # What of these is not the receiver's own: of its own it knows more than the host can.
    other_decodes: int = 0  # whole and decode legs, running or waiting
    other_prefill_tokens: int = 0
    other_pinned_blocks: int = 0


class Start(Message, frozen=True, tag="start"):
    """The status and headers of an answer, past the status gate: a real answer or a real error."""

    rid: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    data: bytes = b""  # the beginning of the body, or of what is new of it in a resumed stream
    output_ids: bytes = b""  # of which it was made; empty: this answer cannot be taken up elsewhere
    created: int = 0  # as its events say
    # What `Computed` would say; none: it did, or nothing was computed.
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class Chunk(Message, frozen=True, tag="c"):
    """A piece of the answer's body: what the engine's app sent in one loop turn, byte for byte."""

    rid: int
    data: bytes
    output_ids: bytes = b""  # the engine's new ones until then


class End(Message, frozen=True, tag="end"):
    """The answer is complete."""

    rid: int
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    data: bytes = b""  # the rest of the body


class Failed(Message, frozen=True, tag="failed"):
    """The leg ended without (the rest of) an answer."""

    rid: int
    reason: str
    retryable: bool
    status: int = 500


class Prefilled(Message, frozen=True, tag="prefilled"):
    """A prefill leg is done; without a ticket there was nothing to hand over and decode computes it all."""

    rid: int
    ticket: Ticket | None
    num_prompt_tokens: int
    num_cached_tokens: int = 0


class Cancelled(Message, frozen=True, tag="cancelled"):
    """The acknowledgement of `Cancel`: nothing of this request runs on the engine any more."""

    rid: int


class Goodbye(Message, frozen=True, tag="goodbye"):
    """The peer leaves and says why; its link is gone. `as_asked`: its worker ends because somebody wants it to."""

    reason: str
    as_asked: bool = False


# ---------------------------------------------------------------- proxy -> worker


class Registered(Message, frozen=True, tag="registered"):
    """The link is up; said again whenever there is news of the proxy's processes.

    `processes` are all that take work: a link to each is wanted. One that does not name itself is on its way
    out. None: it says nothing about that. `ended`: ids of those that are certainly gone.
    """

    proxy: str
    protocol: int
    processes: tuple[ProxyFile, ...] | None = None
    ended: tuple[str, ...] = ()


class Refused(Message, frozen=True, tag="refused"):
    """The link is not, or no longer, up. Not final: register again with a new session."""

    reason: str
    final: bool


class Beat(Message, frozen=True, tag="beat"):
    """Nothing but a sign of life; both directions."""


class Submit(Message, frozen=True, tag="submit"):
    """Do one leg of a request. The body travels byte for byte as the client sent it."""

    rid: int
    request_id: str
    leg: str
    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    priority: int = 0
    deadline_s: float | None = None  # seconds from receipt after which nobody waits any more
    ticket: Ticket | None = None
    resume: Resume | None = None
    dp_rank: int = 0
    wants_trace: bool = False  # of the prompt: a PromptTrace
    wants_ids: bool = False  # of the output, beside the answer's bytes, so that it can be taken up elsewhere


class Cancel(Message, frozen=True, tag="cancel"):
    """Nobody waits for this request. Always acknowledged by Cancelled, or by the answer that it crossed."""

    rid: int


class Release(Message, frozen=True, tag="release"):
    """To the holder: end the lease of a ticket that nobody will read, its blocks are free."""

    ticket: Ticket


class TicketClosed(Message, frozen=True, tag="ticket_closed"):
    """To the holder: this ticket was read, its blocks no longer count as pinned."""

    ticket_id: str


class Drain(Message, frozen=True, tag="drain"):
    """To an agent: take nothing new, finish what runs, then end the job."""

    reason: str
    timeout_s: float


class YourTurn(Message, frozen=True, tag="your_turn"):
    """To an agent that waits for it: read the model now, and tell by `Phase` when it is read."""


ToProxy = (
    Register
    | Phase
    | Load
    | AboutPrompts
    | Start
    | Chunk
    | End
    | Failed
    | Prefilled
    | Cancelled
    | Goodbye
    | Beat
    | ControllerHello
    | Jobs
    | DrainWorker
    | SetCaps
)
ToWorker = (
    Registered | Refused | Beat | Submit | Cancel | Release | TicketClosed | DigestWanted | Drain | YourTurn | Goodbye
)
ToController = Registered | Refused | Beat | FleetView | Goodbye
