"""Can this worker start here? Facts in, faults out: all of them at once, each with what to change.

Pure. `probe` finds the facts, on the node and in the engine's own environment. Nothing is loaded yet, so that a
fault costs seconds and not a load. Owns the limits below which an engine fails later and less clearly.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from workers.spec import WorkerSpec

MIB, GIB = 1 << 20, 1 << 30

MIN_LOCAL_BYTES = 64 * MIB  # sockets, small files and what compilers leave in TMPDIR
MIN_CACHE_BYTES = {"cuda": 2 * GIB, "cpu": 64 * MIB}  # kernels and graphs of one model
MIN_SHM_BYTES = 32 * MIB
MIN_SHM_BYTES_PER_RANK = 256 * MIB  # message queues between ranks, and NCCL's
MIN_OPEN_FILES = 4096
MIN_LOCKED_BYTES = 16 * GIB  # RDMA pins the whole KV cache


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that must be written to, as a file written and locked in it has shown."""

    path: str
    fault: str = ""  # the system's own words
    free_bytes: int = 0
    locks: bool = True


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    memory_bytes: int


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a process in the engine's place sees: behind engine_prefix, with the engine's interpreter."""

    version: str = ""
    version_fault: str = ""
    handoff_fault: str = ""  # why the library that moves KV cannot be imported
    gpus: tuple[Gpu, ...] = ()
    gpu_fault: str = ""
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES
    machine: str = ""  # x86_64
    hidden: tuple[str, ...] = ()  # folders of ours that are not there
    unreadable: tuple[str, ...] = ()  # files of the model, each with the reason
    local: Folder | None = None
    cache: Folder | None = None
    shm_free_bytes: int = 0
    open_files: int = 0
    locked_bytes: int | None = None  # None: unlimited
    has_rdma: bool = False
    has_channel: bool = True


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one node of a worker."""

    network_fault: str = ""
    staging_fault: str = ""
    engine: EngineFacts | None = None
    engine_fault: str = ""  # why nothing could be started in the engine's place


def faults(spec: WorkerSpec, facts: Facts) -> list[str]:
    """One line each; empty: the engine may be started."""
    found = [fault for fault in (facts.network_fault, facts.staging_fault) if fault]
    if facts.engine is None:
        return [*found, _no_process(spec, facts.engine_fault)]
    engine = facts.engine
    found += _passage_faults(spec, engine)
    found += _software_faults(spec, engine)
    found += _gpu_faults(spec, engine)
    found += [f"model.path: {words}" for words in engine.unreadable]
    found += _folder_faults("TMPDIR", engine.local, MIN_LOCAL_BYTES)
    found += _folder_faults("cluster.cache_dir", engine.cache, MIN_CACHE_BYTES[spec.engine.device])
    found += _limit_faults(spec, engine)
    return found


def _no_process(spec: WorkerSpec, words: str) -> str:
    if not spec.engine.prefix:
        return (
            f"cluster.engine_python: {spec.engine_python} cannot run Sluice's code: {words}; set it to a Python of the"
            " nodes with msgspec, pyzmq and uvloop, or to null for the launcher's own, which has to lie where the nodes"
            " see it"
        )
    return (
        f"cluster.engine_prefix: nothing of ours runs behind {' '.join(spec.engine.prefix)}: {words}; it needs the"
        " folders named in SLUICE_FOLDERS, and cluster.engine_python must be a Python inside with msgspec, pyzmq"
        " and uvloop"
    )


def _passage_faults(spec: WorkerSpec, engine: EngineFacts) -> Iterator[str]:
    if engine.hidden:
        yield (
            f"cluster.engine_prefix: {', '.join(engine.hidden)} cannot be seen inside; pass in every folder named in"
            " SLUICE_FOLDERS (Apptainer does so by itself)"
        )
    if not engine.has_channel:
        yield (
            "cluster.engine_prefix: its program does not hand its standard input on, by which agent and engine hear"
            " of each other's end; it must replace itself by the engine (exec) or leave standard input alone"
        )


