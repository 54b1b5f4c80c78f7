"""`python -m benchmarks.forecast` at its smallest."""

import subprocess
import sys
from pathlib import Path

import msgspec

from tests.live import SOURCE


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.forecast", *arguments]
    return subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=60)


def test_it_measures_what_is_made_up_and_what_a_trace_says(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 500 * n, "input_length": 600, "output_length": 9, "hash_ids": [n % 7, 9]} for n in range(4000)
    ]
    trace = tmp_path / "mine.jsonl"
    trace.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    done = ask("hours=1", "seeds=1", f"traces={trace}", f"output={tmp_path}")
    figures = msgspec.json.decode(done.stdout.splitlines()[-1])["figures"]
    assert {"ramp", "noise_worst", "mine.computed", "mine.output"} <= set(figures)
    assert (tmp_path / "forecast.json").exists()


def test_a_trace_that_is_not_there_is_refused() -> None:
    done = ask("traces=nowhere.jsonl")
    assert done.returncode == 1
    assert "nowhere.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
