"""One call of an engine's ASGI app, seen from below the OpenAI layer.

Owns the record that ties a request's envelope to the engine's `generate` calls: what the leg asks for,
whether the ticket may still be used, and whether a first good output exists (the status gate). An
engine adapter finds its call through `CURRENT` and reports to it; the host reads it. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar

import msgspec

from workers.host.prompt import Prompt
from workers.output_ids import ID_BYTES, pack
from workers.protocol import Leg, Resume, Ticket


class CallRefused(Exception):
    """The leg cannot be done as asked, found out before the engine was touched."""

    def __init__(self, reason: str, *, retryable: bool, status: int = 500) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable
        self.status = status


class Call(msgspec.Struct, eq=False):
    """The life of one leg on this host. Times are seconds of the host's monotonic clock."""

    request_id: str
    leg: str
    ticket: Ticket | None
    received_at: float
    redeem_s: float
    clock: Callable[[], float]
    # Runs whenever the gate, the outcome or the work may have changed; it must not raise.
    changed: Callable[[], None]
    priority: int = 0
    resume: Resume | None = None  # the engine computes these tokens behind the prompt
    keeps_ids: bool = False  # of its output, for whoever may have to go on with it: False once that cannot be exact
    untold_ids: bytes = b""
    replay: Sequence[object] = ()  # outputs of before, as the engine's adapter has made them anew for the app
    resampled: bool = False  # another engine would go on with other tokens
    finished: bool = False  # its only sequence has its last token
    on_prompt: Callable[[Prompt], None] | None = None  # until the first prompt is known
    engine_ids: list[str] = msgspec.field(default_factory=list)  # the engine's own request ids
    num_generates: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    open_prefill_tokens: int = 0  # of generate calls that have not produced anything yet
    good_output: bool = False
    ticket_used: bool = False
    ticket_params: bytes | None = None  # what the prefill leg's engine handed out, as JSON
    granted_at: float | None = None
    failure: CallRefused | None = None
    cancelled: bool = False  # nobody waits for it: nothing more of it may reach the engine

    @property
    def num_resumed_tokens(self) -> int:
        """Of the output, computed elsewhere before."""
        return 0 if self.resume is None else len(self.resume.output_ids) // ID_BYTES

    @property
    def num_answered_prompt_tokens(self) -> int:
        return self.num_prompt_tokens - self.num_resumed_tokens

    @property
    def num_answered_tokens(self) -> int:
        """Of the whole answer."""
        return self.num_output_tokens + self.num_resumed_tokens

    def begin(self, num_prompt_tokens: int, num_sequences: int) -> None:
        """The last act before a `generate` reaches the engine. Raises CallRefused, which is also kept."""
        num_prompt_tokens += self.num_resumed_tokens
        try:
            self._check(num_sequences)
        except CallRefused as refused:
            self.fail(refused)
            raise
        self.num_generates += 1
        self.num_prompt_tokens += num_prompt_tokens
        self.open_prefill_tokens += num_prompt_tokens
        if self.ticket is not None:
            self.ticket_used = True
        self.changed()

    def prompted(self, prompt: Prompt) -> None:
        """What the first `generate` computes, for whoever wants to know: asked for only where `on_prompt` is set."""
        told, self.on_prompt = self.on_prompt, None
        if told is not None:
            told(prompt)

    def _check(self, num_sequences: int) -> None:
        alone = self.num_generates == 0 and num_sequences == 1
        self.keeps_ids = self.keeps_ids and alone
        if self.resume is not None and self.leg != Leg.PREFILL and not self.keeps_ids:
            raise CallRefused("this stream cannot be continued exactly", retryable=False)
        if self.leg == Leg.WHOLE:
            return
        # Verified: a second prompt under the same ticket is decoded on the first one's KV, with status 200.
        if not alone:
            raise CallRefused("this request needs more than one sequence: it must run whole", retryable=True)
        if self.ticket is not None:
            age_s = self.ticket.age_s + self.clock() - self.received_at
            if age_s > self.redeem_s:
                raise CallRefused(f"ticket is {age_s:.1f} s old, limit {self.redeem_s:.0f} s", retryable=True)

    def output(self, num_new_tokens: int, num_cached_tokens: int, num_prompt_tokens: int) -> None:
        """One good output of the engine; the first one opens the gate."""
        self.num_output_tokens += num_new_tokens
        if num_prompt_tokens:
            num_prompt_tokens += self.num_resumed_tokens
            self.open_prefill_tokens -= min(self.open_prefill_tokens, num_prompt_tokens)
            self.num_cached_tokens += num_cached_tokens
        if num_prompt_tokens or not self.good_output:
            self.good_output = True
            self.changed()

    def outputs(self, token_ids: Sequence[int], *, finished: bool) -> None:
        """The ids of one output, before the app makes bytes of them."""
        if self.keeps_ids:
            self.untold_ids += pack(token_ids)
            self.finished = finished

    def take_ids(self) -> bytes:
        ids, self.untold_ids = self.untold_ids, b""
        return ids

    def granted(self, params: bytes | None) -> None:
        """The prefill leg's engine has finished and holds the blocks (None: nothing to hand over)."""
        self.ticket_params = params
        self.granted_at = self.clock()
        self.changed()

    def fail(self, failure: CallRefused) -> None:
        """The first failure is the one that counts."""
        if self.failure is None:
            self.failure = failure
            self.changed()


CURRENT: ContextVar[Call | None] = ContextVar("sluice_call", default=None)
