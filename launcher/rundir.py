"""The run folder: where everything of a run lies, and how its code is frozen.

Owns the paths, the modes (0700, 0600) and the code snapshot. Knows the shape of `desired.json` and
`jobs.json`; what they mean is `reconcile`'s business.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from launcher.job import Plan
from launcher.jobs import JobRecord
from workers.spec import write_json

SOURCE = Path(__file__).resolve().parent.parent  # the checkout, or the snapshot this runs from
PACKAGES = ("launcher", "workers", "proxy", "conf")

SERVE = "serve"
STOP = "stop"


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """`desired.json`: what should run. Written by launcher actions, read by the controller on every tick."""

    target: str  # serve | stop
    workers: tuple[str, ...]
    since: float  # unix time of this start: what ended before it is history
    revision: int = 0  # of the plan: workers of an earlier one are replaced


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoint.json`: exists once the run has served; scripts of users read it."""

    url: str
    api_key_file: str
    models: tuple[str, ...]


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """`controller.json`: the one controller of a run; `heir.json`: the one that is to follow it."""

    id: str
    host: str
    pid: int
    job: str  # Slurm's, "" outside of it
    started_at: float
    proxy: str = ""  # that it keeps; "": the plan's
    after: str = ""  # the job of the controller before, where that gave the run on


T = TypeVar("T")


class RunDir:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config = self.path / "config.yaml"
        self.plan = self.path / "plan.json"
        self.desired = self.path / "desired.json"
        self.jobs = self.path / "jobs.json"
        self.status = self.path / "status.json"
        self.planner = self.path / "planner.json"
        self.endpoint = self.path / "endpoint.json"
        self.owner = self.path / "controller.json"
        self.heir = self.path / "heir.json"
        self.specs = self.path / "specs"
        self.keys = self.path / "keys"
        self.proxies = self.path / "proxies"
        self.accounting = self.path / "accounting"
        self.logs = self.path / "logs"
        self.code = self.path / "code"

    def create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (
            self.path,
            self.specs,
            self.keys,
            self.proxies,
            self.accounting,
            self.logs,
            self.code,
        ):
            folder.mkdir(mode=0o700, exist_ok=True)

    def worker_spec(self, worker: str, generation: int) -> Path:
        return self.specs / f"{worker}.g{generation}.json"

    def generations(self, worker: str = "*") -> list[int]:
        """That were ever about to be submitted."""
        return [
            int(path.name.rsplit(".g", 1)[1].removesuffix(".json")) for path in self.specs.glob(f"{worker}.g*.json")
        ]

    def proxy_spec(self, proxy: str) -> Path:
        return self.specs / f"{proxy}.json"

    def log_dir(self, name: str) -> Path:
        return self.logs / name

    def code_dir(self, code: str) -> Path:
        return self.code / code

    def read_plan(self) -> Plan:
        return msgspec.json.decode(self.plan.read_bytes(), type=Plan)

    def read_desired(self) -> Desired:
        return msgspec.json.decode(self.desired.read_bytes(), type=Desired)

    def read_jobs(self) -> list[JobRecord]:
        return read_optional(self.jobs, list[JobRecord]) or []

    def write_jobs(self, records: list[JobRecord]) -> None:
        write_json(self.jobs, records)

    def write_config(self, text: str) -> None:
        descriptor = os.open(self.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)

    def write_desired(self, desired: Desired) -> None:
        write_json(self.desired, desired)


def read_optional(path: Path, kind: type[T]) -> T | None:
    """None where there is no such file yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def code_hash(source: Path = SOURCE) -> str:
    """Names the code by its contents: two launches of the same code share a snapshot."""
    digest = hashlib.sha256()
    for path in _files(source):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(source)}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


def snapshot_code(run: RunDir, source: Path = SOURCE) -> str:
    """Copy the packages into the run folder, whole or not at all; returns their hash."""
    code = code_hash(source)
    target = run.code_dir(code)
    if target.exists():
        return code
    partial = run.code / f".{code}.{os.getpid()}"
    for path in _files(source):
        copy = partial / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    partial.rename(target)
    return code


def _files(source: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((source / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
