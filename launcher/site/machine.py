"""The machine a run is started from: is the run folder shared, is there room, is the engine installed.

Pure. What only a compute node can know is judged in `nodes`.
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.schema import Config, ControllerPlace, Executor
from launcher.site.facts import Machine
from launcher.site.finding import Finding, fault, listed, ok, warning
from workers.staging.mounts import Mount, mount_of, parse_mounts

GIB = 1 << 30
MIN_RUN_BYTES = GIB  # logs, specs and a snapshot of the code

# ---------------------------------------------------------------- findings


def machine_findings(
    machine: Machine, config: Config, runs_dir: str, environment: str, *, proven: bool
) -> Iterator[Finding]:
    """`proven`: a job of this call tells itself what it sees of the run folder."""
    mounts = parse_mounts(machine.mounts)
    alone = config.cluster is not None and config.cluster.executor is Executor.local
    if not alone and not proven:
        yield _shared(mounts, "runs_dir", runs_dir, "set runs_dir to a folder on the shared file system")
        yield _shared(mounts, "Python", environment, "install Sluice into an environment on the shared file system")
    yield from _room(machine, runs_dir)
    yield _software(machine, config)
    yield ok("containers", f"container runtimes here: {listed(machine.containers)}")
    yield _network(machine, config)


def _shared(mounts: list[Mount], key: str, path: str, todo: str) -> Finding:
    mount = mount_of(mounts, path)
    if mount is None:
        return warning("files", f"{key}: {path} lies on no known mount", todo)
    seen = f"{key}: {path} is on {mount.kind} ({mount.device} at {mount.point})"
    if mount.shared:
        return ok("files", seen)
    doubt = "a local file system" if mount.shared is False else "a file system that may be local"
    return warning("files", f"{seen}: {doubt}", f"{todo}; submit=true proves what compute nodes see")


def _room(machine: Machine, runs_dir: str) -> Iterator[Finding]:
    free = machine.free_bytes.get(runs_dir)
    if free is not None and free < MIN_RUN_BYTES:
        todo = "make room (quota?), or set runs_dir to another folder"
        yield fault("files", f"{runs_dir} has {free / GIB:.1f} GiB left", todo)


def _network(machine: Machine, config: Config) -> Finding:
    there = listed(f"{each.name} {each.address}" for each in machine.interfaces)
    wanted = config.controller.interface or (config.cluster and config.cluster.interface)
    if _keeps_the_proxy(config) and wanted and wanted not in [each.name for each in machine.interfaces]:
        seen = f"the proxy is to listen on {wanted}; {machine.host} has {there}"
        return fault("network", seen, "set controller.interface to one of them")
    return ok("network", f"interfaces of {machine.host} (compute nodes may have others): {there}")


def _keeps_the_proxy(config: Config) -> bool:
    """In the one job of executor steps it is another machine that does."""
    apart = config.cluster is not None and config.cluster.executor is Executor.slurm
    return apart and config.controller.where is ControllerPlace.foreground


def _software(machine: Machine, config: Config) -> Finding:
    engine = config.engine
    if engine.simulated:
        return ok("software", "the simulated engine needs nothing")
    inside = config.cluster is not None and bool(config.cluster.engine_prefix)
    if inside:
        return ok("software", "the engine runs behind cluster.engine_prefix; submit=true looks inside")
    seen = f"vLLM {machine.engine_version or 'is not installed'}, NIXL {machine.handoff_version or 'is not installed'}"
    if not machine.engine_version or not machine.handoff_version:
        return fault("software", f"{seen} in this environment", "install it here: see README.md, Install")
    if engine.version and machine.engine_version != engine.version:
        return fault(
            "software",
            f"{seen}; the configuration says engine.version={engine.version}",
            f"install vLLM {engine.version}, or set engine.version={machine.engine_version} if that is supported",
            f"engine.version={machine.engine_version}",
        )
    return ok("software", f"{seen} in this environment")