def _software_faults(spec: WorkerSpec, engine: EngineFacts) -> Iterator[str]:
    where = f"{spec.engine_python}" + (" behind cluster.engine_prefix" if spec.engine.prefix else "")
    if engine.version_fault:
        yield f"engine.version: {engine.version_fault} (for {where})"
    elif spec.engine.version is not None and engine.version and engine.version != spec.engine.version:
        yield (
            f"engine.version: {engine.version} is installed for {where}, the plan was made for {spec.engine.version}:"
            " install that version, or start the run anew"
        )
    if engine.handoff_fault:
        yield (
            f"handoff.connector: {spec.engine.handoff and spec.engine.handoff.connector} needs NIXL, which {where}"
            f" cannot import: {engine.handoff_fault}; see README.md, Install"
        )


def _gpu_faults(spec: WorkerSpec, engine: EngineFacts) -> Iterator[str]:
    """With fewer an engine cannot start; with more it would take another job's."""
    planned = spec.gpus_per_node
    if planned == 0:
        return
    if spec.engine.device == "cuda" and engine.gpu_fault:
        if spec.engine.prefix:
            yield f"cluster.engine_prefix: {engine.gpu_fault}; Apptainer shows it with --nv"
        else:
            yield f"cluster.gres: {engine.gpu_fault}; ask for GPUs as your site names them (gpu, gpu:h100)"
        return
    seen = len(engine.gpus) if spec.engine.device == "cuda" else _listed(engine.visible_devices)
    if seen != planned:
        yield (
            f"cluster.gres: the job sees {seen} GPUs (CUDA_VISIBLE_DEVICES={engine.visible_devices or ''}), the plan"
            f" gives this worker {planned}; set cluster.gres to how your site names them (gpu, gpu:h100, null for"
            " --gpus-per-node)"
        )


def _listed(devices: str | None) -> int:
    return 0 if devices in (None, "", "NoDevFiles") else len(devices.split(","))


def _folder_faults(key: str, folder: Folder | None, least_bytes: int) -> Iterator[str]:
    if folder is None:
        return
    if folder.fault:
        yield f"{key}: {folder.path} cannot be written: {folder.fault}; set {key} to a folder that can"
    elif folder.free_bytes < least_bytes:
        yield (
            f"{key}: {folder.path} has {size(folder.free_bytes)} left, {size(least_bytes)} are needed; make room, or"
            f" set {key} to another folder"
        )
    elif not folder.locks:
        yield f"{key}: {folder.path} has no file locks, which compilers need; set {key} to a folder of this node"


def _limit_faults(spec: WorkerSpec, engine: EngineFacts) -> Iterator[str]:
    ranks = spec.engine.tensor_parallel * spec.engine.pipeline_parallel // spec.num_nodes
    least_shm = MIN_SHM_BYTES if ranks == 1 else ranks * MIN_SHM_BYTES_PER_RANK
    if engine.shm_free_bytes < least_shm:
        yield (
            f"/dev/shm has {size(engine.shm_free_bytes)} left, {ranks} ranks need {size(least_shm)}: ask the site to"
            " raise it"
        )
    if engine.open_files < MIN_OPEN_FILES:
        yield (
            f"ulimit -Hn is {engine.open_files}, at least {MIN_OPEN_FILES} open files are needed: ask the site for"
            " LimitNOFILE in slurmd's unit"
        )
    limited = engine.locked_bytes is not None and engine.locked_bytes < MIN_LOCKED_BYTES
    if limited and engine.has_rdma and spec.engine.handoff is not None:
        yield (
            f"ulimit -Hl is {size(engine.locked_bytes or 0)}, and RDMA must pin the whole KV cache: ask the site for"
            " LimitMEMLOCK=infinity in slurmd's unit"
        )


def size(count: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
