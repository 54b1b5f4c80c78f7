"""The leg rules below vLLM's OpenAI layer: what reaches the engine, and what a call learns from its outputs.

Owns no state: everything goes to the `Call` of the context. Requests are rewritten at the one point where
vLLM has validated and completed them and gives them its own id, so that a request which vLLM refuses by
itself has not used its ticket.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from workers.digest.chains import Media
from workers.host.calls import CURRENT, Call, CallRefused
from workers.host.prompt import Prompt
from workers.output_ids import groups
from workers.protocol import Leg, Ticket

Outputs = Callable[..., AsyncGenerator[Any, None]]  # vLLM's generate and encode
AddRequest = Callable[[EngineCoreRequest], Awaitable[None]]

REPLAYED_AT_ONCE = 32
_DEFAULTS = SamplingParams()
# Parameters with which a stream can be continued: the sampler's, the detokenizer's, vLLM's own, overwritten ones.
_CONTINUE = frozenset(
    [
        *("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "logit_bias", "allowed_token_ids"),
        *("max_tokens", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "include_stop_str_in_output"),
        *("detokenize", "skip_special_tokens", "spaces_between_special_tokens", "output_kind", "stream_interval"),
        *("skip_clone", "skip_reading_prefix_cache", "output_text_buffer_length"),
        *("_eos_token_id", "_all_stop_token_ids", "_watermarking_skipped"),
        "extra_args",
    ]
)


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
    if request.sampling_params is not None:
        call.keeps_ids = call.keeps_ids and continues_exactly(request)
        call.resampled = request.sampling_params.temperature > 0
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


def continues_exactly(request: EngineCoreRequest) -> bool:
    """Whether an engine for which the output so far is a part of the prompt goes on as this one would.

    Parameters are named that allow it: of another one, what it does may depend on what is prompt and what is output.
    """
    if request.mm_features or request.prompt_embeds is not None:
        return False
    params = request.sampling_params
    asked = (n for n in SamplingParams.__struct_fields__ if n not in _CONTINUE and getattr(params, n))
    return all(getattr(params, name) == getattr(_DEFAULTS, name) for name in asked)


def resuming(add: AddRequest, states: Mapping[str, Any]) -> AddRequest:
    """vLLM's way of a request to the engine's process. Its own state of the request (`states`, which exist by now)
    stays that of the whole answer: stop strings, text that waits for more of a character, counts. Only the engine
    takes the output so far for a part of the prompt.
    """

    async def resumed(request: EngineCoreRequest) -> None:
        call = CURRENT.get()
        if call is not None and call.resume is not None:
            outputs = groups(call.resume.output_ids)
            if call.leg != Leg.PREFILL:
                call.replay = replay(states[request.request_id], outputs)
            request = with_output(request, list(chain.from_iterable(outputs)), call.leg)
        await add(request)

    return resumed


def replay(state: Any, outputs: Sequence[list[int]]) -> list[Any]:
    """What vLLM made of these outputs when it saw them first."""
    made = []
    for token_ids in outputs:
        state.detokenizer.update(token_ids, False)
        made.append(state.make_request_output(token_ids, None, None, None))
    return made


def with_output(request: EngineCoreRequest, token_ids: Sequence[int], leg: str) -> EngineCoreRequest:
    params = copy.copy(request.sampling_params)
    assert params is not None
    if leg != Leg.PREFILL:
        assert params.max_tokens is not None
        params.max_tokens -= len(token_ids)
        params.min_tokens = max(0, params.min_tokens - len(token_ids))
    prompt = [*(request.prompt_token_ids or ()), *token_ids]
    return msgspec.structs.replace(request, prompt_token_ids=prompt, sampling_params=params)


def reporting(outputs: Outputs) -> Outputs:
    """vLLM's generate or encode, whose outputs report to the call of the context."""

    async def reported(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        call = CURRENT.get()
        async with contextlib.aclosing(outputs(*args, **kwargs)) as stream:
            try:
                first = True
                async for output in stream:
                    if call is not None:
                        async for shown in replayed(call):
                            yield shown
                        observe(output, call, first=first)
                    first = False
                    yield output
            except (EngineDeadError, EngineGenerateError) as error:
                if call is not None:
                    call.fail(CallRefused(f"engine: {error}", retryable=True))
                raise

    return reported


async def replayed(call: Call) -> AsyncGenerator[Any, None]:
    """The app sees them again, before the first that is new; other streams are not to wait for all of it."""
    shown, call.replay = call.replay, ()
    for number, output in enumerate(shown, 1):
        yield output
        if number % REPLAYED_AT_ONCE == 0:
            await asyncio.sleep(0)


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
    if call.keeps_ids:
        call.outputs(sequences[0].token_ids, finished=output.finished)
    if first:
        call.output(num_new_tokens, output.num_cached_tokens or 0, len(output.prompt_token_ids or ()))
    else:
        call.output(num_new_tokens, 0, 0)
    if call.leg == Leg.PREFILL and output.finished:
        call.granted(None if params is None else msgspec.json.encode(params))
