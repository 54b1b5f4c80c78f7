"""The requests that a prediction is about, from what the user wrote: a trace, or a description.

Owns the choice of the block size in virtual time: coarse where prompts are long, as each block costs time to replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from launcher.schema import WorkloadConfig
from launcher.twin.traces import MOONCAKE_BLOCK_SIZE, BadTrace, Described, Request, coarse_step_s, jittered, read
from launcher.twin.traces import described as make_up

DEFAULT_REQUESTS, DEFAULT_RATE = 2000, 1.0
MOST_TOKENS = 10_000_000
# A block's last part is wasted as in an engine with larger blocks: about a half of a 32nd of a request.
BLOCKS_PER_REQUEST, SMALLEST_BLOCK = 32, 16


class Workload(msgspec.Struct, frozen=True):
    requests: list[Request]
    block_size: int
    num_left_out: int = 0  # that no worker could serve

    @property
    def span_s(self) -> float:
        return max(1e-9, self.requests[-1].at_s - self.requests[0].at_s)

    @property
    def rate(self) -> float:
        return len(self.requests) / self.span_s

    def mean(self, field: str) -> float:
        values: list[int] = [getattr(request, field) for request in self.requests]
        return sum(values) / len(values)


def workload_faults(config: WorkloadConfig) -> Iterator[str]:
    for name in ("rate", "requests", "prompt_tokens", "output_tokens"):
        value = getattr(config, name)
        if value is not None and not 0 < value <= MOST_TOKENS:
            yield f"workload.{name}: {value:g} is absurd; use more than 0, at most {MOST_TOKENS}"
    if not 0 <= config.reuse < 1:
        yield f"workload.reuse: {config.reuse:g} is not a part of a prompt; use 0 or more, less than 1"
    if not 0 <= config.spread <= 3:
        yield f"workload.spread: {config.spread:g} is absurd; use 0 to 3"
    if config.trace is not None and not Path(config.trace).expanduser().is_file():
        yield f"workload.trace: there is no file {config.trace}"


def make_workload(config: WorkloadConfig, max_model_len: int) -> Workload:
    """Of a good description. Requests that are longer than the model takes are left out. Raises BadTrace."""
    requests, block_size = _from_trace(config) if config.trace else _from_description(config)
    fitting = [request for request in requests if request.num_prompt + request.num_output <= max_model_len]
    if not fitting:
        raise BadTrace(f"no request fits into model.max_model_len={max_model_len}")
    return Workload(fitting, block_size, len(requests) - len(fitting))


def _from_trace(config: WorkloadConfig) -> tuple[list[Request], int]:
    assert config.trace is not None
    path = Path(config.trace).expanduser()
    coarse = read(path, MOONCAKE_BLOCK_SIZE)[: config.requests]
    block_size = _block_size(coarse)
    requests = read(path, block_size)[: config.requests]
    requests = jittered(requests, coarse_step_s(requests), 1.0, config.seed)
    if config.rate is None:
        return requests, block_size
    speed = config.rate / Workload(requests, block_size).rate
    return [replace(request, at_s=request.at_s / speed) for request in requests], block_size


def _from_description(config: WorkloadConfig) -> tuple[list[Request], int]:
    shape = Described(
        num_requests=config.requests or DEFAULT_REQUESTS,
        per_s=config.rate or DEFAULT_RATE,
        prompt_tokens=config.prompt_tokens,
        output_tokens=config.output_tokens,
        spread=config.spread,
        reuse=config.reuse,
        block_size=_size_for(config.prompt_tokens + config.output_tokens),
    )
    return make_up(shape, config.seed), shape.block_size


def _block_size(requests: Sequence[Request]) -> int:
    return _size_for(sum(r.num_prompt + r.num_output for r in requests) / len(requests))


def _size_for(num_tokens: float) -> int:
    size = SMALLEST_BLOCK
    while 2 * size * BLOCKS_PER_REQUEST <= num_tokens and size < MOONCAKE_BLOCK_SIZE:
        size *= 2
    return size
