"""What vLLM's log tells of its start. Its core runs in processes of its own and says these times nowhere else.

Pure, and imports neither torch nor vllm: the agent reads the lines as they pass. Lines that a new version words
differently are missed, and their time stays in the stage around them.
"""

from __future__ import annotations

import re

from workers.stages import COMPILE, WARM_UP, WEIGHTS

_WEIGHTS = re.compile(r"Loading weights took ([\d.]+) seconds")
_WARM_UP = re.compile(r"init engine \(.*\) took ([\d.]+) s(?: \(compilation: ([\d.]+) s)?")


def stages_told(line: str) -> dict[str, float]:
    """Parts of the load that have ended with this line, in seconds."""
    if match := _WEIGHTS.search(line):
        return {WEIGHTS: float(match[1])}
    if match := _WARM_UP.search(line):
        whole, compiling = float(match[1]), float(match[2] or 0)
        return ({COMPILE: compiling} if compiling else {}) | {WARM_UP: max(0.0, whole - compiling)}
    return {}
