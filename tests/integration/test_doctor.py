"""Doctor where there is no Slurm: said in one line, and what can be looked at is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import launch


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_machine_without_slurm(tmp_path: Path) -> None:
    done = launch(tmp_path, "action=doctor", "output=json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    found = json.loads(done.stdout)["findings"]
    [missing] = [each for each in found if each["level"] == "fault"]
    assert missing["topic"] == "slurm" and "sbatch" in missing["seen"] and "+cluster=local" in missing["todo"]
    new = launch(tmp_path, "action=new-cluster", "name=mine")
    assert new.returncode == 2 and "command not found" in new.stderr


def test_this_machine_is_looked_at_without_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = launch(tmp_path, "action=doctor", "+cluster=local", "engine=sim", "submit=true", "output=json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    topics = {each["topic"] for each in found["findings"]}
    assert {"job here", "files here", "network here"} <= topics and found["jobs"] == []
