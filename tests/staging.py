"""Models made of random bytes, and the staging process as an agent starts it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec

from tests.live import SOURCE
from tests.unit.test_placing import spec
from workers.spec import write_json
from workers.staging.staging_process import Checked, Progress, Refused, Staged, Told

_told: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)


def make_model(folder: Path, num_shards: int = 6, shard_bytes: int = 1 << 20, seed: int = 1) -> Path:
    """As a hub keeps it: names that link to the files."""
    blobs = folder.parent / f"{folder.name}-blobs"
    blobs.mkdir(parents=True)
    folder.mkdir()
    words = random.Random(seed)
    names = ["config.json", *(f"model-{number}.safetensors" for number in range(num_shards))]
    for number, name in enumerate(names):
        (blobs / str(number)).write_bytes(words.randbytes(40 if name == "config.json" else shard_bytes))
        (folder / name).symlink_to(blobs / str(number))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stager:
    """One `copy`; it holds on to the model until it is released."""

    def __init__(self, run_dir: Path, source: Path, stage_dir: Path) -> None:
        self.spec_path = write_spec(run_dir, source, stage_dir)
        self.process = subprocess.Popen(
            command("copy", self.spec_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        )
        self.told: list[Told] = []

    def hear(self) -> Told | None:
        """The next thing that it says; None at its end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None
        self.told.append(_told.decode(line))
        return self.told[-1]

    def hear_end(self) -> Staged | Refused:
        while isinstance(self.hear(), Progress):
            pass
        assert self.told and isinstance(self.told[-1], Staged | Refused), self.told
        return self.told[-1]

    def release(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.release()


def write_spec(run_dir: Path, source: Path, stage_dir: Path) -> Path:
    run_dir.mkdir(exist_ok=True)
    path = run_dir / "spec.json"
    whole = spec(run_dir, kind="sim", model_path=str(source))
    write_json(path, msgspec.structs.replace(whole, stage_dir=str(stage_dir)))
    return path


def check(spec_path: Path) -> Checked | Refused:
    done = subprocess.run(command("check", spec_path), capture_output=True, env=environment())
    told = _told.decode(done.stdout)
    assert isinstance(told, Checked | Refused), done.stderr
    return told


def command(what: str, spec_path: Path) -> list[str]:
    return [sys.executable, "-m", "workers.staging.staging_process", what, str(spec_path)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE)}
