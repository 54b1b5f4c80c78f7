"""`action=profile`: which points, what they say of the engine that made them, and what stays of them in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.profiling.findings import findings_of, knee_of, profile_of
from launcher.profiling.gaps import Gaps
from launcher.profiling.points import (
    DECODE_STEPS,
    Decode,
    Limits,
    Measured,
    Point,
    Prefill,
    asked,
    next_point,
    points,
    spread,
)
from launcher.profiling.store import PointFile
from launcher.profiling.text import draw, findings_text
from launcher.twin.profile import fit, read, write
from proxy.spec import LatencyTargets
from tests.live import sim_engine
from workers.engines.sim import events as ev
from workers.engines.sim.core import Core

LIMITS = Limits(max_model_len=8192, kv_tokens=131_072, max_num_seqs=128, max_num_batched_tokens=2048)
TIMING = ev.Timing(decode_ms=(0.0, 20.0, 6.0))  # the rest as by default; a straight line, as memory is read


@given(
    st.builds(
        Limits,
        max_model_len=st.integers(400, 40_000),
        kv_tokens=st.integers(40_000, 500_000),
        max_num_seqs=st.integers(1, 512),
        max_num_batched_tokens=st.integers(64, 16_384),
    )
)
def test_every_point_fits_into_the_engine(limits: Limits) -> None:
    found = points(limits)
    assert len(set(found)) == len(found) > 3
    for point in found:
        wanted = asked(point, limits)
        assert wanted.prompt_tokens + wanted.max_tokens <= limits.max_model_len
        assert wanted.num_prompts * (wanted.prompt_tokens + wanted.max_tokens) <= limits.kv_tokens
        assert wanted.num_prompts <= limits.max_num_seqs
        assert wanted.max_tokens >= (DECODE_STEPS if isinstance(point, Decode) else 1)


def test_the_ends_come_first() -> None:
    assert list(spread("abcdefghi")) == list("aiecgbdfh")
    assert list(spread("a")) == ["a"] and list(spread("")) == []
    first = points(LIMITS)[:6]
    assert {Prefill(64), Prefill(8191), Decode(128, 1)} <= set(first)


def test_what_is_too_dear_for_the_time_left_waits() -> None:
    dear, cheap = Decode(4096, 16), Decode(128, 4)
    assert next_point([dear, cheap], [], 60.0) == dear, "nothing is known yet"
    slow = [Measured(point=Prefill(1000), seconds=1.0)]
    assert next_point([dear, cheap], slow, 60.0) == cheap
    assert next_point([dear, cheap], slow, 6000.0) == dear
    assert next_point([dear, cheap], slow, 0.1) == cheap, "it is tried"


# ---------------------------------------------------------------- against an engine whose times are known


def engine() -> Core:
    blocks = LIMITS.kv_tokens // 16
    config = ev.CoreConfig(
        block_size=16,
        num_blocks=blocks,
        max_num_seqs=LIMITS.max_num_seqs,
        max_num_batched_tokens=LIMITS.max_num_batched_tokens,
        lease_s=0.0,
        timing=TIMING,
    )
    return Core(config)


def all_came(gaps: Gaps, ids: Sequence[int], now: float) -> bool:
    """Of one step; whether that was enough."""
    enough = [gaps.came(id, 1, now) for id in ids]
    return any(enough)


def measured_in_virtual_time(point: Point) -> Measured | None:
    """All prompts at once; the simulator's core says when each token comes."""
    core, wanted, now = engine(), asked(point, LIMITS), 0.0
    gaps = Gaps(wanted.num_prompts, DECODE_STEPS)
    for id in range(wanted.num_prompts):
        prompt = [256 + id] * wanted.prompt_tokens
        core.apply(ev.Submit(id=id, prompt=prompt, max_tokens=wanted.max_tokens), now)
    while (due := core.next_at) is not None:
        now = due
        for effect in core.apply(ev.Tick(), now):
            if isinstance(effect, ev.Tokens) and all_came(gaps, effect.ids, now):
                gap_s = gaps.gap_s()
                assert gap_s is not None
                return Measured(point=point, seconds=gap_s, context_tokens=wanted.prompt_tokens + gaps.output_tokens())
    return Measured(point=point, seconds=now) if isinstance(point, Prefill) else None


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    found = [measured_in_virtual_time(point) for point in points(LIMITS)]
    assert None not in found, "they were always together"
    return [each for each in found if each is not None]


