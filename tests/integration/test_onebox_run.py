"""`python -m launcher +cluster=onebox` with simulated engines: whole runs on a real Slurm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.jobs import Row, controller_name, job_name
from launcher.planner.word import Word
from launcher.rundir import RunDir, read_optional
from launcher.scheduler import slurm
from tests.launching import Launch, environment, launch, nothing_left
from tests.live import SOURCE, wait_for
from tests.onebox import OneBox

pytestmark = pytest.mark.slurm

ARGUMENTS = ("+cluster=onebox", "engine=sim", "run=demo", "+pools.decode.replicas=1", "controller.poll_interval_s=1")


@pytest.fixture
def run(tmp_path: Path, onebox: OneBox) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    try:
        with nothing_left(run):
            yield run
    finally:
        slurm.cancel([row.job for row in slurm.run_rows("demo", run.path) if not row.ended])
        wait_for(lambda: onebox.jobs() == [], "Slurm to be empty", 60)


def live_rows(run: RunDir) -> dict[str, Row]:
    return {row.name: row for row in slurm.run_rows("demo", run.path) if not row.ended}


def status(folder: Path) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(launch(folder, "action=status", "run=demo", "output=json").stdout)
    return shown


def endpoint(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.endpoint.read_text())
    return found


def ask(run: RunDir) -> int:
    """A completion through the endpoint, as a client would."""
    return post(run, max_tokens=4).status_code


def read_stream(run: RunDir, num_tokens: int) -> str:
    return post(run, max_tokens=num_tokens, stream=True, ignore_eos=True).text


def post(run: RunDir, **fields: Any) -> httpx.Response:
    found = endpoint(run)
    headers = {"authorization": f"Bearer {Path(found['api_key_file']).read_text()}"}
    body = {"model": "tiny", "prompt": "word " * 200, **fields}
    return httpx.post(f"{found['url']}/completions", json=body, headers=headers, timeout=60)


def check_overview(run: RunDir) -> None:
    """Which GPUs a worker has on which node, by its agent and by the queue: what the page draws."""
    url = json.loads(run.endpoint.read_text())["url"].removesuffix("/v1")
    key = (run.keys / "reader_key").read_text()
    shown = httpx.get(f"{url}/overview", headers={"authorization": f"Bearer {key}"}).raise_for_status().json()
    jobs = {job["worker"]: job for job in shown["jobs"]}
    for worker in shown["workers"]:
        job = jobs[worker["worker"]]
        assert (worker["node"], worker["job"]) == (job["nodes"][0], job["job"])
        assert len(worker["gpus"]) == job["gpus"] == 1 and set(worker["gpus"]) < set(range(4))
    assert (shown["gpus_per_node"], shown["controller_silent_s"]) == (4, 0.0)


def test_a_run_on_slurm_from_up_to_stop(tmp_path: Path, run: RunDir) -> None:
    up = launch(tmp_path, *ARGUMENTS)
    assert up.returncode == 0, up.stdout + up.stderr
    assert "queued" in up.stdout and "\nready\n" in up.stdout and "action=stop run=demo" in up.stdout
    prefill, decode = job_name("demo", "prefill-0", 0), job_name("demo", "decode-0", 0)
    assert set(live_rows(run)) == {controller_name("demo"), prefill, decode}
    assert ask(run) == 200

    shown = status(tmp_path)
    assert shown["source"] == "live" and shown["ready"]
    assert all(worker["job"] and worker["node"] and worker["end_time"] for worker in shown["workers"])
    assert launch(tmp_path, *ARGUMENTS).returncode == 2, "it is live"
    check_overview(run)

    # A worker whose job is lost comes back as a new generation.
    slurm.cancel([live_rows(run)[decode].job])
    successor = job_name("demo", "decode-0", 1)
    wait_for(lambda: successor in live_rows(run), "a new generation of decode-0", 60)
    wait_for(lambda: status(tmp_path)["ready"], "the run to be ready again", 60)
    assert ask(run) == 200

    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert live_rows(run) == {}
    assert status(tmp_path)["phase"] == "stopped"
    check_report(tmp_path)


def check_report(folder: Path) -> None:
    """Two requests, three lives of two workers, each with a GPU; one was cancelled by somebody else."""
    report = json.loads(launch(folder, "action=report", "run=demo", "output=json").stdout)
    assert report["keys"]["default"]["requests"] == report["totals"]["requests"] == 2
    lives = {(use["worker"], use["generation"]): use for use in report["generations"]}
    assert set(lives) == {("prefill-0", 0), ("decode-0", 0), ("decode-0", 1)}
    assert all(use["gpus"] == 1 and use["start_s"] > 0 and use["serve_s"] > 0 for use in lives.values())
    assert 0 < report["gpu_hours"] < 0.5 and report["tokens_per_gpu_hour"] > 0
    told = [(event["planned"], event["what"], event["who"]) for event in report["events"]]
    assert (False, "worker lost", "decode-0.g0") in told and (True, "stop", "decode-0.g1") in told


def test_an_idle_run_gives_its_gpus_back_and_takes_them_again_when_somebody_asks(tmp_path: Path, run: RunDir) -> None:
    scaled = ("planner=on", "planner.idle_to_zero_s=3", "planner.budget_gpu_hours=10", "proxy.deadlines.queue_s=50")
    assert launch(tmp_path, *ARGUMENTS, *scaled).returncode == 0
    wait_for(lambda: set(live_rows(run)) == {controller_name("demo")}, "the workers to be gone", 120)
    wait_for(lambda: ask(run) == 200, "workers to answer again", 180)
    generations = {row.name for row in slurm.run_rows("demo", run.path)}
    assert {job_name("demo", worker, 1) for worker in ("prefill-0", "decode-0")} <= generations
    word = read_optional(run.planner, Word) or Word()
    told = [(one.pool, one.before, one.after, one.why, one.done) for one in word.scaled]
    assert set(told) >= {(pool, 1, 0, "no request for 3 s", True) for pool in ("prefill", "decode")}
    assert set(told) >= {(pool, 0, 1, "requests wait", True) for pool in ("prefill", "decode")}
    assert 0 < word.gpu_hours < 1
    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0 and live_rows(run) == {}


def kill_controller(run: RunDir) -> Row:
    """As a node's failure would."""
    controller = live_rows(run)[controller_name("demo")]
    subprocess.run(["scancel", "--signal=KILL", controller.job], check=True)
    wait_for(lambda: controller_name("demo") not in live_rows(run), "the controller's job to end", 60)
    return controller


