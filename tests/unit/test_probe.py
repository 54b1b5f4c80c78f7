"""The facts of this very machine, found by the probe's own process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.unit.test_placing import spec
from workers.agent.preflight import EngineFacts
from workers.agent.probe import MARK, cuda_gpus, folder_facts, import_fault, unreadable_files
from workers.agent.startup import CODE_DIR
from workers.spec import write_json


def probed(tmp_path: Path, *folders: str) -> EngineFacts:
    write_json(tmp_path / "spec.json", spec(tmp_path))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-m", "workers.agent.probe", str(tmp_path / "spec.json"), str(tmp_path), *folders],
            stdin=theirs,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": CODE_DIR, "CUDA_VISIBLE_DEVICES": "2,3"},
        )
    assert done.stdout.startswith(MARK), done.stderr
    return msgspec.json.decode(done.stdout.removeprefix(MARK), type=EngineFacts)


def test_it_sees_this_machine(tmp_path: Path) -> None:
    found = probed(tmp_path, str(tmp_path), str(tmp_path / "not-passed-in"))
    assert found.has_channel and found.visible_devices == "2,3" and found.machine == os.uname().machine
    assert found.hidden == (str(tmp_path / "not-passed-in"),)
    assert found.cache is not None and found.cache.path == str(tmp_path / "cache") and found.cache.locks
    assert found.cache.free_bytes > 0 and found.shm_free_bytes > 0 and found.open_files > 0
    assert list((tmp_path / "cache").iterdir()) == [], "nothing is left of what was written"
    assert (found.version, found.gpus, found.unreadable) == ("", (), ()), "a simulated engine needs none of these"


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert folder_facts(tmp_path / "file" / "cache").fault == "Not a directory"


def test_a_folder_that_takes_no_more_says_why(tmp_path: Path) -> None:
    """A limit on the size of files stands for a quota: room is left, but not for us."""
    program = (
        "import resource; from pathlib import Path; from workers.agent.probe import MARK, folder_facts;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        f"print(folder_facts(Path({str(tmp_path)!r})).fault)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CODE_DIR)
    assert done.stdout == "File too large\n", done.stderr


def test_a_model_is_looked_at_file_by_file(tmp_path: Path) -> None:
    assert list(unreadable_files(tmp_path / "gone")) == [f"{tmp_path}/gone: No such file or directory"]
    (tmp_path / "model-1.safetensors").symlink_to("blobs/that-have-not-arrived")
    assert list(unreadable_files(tmp_path)) == [
        f"{tmp_path} has no config.json",
        f"{tmp_path}/model-1.safetensors: No such file or directory",
    ]


@pytest.mark.parametrize("module", ["json", "os.path"])
def test_a_library_that_imports_has_no_fault(module: str) -> None:
    assert import_fault(module) == ""


def test_a_library_that_does_not_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_binding.py").write_text("raise OSError('libucp.so.0: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_fault("broken_binding") == "OSError: libucp.so.0: cannot open shared object file"
    assert import_fault("sluice_no_such_module").startswith("ModuleNotFoundError: No module named")


def test_without_a_driver_there_is_no_gpu() -> None:
    gpus, fault = cuda_gpus()
    assert gpus or fault.startswith(("there is no NVIDIA driver: libcuda.so.1", "the NVIDIA driver shows no usable"))
