"""What the planner expects and has decided, for people: lines of text and a picture.

Owns no figure: all stands in `planner.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.planner.forecast import BUCKET_S, Bucket
from launcher.planner.roles import Role
from launcher.planner.scale import Scaled
from launcher.planner.word import ON, Word

KINDS = {"computed": "prompts", "cached": "cached prompts", "output": "answers"}
SOON_MIN = 15


def planner_lines(word: Word | None) -> list[str]:
    """Nothing where nobody plans."""
    if word is None:
        return []
    demand = "; ".join(filter(None, (_ahead(kind, word) for kind in KINDS)))
    drift = f"; the mix becomes {word.drift}" if word.drift else ""
    lines = [f"demand, tokens/s: {demand}{drift}"] if demand else []
    clear = sorted(worker for worker, role in word.roles.items() if role is Role.DECODE)
    if clear:
        keeps = "keeps" if word.mode == ON else "would keep"
        lines.append(f"the planner {keeps} clear of prompts: {', '.join(clear)}")
    if word.wanted:
        sizes = ", ".join(f"{pool} {len(names)}" for pool, names in word.wanted.items())
        says = "wants" if word.mode == ON else "would want"
        lines.append(f"the planner {says} {sizes} workers; {word.gpu_hours:.2f} GPU-hours so far")
    return lines + [scaled_text(one) for one in word.scaled[-1:]]


def _ahead(kind: str, word: Word) -> str:
    now = [getattr(bucket, kind) for bucket in word.buckets[-5:]]
    soon = word.demand.get(kind, {}).get(SOON_MIN)
    if not now or soon is None:
        return ""
    there = f"{soon.mean:.0f} in {SOON_MIN} min ({soon.low:.0f} to {soon.high:.0f})"
    return f"{KINDS[kind]} {sum(now) / len(now):.0f}, {there}"


def scaled_text(one: Scaled) -> str:
    need = ""
    if one.need is not None:
        need = f"; {one.need.now} needed now, at most {one.need.ahead} in {one.lead_s:.0f} s"
    might = "" if one.done else ", if it might"
    return f"last: {one.pool} from {one.before} to {one.after} workers{might}: {one.why}{need}"


def draw(word: Word, path: Path) -> bool:
    """What was, and what is expected, by kind. False: matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(len(Bucket._fields), 1, figsize=(8, 7), sharex=True, layout="constrained")
    for kind, axes in zip(Bucket._fields, all_axes, strict=True):
        _draw_kind(axes, kind, word)
    all_axes[-1].set_xlabel("minutes from now")
    figure.suptitle(f"demand{f', becoming {word.drift}' if word.drift else ''}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _draw_kind(axes: Any, kind: str, word: Word) -> None:
    past = [getattr(bucket, kind) for bucket in word.buckets]
    axes.plot([(number - len(past)) * BUCKET_S / 60 for number in range(len(past))], past, label="measured")
    ahead = word.demand.get(kind, {})
    minutes = list(ahead)
    axes.fill_between(minutes, [i.low for i in ahead.values()], [i.high for i in ahead.values()], alpha=0.2)
    axes.plot(minutes, [i.mean for i in ahead.values()], "o--", label="forecast, nine of ten within")
    axes.set_ylabel(f"{KINDS[kind]}, tokens/s")
    axes.legend(loc="upper left", fontsize="small")
