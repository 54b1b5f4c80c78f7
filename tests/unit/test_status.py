"""status, present and live_status: what a run looks like, whoever tells it."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console

from launcher.control.effects import DesiredRead, Failure, FleetSeen, QueueRead, Submitted
from launcher.control.reconcile import Reconciler
from launcher.control.succession import Policy
from launcher.jobs import Row, job_name
from launcher.rundir import SERVE, STOP, Desired, Endpoint, RunDir
from launcher.view.live_status import overlay, overlay_queue
from launcher.view.logs import logs_of, tail
from launcher.view.present import duration, failure_text, ready_text, status_text
from launcher.view.progress import Progress
from launcher.view.run_status import ProcessStatus, RunStatus, WorkerStatus
from launcher.view.status import job_views, run_status
from tests.unit.planning import planned
from workers.controller_messages import FleetView, WorkerView

PLAN = planned("+cluster=onebox", "engine=sim", "run=demo")
WORKERS = tuple(spec.spec.worker for spec in PLAN.workers)


def launched() -> Reconciler:
    """Every worker submitted as job 100, 101, ..."""
    core = Reconciler.restore("demo", [], {}, served=False, policy=Policy(drain_s=1.0))
    core.apply(DesiredRead(Desired(target=SERVE, workers=WORKERS, since=0.0)), 1.0)
    core.apply(QueueRead((), 1.0), 1.0)
    for index, worker in enumerate(WORKERS):
        core.apply(Submitted(worker, 0, str(100 + index)), 1.0)
    return core


def row(index: int, state: str, **more: Any) -> Row:
    return Row(job=str(100 + index), name=job_name("demo", WORKERS[index], 0), state=state, **more)


def seen(core: Reconciler, worker: str) -> WorkerStatus:
    [status] = [one for one in run_status(PLAN, core, "c", "", 9.0).workers if one.worker == worker]
    return status


def view(worker: str, phase: str, **more: Any) -> WorkerView:
    fields = {"end_time": None, "running": 0, "waiting": 0, "detail": "", "node": "n2", **more}
    return WorkerView(worker=worker, pool="x", role="any", generation=0, phase=phase, job="1", **fields)


def test_a_worker_goes_from_waiting_to_ready() -> None:
    fresh = Reconciler.restore("demo", [], {}, served=False, policy=Policy(drain_s=1.0))
    assert seen(fresh, "prefill-0").phase == "waiting"
    core = launched()
    assert (seen(core, "prefill-0").phase, seen(core, "prefill-0").job) == ("queued", "100")
    rows = (row(0, "PENDING", reason="Resources", start_time=1e9), row(1, "RUNNING", nodes="n1", end_time=2e9))
    core.apply(QueueRead(rows, 2.0), 2.0)
    pending, running = seen(core, "prefill-0"), seen(core, "decode-0")
    assert (pending.phase, pending.reason, pending.end_time) == ("queued", "Resources", None)
    assert pending.estimated_start.startswith("2001-09-")
    assert (running.phase, running.node, running.end_time) == ("starting", "n1", 2e9)
    core.apply(FleetSeen(FleetView((view("decode-0", "loading", detail="weights"),), False)), 3.0)
    assert (seen(core, "decode-0").phase, seen(core, "decode-0").detail) == ("loading", "weights")


def test_the_proxies_are_told_what_a_worker_takes_and_where_it_is() -> None:
    core = launched()
    core.apply(QueueRead((row(0, "PENDING", reason="Priority"), row(1, "RUNNING", nodes="n[1-2]")), 2.0), 2.0)
    pending, running = job_views(PLAN, core)[:2]
    assert (pending.state, pending.reason, pending.nodes) == ("PENDING", "Priority", ())
    assert (running.node, running.nodes) == ("n[1-2]", ("n1", "n2"))
    planned_spec = PLAN.workers[0].spec
    assert (pending.gpus, pending.num_nodes) == (planned_spec.gpus_per_node, planned_spec.num_nodes)
    assert (pending.tensor_parallel, pending.pipeline_parallel) == (planned_spec.engine.tensor_parallel, 1)


def test_a_worker_of_another_generation_is_somebody_else() -> None:
    core = launched()
    core.apply(QueueRead((row(0, "RUNNING"),), 2.0), 2.0)
    old = WorkerView("prefill-0", "x", "any", 7, "ready", "", "n1", "1", None, 0, 0)
    core.apply(FleetSeen(FleetView((old,), False)), 3.0)
    assert seen(core, "prefill-0").phase == "starting"


def test_the_runs_phase_tells_the_story() -> None:
    core = launched()
    assert run_status(PLAN, core, "c", "", 1.0).phase == "launching"
    core.apply(FleetSeen(FleetView((), True)), 2.0)
    assert run_status(PLAN, core, "c", "", 1.0).phase == "serving"
    core.apply(DesiredRead(Desired(target=STOP, workers=WORKERS, since=0.0)), 3.0)
    assert run_status(PLAN, core, "c", "", 1.0).phase == "stopping"
    assert {one.phase for one in run_status(PLAN, core, "c", "", 1.0).workers} == {"ending"}
    core.apply(QueueRead((), 60.0), 60.0)
    done = run_status(PLAN, core, "c", "", 1.0)
    assert done.phase == "stopped" and done.ended


def test_proxies_are_told_the_jobs_and_not_what_they_know_better() -> None:
    core = launched()
    core.apply(FleetSeen(FleetView((view("prefill-0", "ready"),), False)), 3.0)
    views = job_views(PLAN, core)
    assert [one.worker for one in views] == list(WORKERS)
    assert (views[0].job, views[0].state) == ("100", "")


def test_the_proxys_view_is_laid_over_the_controllers() -> None:
    told = RunStatus(
        run="demo",
        phase="serving",
        written_at=1.0,
        controller="c",
        workers=(
            WorkerStatus(
                worker="p",
                pool="p",
                role="prefill",
                generation=0,
                phase="ready",
                job="1",
                end_time=5.0,
                stages=(("queue", 60.0), ("load", 9.5)),
            ),
            WorkerStatus(worker="d", pool="d", role="decode", generation=0, phase="ready", job="2"),
        ),
    )
    job = {"reason": "", "estimated_start": "", "end_time": None, "node": ""}
    fleet = {
        "ready": True,
        "refusals": ["p: protocol 9"],
        "pairs": [
            {"prefill": "p", "decode": "d", "proven": False, "fault": "no KV came"},
            {"prefill": None, "decode": "d", "proven": False, "fault": ""},
            {"prefill": "p", "decode": "e", "proven": True, "fault": ""},
        ],
        "jobs": [
            {**job, "worker": "p", "generation": 0, "job": "1", "state": "RUNNING", "end_time": 5.0},
            {**job, "worker": "d", "generation": 1, "job": "3", "state": "PENDING", "reason": "Priority"},
        ],
        "workers": [
            {"worker": "p", "generation": 0, "phase": "draining", "detail": "", "node": "n3", "time_left_s": 60}
            | {"running": 2, "waiting": 1, "stages": {"load": 9.5, "proof": 0.5}}
        ],
        "processes": [{"process": "p0.0", "pid": 7, "takes_connections": True, "connections": 3, "open_requests": 2}],
    }
    live = overlay(told, fleet, 1000.0)
    prefill, decode = live.workers
    assert (prefill.phase, prefill.node, prefill.end_time, prefill.running) == ("draining", "n3", 1060.0, 2)
    assert (decode.phase, decode.generation, decode.job, decode.reason) == ("queued", 1, "3", "Priority")
    assert prefill.stages == (("queue", 60.0), ("load", 9.5), ("proof", 0.5)), "the controller knows of the queue"
    assert live.ready and live.refusals == ("p: protocol 9",)
    text = status_text(live, "live")
    assert "draining" in text and "Priority" in text and "refused: p: protocol 9" in text
    assert "not proven: p -> d: last attempt: no KV came\nnot proven: whole -> d\n" in text


def test_several_processes_of_the_proxy_are_shown_line_by_line() -> None:
    told = run_status(PLAN, launched(), "c", "", 9.0)
    fields: dict[str, Any] = {"connections": 3, "open_requests": 2, "open_streams": 1, "workers": 4, "memory_mib": 41.2}
    first = ProcessStatus(process="p0.0", pid=7, takes_connections=False, **fields)
    second = ProcessStatus(process="p0.1", pid=8, takes_connections=True, **fields)
    assert "p0.0" not in status_text(replace(told, processes=(first,)), "")
    lines = status_text(replace(told, processes=(first, second)), "").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("proxy"))
    assert [" ".join(line.split()) for line in lines[at : at + 3]] == [
        "proxy pid connections requests streams workers memory",
        "p0.0 7 3 2 1 4 41 MiB takes no new connections",
        "p0.1 8 3 2 1 4 41 MiB serves",
    ]


def test_a_queue_that_cannot_be_asked_is_told_in_one_line() -> None:
    status = run_status(PLAN, launched(), "c", "", 9.0)
    assert "cannot be asked" not in status_text(status, "live")
    silent = replace(status, queue_fault="squeue: Unable to contact slurm controller\nmore")
    assert "the queue cannot be asked, what runs goes on: squeue: Unable to contact slurm controller" in (
        status_text(silent, "live").splitlines()
    )


def test_a_controller_that_writes_nothing_is_told_where_its_proxy_answers() -> None:
    status = run_status(PLAN, launched(), "c", "", 9.0)
    assert "has written nothing" not in status_text(status, "live")
    assert "its controller has written nothing for 45 s" in status_text(replace(status, controller_silent_s=45), "live")


def test_each_worker_s_start_is_told_stage_by_stage() -> None:
    core = launched()
    rows = (row(0, "RUNNING", start_time=31.0), row(1, "RUNNING", start_time=2.0), row(2, "PENDING", start_time=99.0))
    core.apply(QueueRead(rows, 40.0), 40.0)
    told = (("preflight", 2.0), ("load", 20.25), ("proof", 0.5))
    quick = (("preflight", 1.0), ("load", 10.0), ("weights", 4.0))
    views = (view("prefill-0", "ready", stages=told), view("decode-0", "loading", stages=quick))
    core.apply(FleetSeen(FleetView(views, False)), 50.0)
    assert seen(core, "prefill-0").stages == (("queue", 30.0), *told)
    lines = status_text(run_status(PLAN, core, "c", "", 9.0), "").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("start, seconds"))
    assert [line.split() for line in lines[at : at + 3]] == [
        ["start,", "seconds", "queue", "preflight", "load", "weights", "proof", "sum"],
        ["prefill-0", "30.0", "2.0", "20.2", "0.5", "52.8"],
        ["decode-0", "1.0", "1.0", "10.0", "4.0", "16.0"],
    ]


def test_who_reads_its_model_and_who_waits_for_its_turn_is_told() -> None:
    core = launched()
    core.apply(QueueRead(tuple(row(index, "RUNNING") for index in range(3)), 40.0), 40.0)
    waits = "waits for its turn to read the model"
    views = (
        view("prefill-0", "loading", detail="load", turn="its turn"),
        view("decode-0", "starting", detail=waits, turn="next"),
        view("decode-1", "starting", detail=waits, turn="1 before it"),
    )
    core.apply(FleetSeen(FleetView(views, False)), 50.0)
    lines = status_text(run_status(PLAN, core, "c", "", 9.0), "").splitlines()
    assert [line.rsplit("  ", 1)[1].strip() for line in lines[2:5]] == [
        "load (its turn)",
        f"{waits} (next)",
        f"{waits} (1 before it)",
    ]


def test_where_no_proxy_answers_the_queue_tells_what_waits_and_why() -> None:
    told = run_status(PLAN, launched(), "c", "", 9.0)
    controller = Row(job="99", name="demo.controller", state="PENDING", reason="QOSMaxJobs", start_time=1e9)
    rows = [row(0, "PENDING", reason="Priority", start_time=1e9), row(1, "RUNNING", nodes="n1"), controller]
    shown = overlay_queue(told, rows, kept=False)
    assert shown.phase == "launching" and not shown.ready
    assert [worker.phase for worker in shown.workers] == ["queued", "starting", "waiting"]
    text = status_text(shown, "Slurm, asked just now; no controller has written anything yet")
    assert re.search(r"^controller +queued +99 PENDING +QOSMaxJobs, expected to start 2001-09-", text, re.MULTILINE)
    assert re.search(r"^prefill-0 +queued +prefill +100 PENDING +Priority, expected to start", text, re.MULTILINE)

    lost = overlay_queue(told, [*rows[:2], Row(job="99", name="demo.controller", state="TIMEOUT")], kept=False)
    assert lost.phase == "lost" and lost.controller_job is not None and lost.controller_job.phase == "ended"
    assert "the command that started it brings one back" in status_text(lost, "")
    assert overlay_queue(told, rows[:2], kept=True).phase == "launching", "a controller outside of Slurm"


def test_progress_says_why_a_hand_over_is_not_proven_yet() -> None:
    screen = io.StringIO()
    core = launched()
    ready = tuple(view(worker, "ready") for worker in WORKERS)
    missing = (("prefill-0", "decode-0"), ("prefill-0", "decode-1"))
    core.apply(FleetSeen(FleetView(ready, False, (), missing, (), ("prefill-0 -> decode-1: slow: 3 s",))), 3.0)
    Progress(Console(file=screen, width=60, soft_wrap=True)).show(run_status(PLAN, core, "c", "", 1.0))
    assert "proving       prefill-0 -> decode-0; prefill-0 -> decode-1: last attempt: slow: 3 s\n" in screen.getvalue()


def test_the_lines_to_paste_survive_awkward_paths() -> None:
    endpoint = Endpoint(url="http://10.0.0.1:8000/v1", api_key_file="/a b/keys/api_key", models=("tiny", "other"))
    lines = ready_text(endpoint).splitlines()
    assert lines[0] == "ready"
    [curl] = [line for line in lines if line.startswith("curl")]
    assert "$(cat '/a b/keys/api_key')" in curl
    [python] = [line for line in lines if "import OpenAI" in line]
    program = shlex.split(python)[2]
    compile(program, "pasted", "exec")


def test_a_failure_shows_the_end_of_the_log_of_its_job(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    run.create()
    folder = run.log_dir("d-0")
    folder.mkdir()
    (folder / "7_0_log.out").write_text("\n".join(f"line {number}" for number in range(100)))
    (folder / "6_0_log.out").write_text("an older life")
    failure = Failure(worker="d-0", job="7", name="demo.d-0.g1", reason="the job ended as FAILED")
    text = failure_text(run, failure)
    assert text.startswith("demo.d-0.g1 (job 7) failed: the job ended as FAILED\n")
    assert "| line 80\n" in text and "| line 99" in text and "line 79\n" not in text and "older" not in text
    assert logs_of(run.log_dir("nobody")) == []
    assert tail(folder / "7_0_log.out", 1) == ["line 99"]
    assert failure_text(run, Failure(worker="x", job="", name="demo.x.g0", reason="refused")) == (
        "demo.x.g0 failed: refused"
    )


def test_time_left_is_short() -> None:
    assert [duration(seconds) for seconds in (-5, 59, 3600 + 120, 90000)] == ["0h00m", "0h00m", "1h02m", "1d01h"]


def test_progress_without_a_terminal_is_a_line_per_change() -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, width=60, soft_wrap=True))
    core = launched()
    core.apply(QueueRead((row(0, "PENDING", reason="Resources"), row(1, "RUNNING")), 2.0), 2.0)
    with progress.shown():
        for _ in range(3):
            progress.show(run_status(PLAN, core, "c", "", 1.0))
        core.apply(FleetSeen(FleetView((view("decode-0", "loading", detail="[1/2]"),), False)), 3.0)
        progress.show(run_status(PLAN, core, "c", "", 1.0))
    lines = [line.split(maxsplit=1)[1] for line in screen.getvalue().splitlines()]
    assert [line.split()[0] for line in lines] == ["prefill-0", "decode-0", "decode-1", "decode-0"]
    assert "queued  job 100  Resources" in lines[0] and "loading" in lines[3] and "[1/2]" in lines[3]


def progress_on(width: int, term: str) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, highlight=False, _environ={"TERM": term})
    progress = Progress(console)
    core = launched()
    core.apply(FleetSeen(FleetView((view("decode-0", "loading", detail="[red]"),), False)), 3.0)
    with progress.shown():
        progress.show(run_status(PLAN, core, "c", "", 1.0))
    return screen.getvalue()


def test_progress_on_a_terminal_is_a_table() -> None:
    shown = progress_on(100, "xterm")
    assert "decode-0" in shown and "[red]" in shown and "\x1b[" in shown


def test_a_dumb_or_narrow_terminal_gets_lines() -> None:
    for shown in (progress_on(100, "dumb"), progress_on(60, "xterm")):
        assert re.search(r"^\d\d:\d\d:\d\d  decode-0      loading", shown, re.MULTILINE) and "\x1b" not in shown
