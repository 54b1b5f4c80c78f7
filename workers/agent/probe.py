"""`python -m workers.agent.probe SPEC LOCAL_DIR FOLDER...`: this node as a process in the engine's place sees it.

The agent starts it where the engine will be started, behind the same prefix, and reads one marked line. It judges
nothing (see `preflight`) and leaves nothing. What hangs or dies here is a process of its own and not the agent.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import resource
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from workers.agent.preflight import MIB, EngineFacts, Folder, Gpu
from workers.engines import REAL_ENGINES
from workers.spec import WorkerSpec, read_spec
from workers.staging.mounts import free_bytes

MARK = "SLUICE-FACTS "
WRITTEN_BYTES = MIB  # enough to meet a quota
SHM = Path("/dev/shm")


def facts(spec: WorkerSpec, local_dir: Path, folders: list[str]) -> EngineFacts:
    real = spec.engine.kind in REAL_ENGINES
    version, version_fault = engine_version() if real else ("", "")
    gpus, gpu_fault = cuda_gpus() if real and spec.engine.device == "cuda" else ((), "")
    return EngineFacts(
        version=version,
        version_fault=version_fault,
        handoff_fault=import_fault("nixl._api") if real and spec.engine.handoff is not None else "",
        gpus=gpus,
        gpu_fault=gpu_fault,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        machine=os.uname().machine,
        hidden=tuple(folder for folder in folders if not Path(folder).is_dir()),
        unreadable=tuple(unreadable_files(Path(spec.engine.model_path))) if real and not spec.stage_dir else (),
        local=folder_facts(local_dir),
        cache=folder_facts(Path(spec.cache_dir)),
        shm_free_bytes=free_bytes(SHM) if SHM.is_dir() else 0,
        open_files=_hard_limit(resource.RLIMIT_NOFILE) or sys.maxsize,
        locked_bytes=_hard_limit(resource.RLIMIT_MEMLOCK),
        has_rdma=any(Path("/dev/infiniband").glob("uverbs*")),
        has_channel=stat.S_ISSOCK(os.fstat(0).st_mode),
    )


def engine_version() -> tuple[str, str]:
    """Returns (version, fault)."""
    from workers.engines.vllm.args import UnsupportedVersion, installed

    try:
        return installed().version, ""
    except UnsupportedVersion as fault:
        return "", str(fault)


def import_fault(module: str) -> str:
    """Whatever a binary package raises on a foreign node: a missing library, a CUDA that does not match."""
    try:
        importlib.import_module(module)
    except Exception as fault:  # noqa: BLE001 (its words are the fact that is asked for)
        return f"{type(fault).__name__}: {fault}"
    return ""


def cuda_gpus() -> tuple[tuple[Gpu, ...], str]:
    """By the driver's own library, which obeys CUDA_VISIBLE_DEVICES. It opens no context on a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as fault:
        return (), f"there is no NVIDIA driver: {fault}"
    count = ctypes.c_int()
    for call, status in (("cuInit", cuda.cuInit(0)), ("cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))):
        if status != 0:
            return (), f"the NVIDIA driver shows no usable GPU ({call} returned {status})"
    return tuple(_gpu(cuda, index) for index in range(count.value)), ""


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    name, memory = ctypes.create_string_buffer(96), ctypes.c_size_t()
    cuda.cuDeviceGetName(name, len(name), index)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), index)
    return Gpu(name=name.value.decode(errors="replace"), memory_bytes=memory.value)


def unreadable_files(folder: Path) -> Iterator[str]:
    """Weights are opened, not read."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as fault:
        yield f"{folder}: {fault.strerror}"
        return
    if "config.json" not in names:
        yield f"{folder} has no config.json"
    for name in names:
        if name.endswith((".json", ".safetensors")):
            try:
                (folder / name).open("rb").close()
            except OSError as fault:
                yield f"{folder / name}: {fault.strerror}"


def folder_facts(folder: Path) -> Folder:
    """Made, written to and locked in: free space alone knows neither quotas nor mounts without locks."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(WRITTEN_BYTES))
            file.flush()
            os.fsync(file.fileno())
            return Folder(path=str(folder), free_bytes=free_bytes(folder), locks=_locks(file.fileno()))
    except OSError as fault:
        return Folder(path=str(folder), fault=fault.strerror or str(fault))


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _hard_limit(which: int) -> int | None:
    """The soft one is raised to it at the agent's start."""
    limit = resource.getrlimit(which)[1]
    return None if limit == resource.RLIM_INFINITY else limit


if __name__ == "__main__":
    found = facts(read_spec(Path(sys.argv[1]), WorkerSpec), Path(sys.argv[2]), sys.argv[3:])
    sys.stdout.write(MARK + msgspec.json.encode(found).decode() + "\n")
