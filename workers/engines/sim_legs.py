"""The leg rules of the simulated engine, below its OpenAI layer: as in the vLLM adapter.

Owns no state: what happens goes to the `Call` of the context.
"""

from __future__ import annotations

from workers.calls import Call, CallRefused
from workers.engines.sim_api import ApiError


def begin(call: Call, engine_ids: list[int], num_prompt_tokens: int) -> None:
    """The last act before the scheduler. Raises ApiError; the call keeps the reason."""
    try:
        if call.cancelled:
            raise CallRefused("the call was cancelled", retryable=False)
        call.engine_ids += map(str, engine_ids)
        call.begin(num_prompt_tokens, len(engine_ids))
    except CallRefused as refused:
        raise ApiError(refused.status, refused.reason, type="InternalServerError") from refused


def failed(call: Call | None, reason: str) -> ApiError:
    """The engine could not do it: another try may."""
    if call is not None:
        call.fail(CallRefused(reason, retryable=True))
    return ApiError(500, reason, type="InternalServerError")
