"""The picture of `benchmarks.routing`: one panel per figure, one line per policy over the loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.routing.measure import Measured

PANELS = (
    ("ttft_mean_s", "TTFT, mean, s"),
    ("ttft_p90_s", "TTFT, p90, s"),
    ("itl_p90_ms", "between tokens, p90, ms"),
    ("hits", "blocks found in a cache"),
    ("good", "requests within both targets"),
    ("imbalance", "busiest worker to the mean"),
)


def draw(measured: Measured, policies: Sequence[str], path: Path) -> None:
    loads = list(measured.rates)
    figure, panels = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for panel, (name, title) in zip(panels.flat, PANELS, strict=True):
        for policy in policies:
            panel.plot(loads, [measured.cases[policy, load][name] for load in loads], marker="o", label=policy)
        if name == "hits":
            for label, value in measured.caches.items():
                panel.axhline(value, color="0.6", linestyle=":" if label == "infinite" else "--", label=label)
        panel.set_ylim(bottom=0)
        panel.set_title(title)
    panels[0, 0].legend()
    panels[1, 0].legend()
    figure.supxlabel("load")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
