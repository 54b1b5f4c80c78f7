"""The picture of `benchmarks.proxy`: where the CPU of a token goes, and the proxy's memory over requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

BARS = (("floor", "one write per token"), ("whole", "two workers"), ("split", "prefill + decode"))


def draw(figures: Mapping[str, float], curve: Sequence[tuple[int, float]], path: Path) -> None:
    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    floor = figures["floor.streams.us_per_token"]
    proxy = [figures[f"{case}.streams.proxy_us_per_token"] for case in ("whole", "split")]
    both = [figures[f"{case}.streams.proxy_and_host_us_per_token"] for case in ("whole", "split")]
    names = [label for _, label in BARS]
    cost.bar(names, [floor, *proxy], color=["0.6", "tab:blue", "tab:blue"])
    cost.bar(names[1:], [a - b for a, b in zip(both, proxy, strict=True)], bottom=proxy, color="tab:orange")
    cost.axhline(floor, color="0.6", linestyle=":")
    cost.set_ylabel("µs CPU per streamed token")
    cost.set_title("proxy (blue) and host transport (orange)")
    memory.plot([count for count, _ in curve], [rss for _, rss in curve])
    memory.set_ylim(0, 1.25 * max(rss for _, rss in curve))
    memory.set_xlim(left=0)
    memory.set_xlabel("requests")
    memory.set_ylabel("MiB resident, proxy")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
