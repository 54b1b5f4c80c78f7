"""The simulated engine's own arguments, and what it reports of itself.

Pure. An unknown or wrong argument is refused with the known ones; limits that could never work are
refused here, so that the scheduler need not look for them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from workers.engines.sim.events import CoreConfig, Positive, Timing
from workers.protocol import Capabilities
from workers.spec import EngineSpec

VERSION = "sim-1"
DEFAULT_MAX_MODEL_LEN = 8192
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class SimArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: Literal["scheduled", "instant"] = "scheduled"
    # The instant mode's: time between two tokens of a stream, into how many groups the streams are spread over
    # that time, and the length of a token.
    step_ms: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    step_groups: Positive = 1
    token_chars: Positive = 6
    num_blocks: Positive = 2048
    max_num_seqs: Positive = 128
    max_num_batched_tokens: Positive = 8192
    timing: Timing = Timing()
    read_timeout_s: Seconds = 5.0  # for a holder of KV to answer
    load_time_s: Seconds = 0.0
    warm_up_s: Seconds = 0.0  # after the weights are read, which it then tells apart
    # Faults, for tests.
    fail_at_start: str | None = None

    def core(self, spec: EngineSpec) -> CoreConfig:
        return CoreConfig(
            block_size=spec.block_size,
            num_blocks=self.num_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            lease_s=spec.handoff.lease_s if spec.handoff is not None else 0.0,
            timing=self.timing,
        )


def read_args(spec: EngineSpec) -> SimArgs:
    """Raises ValueError naming the field."""
    try:
        args = msgspec.convert(spec.args, SimArgs)
    except msgspec.ValidationError as error:
        known = ", ".join(SimArgs.__struct_fields__)
        raise ValueError(f"engine arguments of the simulator: {error}; known: {known}") from error
    num_tokens = args.num_blocks * spec.block_size
    if max_model_len(spec) > num_tokens:
        raise ValueError(
            f"max_model_len is {max_model_len(spec)}, but num_blocks={args.num_blocks} hold {num_tokens} tokens: "
            "raise num_blocks or lower max_model_len"
        )
    return args


def max_model_len(spec: EngineSpec) -> int:
    return DEFAULT_MAX_MODEL_LEN if spec.max_model_len is None else spec.max_model_len


def capabilities(spec: EngineSpec, args: SimArgs) -> Capabilities:
    return Capabilities(
        models=spec.served_names,
        max_model_len=max_model_len(spec),
        block_size=spec.block_size,
        num_blocks=args.num_blocks,
        max_num_seqs=args.max_num_seqs,
        dp_ranks=1,
        can_prefill=spec.handoff is not None,
        can_decode=spec.handoff is not None,
        kv_format=f"sim-{spec.block_size}-{spec.model_path}" if spec.handoff is not None else "",
    )
