"""`action=restart`: another plan for a live run, worker by worker: the same again, newer code, other settings, sizes.

Owns what may change under a live run, and the order of writing. The hand-overs themselves are the controller's: it
finds workers whose plan is older than the one in the run folder.
"""

from __future__ import annotations

from typing import Any

import msgspec
from omegaconf import OmegaConf

from launcher.config import load
from launcher.job import Plan, PlannedWorker
from launcher.refusal import Refused
from launcher.resume import changes, config_tree
from launcher.rundir import SERVE, RunDir, code_hash, snapshot_code
from launcher.scheduler.chain import renew_chain
from launcher.schema import CodeOf, Config
from launcher.start import plan_run
from proxy.spec import ProxySpec
from workers.spec import write_json

# Of an engine: workers that differ in these could not exchange KV, or would answer other requests.
SHARED = ("kind", "version", "model_path", "served_names", "block_size", "handoff", "device")
SHARED_ARGS = ("dtype", "kv_cache_dtype", "attention_backend", "quantization")
# Of the proxy: read when it starts. A worker's caps may change meanwhile; they hold from the proxy's next start on.
OF_WORKERS = ("pools", "workers", "code")


class CannotRestart(Refused):
    """The run does not live, or what is asked for needs a new one."""


def restart_run(run: RunDir, old: Plan, config: Config) -> Plan:
    """Returns the plan that holds from now on. Raises CannotRestart."""
    desired = run.read_desired()
    if desired.target != SERVE:
        raise CannotRestart([f"run={old.run}: it was stopped; start it again"])
    code = code_hash() if config.code is CodeOf.current else old.workers[0].spec.code
    if config.cluster is None:
        _refuse_settings(config)
        workers = tuple(_renewed(planned, code, old.revision + 1) for planned in old.workers)
        plan = msgspec.structs.replace(old, workers=workers, proxy=_with_code(old, code), revision=old.revision + 1)
    else:
        if code != code_hash():
            raise CannotRestart(["code: the checkout is not the run's code any more; add code=current"])
        plan = changed(old, plan_run(config)[1])
    if config.code is CodeOf.current:
        snapshot_code(run)
    if config.cluster is not None:
        run.write_config(OmegaConf.to_yaml(OmegaConf.structured(config)))
    write_json(run.proxy_spec(plan.proxy.proxy), plan.proxy)
    write_json(run.plan, plan)
    if plan.chain_length:
        renewed = [planned for planned in plan.workers if planned.revision == plan.revision]
        renew_chain(run, plan, renewed, newer_code=plan.proxy.code != old.proxy.code)
    names = tuple(planned.spec.worker for planned in plan.workers)
    run.write_desired(msgspec.structs.replace(desired, workers=names, revision=plan.revision))
    return plan


def _renewed(planned: PlannedWorker, code: str, revision: int) -> PlannedWorker:
    return msgspec.structs.replace(planned, spec=msgspec.structs.replace(planned.spec, code=code), revision=revision)


def changed(old: Plan, made: Plan) -> Plan:
    """Pure. The old plan with the new one's workers; those that stay as they are keep their revision. Raises
    CannotRestart."""
    faults = [*_proxy_faults(old, made), *_engine_faults(old, made)]
    if made.planner != old.planner:
        faults.append(f"planner.mode: is {old.planner}, asked for {made.planner}")
    if faults:
        raise CannotRestart([f"{fault}; that needs a new run" for fault in faults])
    before = {planned.spec.worker: planned for planned in old.workers}
    workers = []
    for planned in made.workers:
        was = before.get(planned.spec.worker)
        same = was is not None and _lasting(was) == _lasting(planned)
        workers.append(was if same and was else msgspec.structs.replace(planned, revision=old.revision + 1))
    if workers == list(old.workers):
        raise CannotRestart([f"run={old.run}: nothing is different; action=restart run={old.run} restarts it as it is"])
    proxy = _with_code(old, made.proxy.code)
    proxy = msgspec.structs.replace(proxy, pools=made.proxy.pools, workers=made.proxy.workers)
    revision = old.revision + 1
    plan = msgspec.structs.replace(old, workers=tuple(workers), proxy=proxy, revision=revision)
    plan = msgspec.structs.replace(plan, chain_length=made.chain_length, crowded=made.crowded)
    return msgspec.structs.replace(plan, notes=made.notes, drain_first=made.drain_first, scaling=made.scaling)


def _with_code(plan: Plan, code: str) -> ProxySpec:
    """A controller in a job of its own is followed by one with that code, and so is its proxy."""
    return plan.proxy if plan.controller is None else msgspec.structs.replace(plan.proxy, code=code)


def _lasting(planned: PlannedWorker) -> tuple[Any, ...]:
    """What a worker would be restarted for."""
    return (msgspec.structs.replace(planned.spec, index=0, revision=0), planned.job)


def _proxy_faults(old: Plan, made: Plan) -> list[str]:
    was, would = (_tree(plan.proxy) for plan in (old, made))
    new_pools = sorted(set(made.proxy.pools) ^ set(old.proxy.pools))
    for tree in (was, would):
        for key in OF_WORKERS:
            del tree[key]
    return [f"pools.{name}: pools come and go with the proxy" for name in new_pools] + [
        f"proxy: {change}" for change in changes(was, would)
    ]


def _engine_faults(old: Plan, made: Plan) -> list[str]:
    if old.executor != made.executor or old.run_dir != made.run_dir:
        return ["cluster: the run lives elsewhere"]
    was, would = (_shared(plan.workers[0]) for plan in (old, made))
    return [f"engine: {change}" for change in changes(was, would)]


def _shared(planned: PlannedWorker) -> dict[str, Any]:
    engine = _tree(planned.spec.engine)
    return {key: engine[key] for key in SHARED} | {key: engine["args"].get(key) for key in SHARED_ARGS}


def _tree(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _refuse_settings(config: Config) -> None:
    """Without a cluster nothing is planned: a setting would be lost in silence."""
    bare = load(["action=restart", f"run={config.run}"])
    lost = list(changes(config_tree(OmegaConf.structured(bare)), config_tree(OmegaConf.structured(config))))
    if lost:
        raise CannotRestart([f"{change}: other settings need the run's whole command: +cluster=..." for change in lost])
