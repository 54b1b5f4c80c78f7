"""The leg rules of the simulated engine, below its OpenAI layer: as in the vLLM adapter.

Owns no state: what happens goes to the `Call` of the context.
"""

from __future__ import annotations

import msgspec

from workers.engines.sim.api import ApiError
from workers.engines.sim.handoff import HandOver
from workers.host.calls import Call, CallRefused
from workers.output_ids import groups
from workers.protocol import Leg

_WORD = 1 << 32


def begin(call: Call, engine_ids: list[int], num_prompt_tokens: int) -> None:
    """The last act before the scheduler. Raises ApiError; the call keeps the reason."""
    try:
        if call.cancelled:
            raise CallRefused("the call was cancelled", retryable=False)
        call.engine_ids += map(str, engine_ids)
        call.begin(num_prompt_tokens, len(engine_ids))
    except CallRefused as refused:
        raise ApiError(refused.status, refused.reason, type="InternalServerError") from refused


def resumed_tokens(call: Call | None) -> list[int]:
    """Computed elsewhere before, of a stream that goes on."""
    resume = None if call is None else call.resume
    return [] if resume is None else [_WORD + id for group in groups(resume.output_ids) for id in group]


def tell(call: Call, token: int, *, finished: bool) -> None:
    """What the engine makes are words of four bytes behind a one: the ids that travel are without it."""
    call.outputs((token - _WORD,), finished=finished)


def source_of(call: Call | None) -> HandOver | None:
    """Where a decode leg's KV lies. Raises ApiError."""
    if call is None or call.leg != Leg.DECODE or call.ticket is None:
        return None
    try:
        return msgspec.json.decode(call.ticket.params, type=HandOver)
    except msgspec.DecodeError as error:
        raise failed(call, f"not a ticket of a simulated engine: {error}") from error


def failed(call: Call | None, reason: str) -> ApiError:
    """The engine could not do it: another try may."""
    if call is not None:
        call.fail(CallRefused(reason, retryable=True))
    return ApiError(500, reason, type="InternalServerError")