def test_a_lost_controller_is_brought_back_by_the_same_command(tmp_path: Path, run: RunDir) -> None:
    assert launch(tmp_path, *ARGUMENTS).returncode == 0
    workers = {name: row.job for name, row in live_rows(run).items() if name != controller_name("demo")}
    controller = kill_controller(run)
    shown = launch(tmp_path, "action=status", "run=demo").stdout
    assert "run demo: lost (Slurm, asked just now; status.json, " in shown and "brings one back" in shown
    assert all(f"{job} RUNNING" in shown for job in workers.values())

    other = launch(tmp_path, *ARGUMENTS, "engine.engine_args.max_num_seqs=7")
    assert other.returncode == 2 and "engine.engine_args.max_num_seqs: is " in other.stderr, other.stderr
    again = launch(tmp_path, *ARGUMENTS)
    assert again.returncode == 0 and "has lost its controller" in again.stdout, again.stdout + again.stderr
    assert ask(run) == 200
    after = {name: row.job for name, row in live_rows(run).items()}
    assert after.pop(controller_name("demo")) != controller.job
    assert after == workers, "the workers were left alone"

    kill_controller(run)
    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0 and live_rows(run) == {}, "stop works without a controller"


def test_workers_hand_over_before_their_walltime_though_the_controller_is_killed(tmp_path: Path, run: RunDir) -> None:
    arguments = (*ARGUMENTS, "cluster.walltime_min=1", "controller.walltime_min=30", "engine.drain_timeout_s=5")
    assert launch(tmp_path, *arguments).returncode == 0
    successors = {job_name("demo", worker, 1) for worker in ("prefill-0", "decode-0")}
    wait_for(lambda: bool(successors & set(live_rows(run))), "a successor to be submitted", 60)
    assert {job_name("demo", worker, 0) for worker in ("prefill-0", "decode-0")} <= set(live_rows(run)), "beside it"
    kill_controller(run)
    again = launch(tmp_path, *arguments)
    assert again.returncode == 0, again.stdout + again.stderr

    def all_followed() -> bool:
        workers = [worker for worker in status(tmp_path)["workers"] if not worker["beside"]]
        return all(worker["generation"] >= 1 and worker["phase"] == "ready" for worker in workers)

    wait_for(all_followed, "both successors to serve", 60)
    assert ask(run) == 200
    names = [row.name for row in slurm.run_rows("demo", run.path) if row.name != controller_name("demo")]
    assert len(names) == len(set(names)), "nothing was submitted twice"
    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0 and live_rows(run) == {}


