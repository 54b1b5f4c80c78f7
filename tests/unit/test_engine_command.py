"""How a process gets into the engine's place: its command, its environment, the folders that come along."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path, PurePath
from typing import Any

from tests.unit.test_placing import spec
from workers.agent.engine_command import SHIELD, engine_command, engine_environment, engine_folders, model_root

APPTAINER = ("apptainer", "exec", "--nv", "--cleanenv", "image.sif")
RUN = Path("/scratch/runs/demo")


def command(environ: dict[str, str], **engine: Any) -> list[str]:
    return engine_command(spec(RUN, **engine), "/scratch/runs/demo/code/c", environ, "workers.agent.probe", "a", "b")


def test_without_a_prefix_the_launcher_s_python_runs_in_our_environment() -> None:
    assert command({"CUDA_VISIBLE_DEVICES": "0"}) == [
        "sh",
        "-c",
        SHIELD,
        "sh",
        "python3",
        "-m",
        "workers.agent.probe",
        "a",
        "b",
    ]


def test_a_container_that_cleans_the_environment_gets_the_code_and_the_gpus_all_the_same() -> None:
    got = command({"CUDA_VISIBLE_DEVICES": "2,3", "SECRET": "s"}, prefix=APPTAINER, python="/opt/vllm/bin/python")
    assert got[4:] == [
        *APPTAINER,
        "env",
        "PYTHONPATH=/scratch/runs/demo/code/c",
        "CUDA_VISIBLE_DEVICES=2,3",
        *["/opt/vllm/bin/python", "-m", "workers.agent.probe", "a", "b"],
    ]
    assert "CUDA_VISIBLE_DEVICES" not in " ".join(command({}, prefix=APPTAINER))


def test_the_folders_are_told_to_apptainer_and_to_any_wrapper() -> None:
    contained = spec(RUN, prefix=APPTAINER, environment={"APPTAINER_BIND": "/data:/data"})
    got = engine_environment(contained, {"HOME": "/home/u"}, ["/a", "/b"])
    assert got["APPTAINER_BIND"] == "/data:/data,/a,/b"
    assert (got["SINGULARITY_BIND"], got["SLUICE_FOLDERS"]) == ("/a,/b", "/a:/b")
    plain = engine_environment(spec(RUN, environment={"A": "1"}), {"A": "0", "HOME": "/home/u"}, ["/a"])
    assert plain == {"A": "1", "HOME": "/home/u"}


def test_every_folder_that_an_engine_opens_comes_along() -> None:
    snapshot = "/hub/models--a--b/snapshots/0123"
    own = spec(RUN, prefix=APPTAINER, python="/usr/bin/python3")
    assert engine_folders(own, "/tmp/sluice-x", f"{RUN}/code/c", snapshot) == [
        "/hub/models--a--b",
        str(RUN),
        f"{RUN}/cache",
        f"{RUN}/code/c",
        "/tmp/sluice-x",
    ]
    assert model_root(PurePath("/models/m")) == PurePath("/models/m")


def test_an_environment_comes_along_but_never_the_system_s_own_folders() -> None:
    def folders(interpreter: str) -> list[str]:
        import msgspec

        worker = msgspec.structs.replace(spec(RUN, prefix=APPTAINER), interpreter=interpreter)
        return engine_folders(worker, "/tmp/x", "/code", "/models/m")

    assert "/home/u/.venv" in folders("/home/u/.venv/bin/python")
    assert "/usr" not in folders("/usr/bin/python3")


def test_the_prefix_s_program_outlives_what_slurm_sends_to_everyone() -> None:
    script = "echo started; read word; echo $word"
    with subprocess.Popen(
        ["sh", "-c", SHIELD, "sh", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "started\n"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(child.pid, number)
        assert child.communicate("lives\n")[0] == "lives\n"
