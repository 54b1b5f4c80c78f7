"""The leg rules below vLLM's OpenAI layer: what reaches the engine, and what a call learns from its outputs.

Owns no state: everything goes to the `Call` of the context. Requests are rewritten at the one point where
vLLM has validated and completed them and gives them its own id, so that a request which vLLM refuses by
itself has not used its ticket.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from workers.digest.chains import Media
from workers.host.calls import CURRENT, Call, CallRefused
from workers.host.prompt import Prompt
from workers.protocol import Leg, Ticket

Outputs = Callable[..., AsyncGenerator[Any, None]]  # vLLM's generate and encode


def reporting_assign(assign: Callable[[EngineCoreRequest], None]) -> Callable[[EngineCoreRequest], None]:
    """vLLM's assign_request_id, the last step before a request goes to the engine's process."""

    def reported(request: EngineCoreRequest) -> None:
        assign(request)
        if (call := CURRENT.get()) is not None:
            admit(request, call)

    return reported


def admit(request: EngineCoreRequest, call: Call) -> None:
    """Make the request what its leg asks for, and nothing that its client asks for below OpenAI's API."""
    if call.cancelled:
        raise asyncio.CancelledError  # vLLM's app runs its handlers in tasks that outlive the one that called it
    request.priority = call.priority
    request.data_parallel_rank = None
    request.session_id = None
    request.kv_hints = None
    request.request_id = engine_request_id(request.request_id, call.leg, call.ticket)
    call.engine_ids.append(request.request_id)
    if call.leg != Leg.WHOLE and (reason := _why_whole(request)) is not None:
        refused = CallRefused(f"{reason} must run whole", retryable=True)
        call.fail(refused)
        raise refused
    if request.sampling_params is not None:
        request.sampling_params = leg_params(request.sampling_params, call.leg, call.ticket)
    num_sequences = 1 if request.sampling_params is None else request.sampling_params.n
    call.begin(len(request.prompt_token_ids or ()), num_sequences)
    if call.on_prompt is not None and request.prompt_embeds is None:
        call.prompted(prompt_of(request))


def prompt_of(request: EngineCoreRequest) -> Prompt:
    lora = request.lora_request
    media = [
        Media(feature.identifier, feature.mm_position.offset, feature.mm_position.length)
        for feature in request.mm_features or ()
    ]
    return Prompt(request.prompt_token_ids or (), lora and lora.lora_name, request.cache_salt, media)


def engine_request_id(own: str, leg: str, ticket: Ticket | None) -> str:
    """The push connector pairs the two engines' requests by their ids: decode's is the one that the ticket names.

    Else it would take ids that differ in eight hexadecimal digits at the end for the same, as those of two attempts
    at one request do. With an ending of ours there is nothing that it could leave away.
    """
    if leg == Leg.PREFILL:
        return f"{own}-prefill"
    params = {} if ticket is None else msgspec.json.decode(ticket.params)
    return str(params["remote_request_id"]) if params.get("transfer_mode") == "push" else own


def _why_whole(request: EngineCoreRequest) -> str | None:
    """Requests of one sequence whose answer is not the same on another engine's KV."""
    if request.sampling_params is None:
        return "a pooling request"
    if request.mm_features:
        return "a multimodal request"
    if request.prompt_embeds is not None:
        return "a request with prompt embeddings"
    if request.sampling_params.prompt_logprobs is not None:
        return "a request with prompt_logprobs"
    return None


def leg_params(params: SamplingParams, leg: str, ticket: Ticket | None) -> SamplingParams:
    """A new object; `extra_args` is where vLLM puts a client's kv_transfer_params and vllm_xargs."""
    if leg == Leg.PREFILL:
        return SamplingParams(
            n=params.n,
            max_tokens=1,
            ignore_eos=True,
            logprobs=params.logprobs,  # the app, whose answer nobody reads, fails without them
            watermarking=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}},
        )
    own = params.clone()
    own.extra_args = None if ticket is None else {"kv_transfer_params": msgspec.json.decode(ticket.params)}
    return own


def reporting(outputs: Outputs) -> Outputs:
    """vLLM's generate or encode, whose outputs report to the call of the context."""

    async def reported(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        call = CURRENT.get()
        async with contextlib.aclosing(outputs(*args, **kwargs)) as stream:
            try:
                first = True
                async for output in stream:
                    if call is not None:
                        observe(output, call, first=first)
                    first = False
                    yield output
            except (EngineDeadError, EngineGenerateError) as error:
                if call is not None:
                    call.fail(CallRefused(f"engine: {error}", retryable=True))
                raise

    return reported


def observe(output: Any, call: Call, *, first: bool) -> None:
    """Tell the call what this output says, and take the ticket out of it."""
    params = getattr(output, "kv_transfer_params", None)
    if params is not None:
        output.kv_transfer_params = None
    # Pooling outputs have one vector instead of sequences.
    sequences = output.outputs if isinstance(output.outputs, list) else []
    for sequence in sequences:
        if sequence.finish_reason in ("error", "abort"):
            call.fail(CallRefused(f"the engine ended the request: {sequence.finish_reason}", retryable=True))
            return
    # The API server never asks for cumulative outputs, so all tokens here are new.
    num_new_tokens = sum(len(sequence.token_ids) for sequence in sequences)
    if first:
        call.output(num_new_tokens, output.num_cached_tokens or 0, len(output.prompt_token_ids or ()))
    else:
        call.output(num_new_tokens, 0, 0)
    if call.leg == Leg.PREFILL and output.finished:
        call.granted(None if params is None else msgspec.json.encode(params))
