"""What the simulated engine tells of its start, in its log as vLLM does: the words, and how they are read again."""

from __future__ import annotations

import re

from workers.stages import WEIGHTS

WEIGHTS_READ = "simulated weights took %.2f s"
_WEIGHTS = re.compile(r"simulated weights took ([\d.]+) s")


def stages_told(line: str) -> dict[str, float]:
    match = _WEIGHTS.search(line)
    return {WEIGHTS: float(match[1])} if match else {}
