"""`python -m benchmarks.batch` at its smallest: both ways answer everything, and no process is left behind.

Says nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benching import processes_of, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """vLLM's sockets lie in it, whose paths may have 107 characters: pytest's own folders can be too deep."""
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as name:
        yield Path(name)


def test_it_measures_a_batch_beside_vllms_own_engine_and_leaves_nothing(folder: Path) -> None:
    small = ("requests=10", "repeats=1", "layers=2", "width=256", "prefix_words=40")
    with start("batch", folder, *small) as process:
        output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    figures = result["figures"]
    assert result["benchmark"] == "batch" and all(math.isfinite(value) for value in figures.values())
    for case in ("mixed", "scattered"):
        assert figures[f"{case}.batch_tokens_per_s"] > 0 and figures[f"{case}.generate_tokens_per_s"] > 0
        assert figures[f"{case}.cpu_engines"] > 0
    assert processes_of(folder) == []
