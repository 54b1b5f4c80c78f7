"""One request in flight, and the legs of it that workers do: records and the table of a request's states.

    queued -> prefill -> decode -> streaming -> ended
       '--------------------^          a whole request skips prefill
    queued | prefill | decode -> queued: tried again elsewhere
    streaming -> queued: taken up elsewhere, behind the tokens that its client has

Owns what a step may be, not when it is taken: that is `flights`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from proxy.fleet.worker import Worker
from proxy.prefixes.prefix_index import NO_MARKS, Marks
from proxy.prefixes.prompt_key import PromptKey
from proxy.routing.router import Demand, Route
from workers.protocol import Leg, Submit


class State(StrEnum):
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    STREAMING = "streaming"
    ENDED = "ended"


NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.PREFILL, State.DECODE, State.ENDED}),
    State.PREFILL: frozenset({State.DECODE, State.QUEUED, State.STREAMING, State.ENDED}),
    State.DECODE: frozenset({State.STREAMING, State.QUEUED, State.ENDED}),
    State.STREAMING: frozenset({State.QUEUED, State.ENDED}),
    State.ENDED: frozenset(),
}


class Flight(msgspec.Struct, eq=False):
    """One request. When bytes arrive for its client, the shell moves `progress_at` and counts them and their tokens."""

    id: int
    request_id: str
    submit: Submit  # the envelope every leg starts from
    demand: Demand
    streams: bool
    account: str = ""  # the name of the key that it came with
    state: State = State.QUEUED
    arrived_at: float = 0.0
    progress_at: float = 0.0
    attempts: int = 0
    route: Route | None = None
    leg: int | None = None  # rid on the wire
    begun: bool = False  # its client has the head of its answer
    kept_bytes: int = 0  # of its body, while the answer can be taken up elsewhere
    num_sent_bytes: int = 0  # of the answer's body
    output_ids: bytearray = msgspec.field(default_factory=bytearray)  # of which these were made
    num_resumed: int = 0
    created: int = 0  # as the answer's events say
    prompt: PromptKey | None = None  # under this its worker's trace of the prompt is learnt
    refused_at_chance: int = -1  # the last one at which no worker was found for it
    held_tokens: int = 0  # counted where it decodes
    cached_tokens: int = 0  # of its prompt, where it was computed, by that engine's word
    story: list[tuple[State, float]] = msgspec.field(default_factory=list)  # where it has been, and until when

    @property
    def of_batch(self) -> bool:
        """It comes after all that are not."""
        return self.submit.priority > 0

    @property
    def waited_s(self) -> float:
        """For a place, so far as it got one."""
        since, waited_s = self.arrived_at, 0.0
        for state, until in self.story:
            waited_s += until - since if state is State.QUEUED else 0.0
            since = until
        return waited_s

    def move(self, state: State, now: float) -> None:
        self.story.append((self.state, now))
        if state not in NEXT[self.state]:
            told = " -> ".join(f"{past.value} until {at:.3f}" for past, at in self.story)
            raise RuntimeError(f"request {self.request_id}: no step to {state.value} after {told}")
        self.state, self.progress_at = state, now


class LegRecord(msgspec.Struct, eq=False):
    """One leg on the wire, kept until its worker has had the last word, also when nobody waits for it."""

    flight: Flight
    kind: str
    worker: Worker
    compute_tokens: int  # of the prompt, counted on `worker` until they are computed
    # Where a decode place is held. A prefill leg holds its decode worker's: once prefilled, it must not wait.
    place: Worker | None
    ticket: str | None = None
    cancelled: bool = False
    num_resumed_tokens: int = 0  # of the output, from workers before this one
    sent_at: float = 0.0
    computed_at: float | None = None
    stalls_before_s: float = 0.0  # what prompts had taken there by then
    promised: Marks = NO_MARKS  # until then the index takes `worker` to hold this

    @property
    def begun(self) -> bool:
        """Its answer: the first token is there."""
        return self.kind != Leg.PREFILL and self.computed_at is not None
