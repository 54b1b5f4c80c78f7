"""How a process is started in the engine's place: behind `cluster.engine_prefix`, with the engine's interpreter.

Pure. Owns what such a process is given: its command, the variables that it cannot do without, and the folders
that a container has to pass in. The probe and the engine are started the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from workers.spec import WorkerSpec

# Slurm signals every process of a step. The prefix's program must live through that like the engine behind it.
SHIELD = 'trap "" TERM INT HUP USR1 USR2; exec "$@"'
FOLDERS = "SLUICE_FOLDERS"
BIND_VARIABLES = ("APPTAINER_BIND", "SINGULARITY_BIND")
SYSTEM_FOLDERS = ("/", "/usr", "/usr/local")  # an image has its own


def engine_command(spec: WorkerSpec, code_dir: str, environ: Mapping[str, str], module: str, *words: str) -> list[str]:
    """A program that cleans the environment (`--cleanenv`) must take neither our code nor the choice of GPUs away."""
    engine = spec.engine
    kept = {"PYTHONPATH": code_dir}
    if "CUDA_VISIBLE_DEVICES" in environ:
        kept["CUDA_VISIBLE_DEVICES"] = environ["CUDA_VISIBLE_DEVICES"]
    inside = ["env", *(f"{name}={value}" for name, value in kept.items())] if engine.prefix else []
    return ["sh", "-c", SHIELD, "sh", *engine.prefix, *inside, spec.engine_python, "-m", module, *words]


def engine_environment(spec: WorkerSpec, environ: Mapping[str, str], folders: Sequence[str]) -> dict[str, str]:
    """What the prefix's program sees; the engine process sets the engine's own variables again, inside."""
    given = {**environ, **spec.engine.environment}
    if not spec.engine.prefix:
        return given
    binds = {name: ",".join(filter(None, [given.get(name), *folders])) for name in BIND_VARIABLES}
    return given | binds | {FOLDERS: ":".join(folders)}


def engine_folders(spec: WorkerSpec, local_dir: str, code_dir: str, model: str) -> list[str]:
    """Every folder that the engine process opens: parents before what lies in them, none twice."""
    wanted = {spec.run_dir, local_dir, code_dir, spec.cache_dir, str(model_root(PurePath(model)))}
    environment = str(PurePath(spec.interpreter).parent.parent)
    if spec.engine.python is None and environment not in SYSTEM_FOLDERS:
        wanted.add(environment)
    return sorted(path for path in wanted if path.startswith("/"))


def model_root(path: PurePath) -> PurePath:
    """The files of a Hugging Face snapshot are links into the `blobs` beside `snapshots`."""
    return path.parent.parent if path.parent.name == "snapshots" else path