def test_a_controller_whose_job_ends_is_followed_by_one_whose_proxy_serves_already(tmp_path: Path, run: RunDir) -> None:
    slow = "+engine.engine_args.timing={decode_ms:[0,0,20]}"
    assert launch(tmp_path, *ARGUMENTS, slow, "controller.walltime_min=2").returncode == 0
    before = live_rows(run)
    first = before.pop(controller_name("demo"))
    url = endpoint(run)["url"]

    def controllers() -> set[str]:
        rows = slurm.run_rows("demo", run.path)
        return {row.job for row in rows if row.name == controller_name("demo") and not row.ended}

    wait_for(lambda: len(controllers()) == 2, "another controller's job", 110)
    with ThreadPoolExecutor() as askers:
        stream = askers.submit(read_stream, run, 500)
        while first.job in controllers():
            assert ask(run) == 200, "there is a proxy at every moment"
        assert stream.result().endswith("data: [DONE]\n\n"), "its proxy has waited for it"
    assert endpoint(run)["url"] != url and len(controllers()) == 1
    wait_for(lambda: status(tmp_path)["source"] == "live" and status(tmp_path)["ready"], "the run to be ready", 60)
    after = live_rows(run)
    assert {name: after[name].job for name in before} == {name: row.job for name, row in before.items()}
    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0 and live_rows(run) == {}


def test_a_chain_of_jobs_goes_on_where_one_ends_and_nothing_is_submitted_later(tmp_path: Path, run: RunDir) -> None:
    assert launch(tmp_path, *ARGUMENTS, "cluster.chain_length=2").returncode == 0
    rows = [row for row in slurm.run_rows("demo", run.path) if not row.ended]
    assert Counter((row.state, row.reason) for row in rows) == {("RUNNING", ""): 3, ("PENDING", "Dependency"): 3}
    ended = (controller_name("demo"), job_name("demo", "decode-0", 0))
    slurm.cancel([row.job for row in rows if row.state == "RUNNING" and row.name in ended])

    def followed() -> bool:
        seen = status(tmp_path)
        lives = {(worker["worker"], worker["generation"], worker["phase"]) for worker in seen["workers"]}
        serves = seen["source"] == "live" and seen["url"] == endpoint(run)["url"]
        return serves and lives == {("prefill-0", 0, "ready"), ("decode-0", 1, "ready")}

    wait_for(followed, "the next controller, proxy and decode worker to serve", 120)
    assert ask(run) == 200
    shown = launch(tmp_path, "action=status", "run=demo").stdout
    assert "chain: further jobs of each worker in the queue: 0; action=restart" in shown, shown
    assert {row.job for row in slurm.run_rows("demo", run.path)} <= {row.job for row in rows}, (
        "Slurm may have forgotten"
    )
    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0 and live_rows(run) == {}


def test_a_failed_launch_cancels_everything_and_names_the_job(tmp_path: Path, run: RunDir) -> None:
    failed = launch(tmp_path, *ARGUMENTS, "engine.environment.PYTHONHOME=/nonexistent")
    assert failed.returncode == 1
    assert "-0.g0 (job " in failed.stderr and "FAILED (NonZeroExitCode" in failed.stderr
    assert "No module named 'encodings'" in failed.stderr, "the end of the job's log"
    assert live_rows(run) == {}


def test_ctrl_c_while_queued_detaches_and_says_how_to_return(tmp_path: Path, run: RunDir, onebox: OneBox) -> None:
    others = onebox.ask("sbatch", "--parsable", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1000")
    with Launch(tmp_path, *ARGUMENTS) as launched:
        wait_for(lambda: "queued (Resources)" in launched.output, "Slurm's reason", 60)
        launched.interrupt()
        assert launched.wait() == 130, "it never served"
        assert "detached" in launched.output and "action=status run=demo" in launched.output
    assert live_rows(run)[controller_name("demo")].state == "PENDING"
    shown = launch(tmp_path, "action=status", "run=demo").stdout
    assert "(Slurm, asked just now; no controller has written anything yet)" in shown
    assert re.search(r"^controller +queued +\d+ PENDING +Resources", shown, re.MULTILINE), shown
    assert status(tmp_path)["controller_job"]["reason"] == "Resources"
    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0 and live_rows(run) == {}, stopped.stderr
    slurm.cancel([others])


def test_the_launcher_in_a_job_of_its_own(tmp_path: Path, run: RunDir, onebox: OneBox) -> None:
    """slurm/controller.sbatch: nothing runs on the login node; ending the job ends the run."""
    script = SOURCE / "slurm" / "controller.sbatch"
    submitted = subprocess.run(
        ["sbatch", "--parsable", "--mem=100M", "--time=60", str(script), *ARGUMENTS],
        cwd=tmp_path,
        env={**environment(), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    job = submitted.stdout.strip()
    output = tmp_path / f"sluice-{job}.out"
    wait_for(lambda: output.exists() and "\nready\n" in output.read_text(), "the run to be ready", 90)
    assert ask(run) == 200
    assert controller_name("demo") not in live_rows(run)
    slurm.cancel([job])
    wait_for(lambda: onebox.jobs() == [], "Slurm to hold no job of it", 60)
