"""Findings as people read them, and the curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.profiling.findings import Findings
from launcher.profiling.points import Decode, Measured, Prefill
from launcher.view.present import table


def findings_text(found: Findings) -> str:
    knee = found.knee
    seen = "" if knee.seen else "; no larger batch was measured, so perhaps later"
    rows = [("role", "max_num_batched_tokens", "max_num_seqs")]
    rows += [(p.role, f"{p.max_num_batched_tokens}", f"{p.max_num_seqs}") for p in found.proposals]
    lines = [
        f"{found.worker}: prefill saturates at {knee.num_tokens} prompt tokens at once,"
        f" {knee.tokens_per_s:.0f} tokens/s{seen}",
        f"the fitted step model is off by {found.prefill_error:.1%} for prefill, {found.decode_error:.1%} for decode"
        " (medians)",
        f"proposed for the next generation, for contexts of {found.context_tokens} tokens and the run's target ITL:",
        *table(rows),
    ]
    if found.num_disturbed:
        lines.append(f"{found.num_disturbed} points were measured beside requests of others and may be too slow")
    return "\n".join(lines)


def draw(measured: Sequence[Measured], found: Findings, path: Path) -> bool:
    """False: no library to draw with is installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (prefill, decode) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, batched in (("one prompt", False), ("several prompts", True)):
        rates = sorted(
            (m.point.num_tokens, m.point.num_tokens / m.seconds)
            for m in measured
            if isinstance(m.point, Prefill) and (m.point.batch > 1) == batched
        )
        prefill.plot([size for size, _ in rates], [rate for _, rate in rates], "o-", label=name)
    prefill.axvline(found.knee.num_tokens, color="0.6", linestyle=":")
    prefill.set(xscale="log", xlabel="prompt tokens at once", ylabel="tokens/s", title="prefill")
    prefill.legend()
    for context, points in _by_context(measured).items():
        decode.plot([n for n, _ in points], [ms for _, ms in points], "o-", label=f"{context} tokens")
    decode.set(xscale="log", ylim=(0, None), xlabel="sequences at once", ylabel="ms between tokens", title="decode")
    decode.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _by_context(measured: Sequence[Measured]) -> dict[int, list[tuple[int, float]]]:
    found: dict[int, list[tuple[int, float]]] = {}
    for m in measured:
        if isinstance(m.point, Decode):
            found.setdefault(m.point.context_tokens, []).append((m.point.concurrency, m.seconds * 1000))
    return {context: sorted(points) for context, points in sorted(found.items())}
