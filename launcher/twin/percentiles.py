"""The one definition of a percentile that reports, benchmarks and predictions share.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], fraction: float) -> float:
    """Of no values: 0, as there was nothing to wait for."""
    return sorted(values)[min(len(values) - 1, int(len(values) * fraction))] if values else 0.0