def test_points_and_fit_are_the_engines_own_step_times(measured: Sequence[Measured], tmp_path: Path) -> None:
    profile = profile_of(measured, LIMITS, num_gpus=2)
    assert profile is not None and profile.num_gpus == 2
    decodes = profile.x_kv_usage * profile.max_kv_tokens / profile.y_context_length
    true_ms = numpy.array([1000 * TIMING.pass_s(0, 1, usage) for usage in profile.x_kv_usage])
    assert numpy.abs(profile.z_itl / true_ms - 1).max() < 0.05, "blocks are reserved whole"
    fitted = fit(profile, LIMITS.max_num_batched_tokens)
    steps_ms = [
        1000 * fitted.model.decode_step_s(round(n), n * c)
        for n, c in zip(decodes, profile.y_context_length, strict=True)
    ]
    errors = numpy.abs(numpy.array(steps_ms) / true_ms - 1)
    assert numpy.median(errors) < 0.03 and errors.max() < 0.2, (
        "an engine computes what it decodes; the simulator does not"
    )
    for num_tokens in (100, 1000, 2048):
        assert fitted.model.prefill_s(num_tokens, 0, 2048) == pytest.approx(TIMING.pass_s(num_tokens, 0, 0.0), rel=0.05)
    write(tmp_path / "any.npz", profile)
    assert read(tmp_path / "any.npz").z_itl.tolist() == profile.z_itl.tolist()


def test_the_knee_is_the_smallest_batch_that_saturates() -> None:
    def prefill(num_tokens: int) -> Measured:
        return Measured(point=Prefill(64, num_tokens // 64), seconds=max(0.05, num_tokens / 10_000))

    knee = knee_of([prefill(64 << power) for power in range(8)])
    assert (knee.num_tokens, knee.tokens_per_s, knee.seen) == (512, 10_000, True)
    assert not knee_of([prefill(64 << power) for power in range(4)]).seen


def test_what_is_proposed_keeps_to_the_target(measured: Sequence[Measured], tmp_path: Path) -> None:
    profile = profile_of(measured, LIMITS, num_gpus=1)
    assert profile is not None
    found = findings_of("any-0", measured, profile, LIMITS, LatencyTargets(ttft_s=1.0, itl_s=0.03))
    by_role = {proposal.role: proposal for proposal in found.proposals}
    assert by_role["prefill"].max_num_batched_tokens >= found.knee.num_tokens > by_role["decode"].max_num_batched_tokens
    decode = by_role["decode"]
    prompts = decode.max_num_batched_tokens - decode.max_num_seqs
    usage = decode.max_num_seqs * found.context_tokens / LIMITS.kv_tokens
    assert prompts >= 64 and TIMING.pass_s(0, decode.max_num_seqs, usage) < 1.1 * 0.03
    assert f"prefill saturates at {found.knee.num_tokens} prompt tokens" in findings_text(found)
    assert draw(measured, found, tmp_path / "any.png") and (tmp_path / "any.png").stat().st_size > 1000


def test_too_few_points_are_no_profile(measured: Sequence[Measured]) -> None:
    assert profile_of(measured[:3], LIMITS, num_gpus=1) is None


# ---------------------------------------------------------------- the file


def test_what_was_measured_stays_and_another_engines_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "any.points"
    one, two = Measured(point=Prefill(64), seconds=0.1), Measured(point=Decode(128, 4), seconds=0.2, context_tokens=140)
    PointFile(path, sim_engine()).add(one)
    with path.open("ab") as file:
        file.write(b'{"point":{"type":"Pre')  # killed while it wrote
    again = PointFile(path, sim_engine())
    assert again.measured == [one]
    again.add(two)
    assert PointFile(path, sim_engine()).measured == [one, two]
    assert PointFile(path, sim_engine(max_model_len=99)).measured == []
    assert path.with_suffix(".old").exists()


def test_a_gap_counts_from_the_last_ones_first_token() -> None:
    gaps = Gaps(num_sequences=2, num_steps=2)
    assert not gaps.came(0, 1, 0.0) and not gaps.came(0, 1, 5.0), "alone it is faster or slower"
    assert gaps.gap_s() is None
    for step in range(3):
        assert not gaps.came(1, 1, 10.0 + step) and not gaps.came(0, 1, 10.0 + step)
    assert gaps.came(1, 4, 16.0), "several at once"
    assert gaps.gap_s() == pytest.approx((1.0 + 5 / 5) / 2)
