"""`action=profile` on a run of simulated engines, as shown in the documentation: killed in between, beside a user."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from launcher.profiling.points import Measured
from launcher.profiling.store import PointFile
from launcher.rundir import RunDir
from launcher.twin.profile import read
from tests.launching import Launch, launch, nothing_left
from tests.live import wait_for

# Few points and short ones.
ARGUMENTS = (
    "+cluster=local",
    "engine=sim",
    "run=demo",
    "~pools.prefill",
    "~pools.decode",
    "+pools.any={role: any}",
    "model.max_model_len=512",
    "engine.engine_args.max_num_seqs=4",
    "engine.engine_args.max_num_batched_tokens=256",
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        yield run


def points_of(run: RunDir) -> list[Measured]:
    path = run.path / "profile" / "any.points"
    return PointFile(path, run.read_plan().workers[0].spec.engine).measured


def lines(run: RunDir) -> int:
    path = run.path / "profile" / "any.points"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def ask(url: str, run: RunDir) -> httpx.Response:
    key = {"authorization": f"Bearer {(run.keys / 'api_key').read_text()}"}
    body = {"model": "tiny", "prompt": "word " * 50, "max_tokens": 16}
    return httpx.post(f"{url}/completions", json=body, headers=key, timeout=60)


def test_a_profile_that_was_killed_goes_on_and_says_what_it_found(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        url = launched.wait_ready()
        hasty = launch(tmp_path, "action=profile", "run=demo", "profile.time_limit_s=0.01")
        assert hasty.returncode == 1 and "too few points" in hasty.stderr
        (tmp_path / "first").mkdir()
        with Launch(tmp_path / "first", "action=profile", "run=demo", f"runs_dir={run.path.parent}") as first:
            wait_for(lambda: lines(run) > 2 or first.process.poll() is not None, "points to be measured", 60)
            first.process.send_signal(signal.SIGKILL)
            first.wait()
        before = points_of(run)
        assert len(before) >= 2, first.output
        (tmp_path / "second").mkdir()
        command = ("action=profile", "run=demo", f"runs_dir={run.path.parent}", "output=json")
        with Launch(tmp_path / "second", *command) as second:
            assert ask(url, run).status_code == 200, "users are served meanwhile"
            assert second.wait() == 0, second.output
        after = points_of(run)
        assert after[: len(before)] == before and len({m.point for m in after}) == len(after) > 10
        (found,) = json.loads(second.output.splitlines()[-1])
        assert found["knee"]["num_tokens"] >= 64 and len(found["proposals"]) == 3
        profile = read(run.path / "profile" / "any.npz")
        assert profile.max_kv_tokens == 2048 * 32 and profile.num_gpus == 1
        assert (run.path / "profile" / "any.png").stat().st_size > 1000
        refused = launch(tmp_path, "action=profile", "run=demo", "worker=any-7", "profile.time_limit_s=0")
        assert refused.returncode == 2 and "any-0" in refused.stderr and "profile.time_limit_s" in refused.stderr
        launched.interrupt()
        assert launched.wait() == 0
