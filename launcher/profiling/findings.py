"""What measured points say of an engine: its profile, where prefill saturates, and limits for the next generation.

Pure. Proposals are vLLM's own flags, per role.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy

from launcher.profiling.points import Decode, Limits, Measured, Prefill
from launcher.twin.profile import MIN_POINTS, Fit, Profile, fit
from launcher.twin.step_model import StepModel
from proxy.spec import LatencyTargets
from workers.spec import Role

SATURATED = 0.9  # of the best throughput
LEAST_BATCH = 64  # and proposals are multiples of it


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest batch of prompt tokens that saturates the engine."""

    num_tokens: int
    tokens_per_s: float
    seen: bool  # larger batches were measured and are hardly faster


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    max_num_batched_tokens: int
    max_num_seqs: int


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    worker: str
    knee: Knee
    prefill_error: float  # of the fit, medians, parts of what was measured
    decode_error: float
    model: StepModel
    proposals: tuple[Proposal, ...]
    context_tokens: int  # that who decodes is taken to have
    num_disturbed: int  # points beside requests of others


def profile_of(measured: Sequence[Measured], limits: Limits, num_gpus: int) -> Profile | None:
    """None: too few points yet."""
    alone = [(m.point, m.seconds) for m in measured if isinstance(m.point, Prefill) and m.point.batch == 1]
    prefills = sorted((point.prompt_tokens, seconds) for point, seconds in alone)
    decodes = [(m.point.concurrency, m.context_tokens, m.seconds) for m in measured if isinstance(m.point, Decode)]
    if min(len(prefills), len(decodes)) < MIN_POINTS:
        return None
    isl, ttft_s = numpy.array(prefills, dtype=float).T
    concurrency, context, itl_s = numpy.array(decodes, dtype=float).T
    return Profile(
        prefill_isl=isl,
        prefill_ttft=ttft_s * 1000,
        prefill_thpt_per_gpu=isl / ttft_s / num_gpus,
        x_kv_usage=concurrency * context / limits.kv_tokens,
        y_context_length=context,
        z_itl=itl_s * 1000,
        z_thpt_per_gpu=concurrency / itl_s / num_gpus,
        max_kv_tokens=limits.kv_tokens,
    )


def knee_of(measured: Sequence[Measured]) -> Knee:
    """Of one prefill or more."""
    rates = [(m.point.num_tokens, m.point.num_tokens / m.seconds) for m in measured if isinstance(m.point, Prefill)]
    best = max(rate for _, rate in rates)
    num_tokens, rate = min((size, rate) for size, rate in rates if rate >= SATURATED * best)
    return Knee(num_tokens=num_tokens, tokens_per_s=rate, seen=max(size for size, _ in rates) >= 2 * num_tokens)


def findings_of(
    worker: str, measured: Sequence[Measured], profile: Profile, limits: Limits, targets: LatencyTargets
) -> Findings:
    fitted: Fit = fit(profile, limits.max_num_batched_tokens)
    knee = knee_of(measured)
    context = float(numpy.median(profile.y_context_length))
    return Findings(
        worker=worker,
        knee=knee,
        prefill_error=fitted.prefill_error,
        decode_error=fitted.decode_error,
        model=fitted.model,
        proposals=tuple(_proposal(role, fitted.model, knee, limits, targets, context) for role in Role),
        context_tokens=round(context),
        num_disturbed=sum(m.num_others > 0 for m in measured),
    )


def _proposal(
    role: Role, model: StepModel, knee: Knee, limits: Limits, targets: LatencyTargets, context: float
) -> Proposal:
    """Prefill: as small a batch as saturates, so that a short prompt waits little for a long one. Who decodes: as many
    sequences as keep to the time between tokens, and beside them no more of prompts in a step than it leaves room for.
    """
    saturating = -(-knee.num_tokens // LEAST_BATCH) * LEAST_BATCH
    if role is Role.PREFILL:
        return Proposal(role=role, max_num_batched_tokens=saturating, max_num_seqs=limits.max_num_seqs)
    num_seqs = max(1, min(limits.max_num_seqs, int(limits.kv_tokens / context)))
    while num_seqs > 1 and model.decode_step_s(num_seqs, num_seqs * context) > targets.itl_s:
        num_seqs -= 1
    size = saturating
    while size > LEAST_BATCH and _mixed_s(model, size, num_seqs, context) > targets.itl_s:
        size //= 2
    return Proposal(role=role, max_num_batched_tokens=size + num_seqs, max_num_seqs=num_seqs)


def _mixed_s(model: StepModel, num_tokens: int, num_seqs: int, context: float) -> float:
    return model.chunk_step_s(num_tokens, num_tokens * context / 2, num_seqs, int(num_seqs * context), 0.0)
