"""The picture of `benchmarks.peers`: bars for each part, Sluice beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.peer_figures import SLUICES

PANELS = (
    ("streams.us_per_token", "µs CPU per streamed token"),
    ("prompts.us_per_request", "µs CPU per 16 kB request"),
    ("steady.added_ttft_p99_ms", "ms added to TTFT, p99"),
    ("steady.added_itl_p99_ms", "ms added between tokens, p99"),
    ("saturation.requests_per_s", "requests/s at saturation"),
    ("memory.kib_per_stream", "KiB per open stream"),
)
CASES = {"whole": "aggregated", "split": "P/D"}


def draw(figures: Mapping[str, float], path: Path) -> None:
    figure, panels = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for panel, (what, title) in zip(panels.flat, PANELS, strict=True):
        names = [name for name in figures if name.endswith(f".{what}") and name.split(".")[1] in CASES]
        bars = [name.split(".")[:2] for name in sorted(names, key=lambda name: name.split(".")[1], reverse=True)]
        panel.barh(
            [f"{name}, {CASES[case]}" for name, case in bars],
            [figures[f"{name}.{case}.{what}"] for name, case in bars],
            color=["tab:blue" if name in SLUICES else "0.6" for name, _ in bars],
        )
        panel.invert_yaxis()
        panel.set_title(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
