"""From what the user wrote to what will run: `make_plan` turns a Config into a Plan or tells all its faults.

Pure: no file, environment, clock or Slurm. Each pool is worked out once as a `PoolPlan`; the specs and job
requests are then read off it.
"""

from __future__ import annotations

from typing import Any

from launcher.job import Allocation, JobRequest, Plan, PlannedWorker
from launcher.planning.checks import form_faults, pool_plan_faults, rule_faults
from launcher.planning.folders import Folders
from launcher.planning.layout import place
from launcher.planning.matrix import Pair
from launcher.planning.models import ResolvedModel
from launcher.planning.notes import is_crowded, plan_notes
from launcher.planning.pools import PoolPlan, plan_pools
from launcher.planning.scaling import scaling_of
from launcher.refusal import Refused
from launcher.schema import ClusterConfig, Config, ControllerPlace
from proxy.spec import Deadlines, LatencyTargets, Limits, PoolCaps, ProxySpec, RoutingSpec
from workers.spec import EngineSpec, HandoffSpec, WorkerSpec

PROXY = "proxy-0"
# In the place of submitit's own, which reaches every process of the step and kills engines. This one reaches the
# batch shell only, which ignores it: workers drain by the clock.
WARNING_SIGNAL = "B:USR1@60"


class PlanRefused(Refused):
    """The configuration is well formed but cannot run."""


def make_plan(
    config: Config,
    *,
    model: ResolvedModel,
    folders: Folders,
    code: str,
    interpreter: str,
    run_dir: str,
    allocation: Allocation | None = None,
) -> Plan:
    """Raises PlanRefused with every fault that was found."""
    form = form_faults(config, model)
    faults = form + rule_faults(config, model, allocation)
    pools, pairs = ((), ()) if form else plan_pools(config, model)
    faults += [] if form else pool_plan_faults(config, model, pools, pairs, allocation)
    if faults:
        raise PlanRefused(list(dict.fromkeys(faults)))
    assert config.cluster is not None and config.run is not None
    return Plan(
        run=config.run,
        run_dir=run_dir,
        cluster=config.cluster.name,
        executor=config.cluster.executor.value,
        workers=tuple(_workers(config, pools, model, folders, code, interpreter, run_dir)),
        proxy=_proxy(config, pools, pairs, code, run_dir),
        controller=_controller(config, interpreter),
        notes=plan_notes(config, model, folders, pools, pairs),
        num_nodes=config.cluster.nodes,
        gpus_per_node=config.cluster.gpus_per_node,
        poll_interval_s=config.controller.poll_interval_s,
        drain_first=config.cluster.drain_first,
        crowded=is_crowded(config, pools),
        chain_length=config.cluster.chain_length,
        planner=config.planner.mode.value,
        scaling=scaling_of(config),
        allocation=allocation,
    )


def _workers(
    config: Config,
    pools: tuple[PoolPlan, ...],
    model: ResolvedModel,
    folders: Folders,
    code: str,
    interpreter: str,
    run_dir: str,
) -> list[PlannedWorker]:
    assert config.cluster is not None and config.run is not None
    layouts = [pool.layout for pool in pools for _ in range(pool.replicas)]
    example = place(layouts, config.cluster)
    assert example is not None, "checked before"
    workers: list[PlannedWorker] = []
    for pool in pools:
        engine = _engine(config, pool, model, folders)
        for replica in range(pool.replicas):
            spec = WorkerSpec(
                run=config.run,
                run_dir=run_dir,
                worker=f"{pool.name}-{replica}",
                pool=pool.name,
                role=pool.role,
                generation=0,
                index=len(workers),
                num_nodes=pool.layout.num_nodes,
                gpus_per_node=pool.gpus_per_node,
                engine=engine,
                interface=config.cluster.interface,
                cache_dir=str(folders.cache),
                stage_dir=None if config.engine.simulated else config.cluster.stage_dir,
                code=code,
                interpreter=interpreter,
                load_timeout_s=config.engine.load_timeout_s,
                drain_timeout_s=config.engine.drain_timeout_s,
                step_timeout_s=config.engine.step_timeout_s,
                takes_turns=config.cluster.max_loading > 0,
            )
            job = _worker_job(config.cluster, f"{config.run}.{spec.worker}", pool, interpreter)
            workers.append(PlannedWorker(spec=spec, job=job, example=example[len(workers)], memory=pool.memory))
    return workers


def _engine(config: Config, pool: PoolPlan, model: ResolvedModel, folders: Folders) -> EngineSpec:
    assert config.cluster is not None
    handoff = HandoffSpec(
        connector=config.handoff.connector,
        buffer_device=(config.handoff.buffer_device or config.engine.device).value,
        lease_s=config.handoff.lease_s,
        redeem_s=config.handoff.redeem_s,
    )
    return EngineSpec(
        kind=config.engine.kind,
        version=config.engine.version,
        device=config.engine.device.value,
        model_path=model.path,
        served_names=_served_names(config),
        max_model_len=config.model.max_model_len,
        block_size=config.engine.block_size,
        tensor_parallel=pool.tensor_parallel,
        pipeline_parallel=pool.pipeline_parallel,
        args=pool.engine_args,
        # Engines get a home of their own for what they write; what has been downloaded stays where it is.
        environment={"HF_HUB_CACHE": str(folders.hub)} | pool.environment,
        prefix=tuple(config.cluster.engine_prefix),
        python=config.cluster.engine_python,
        handoff=handoff if pool.hands_over else None,
    )


def _worker_job(cluster: ClusterConfig, name: str, pool: PoolPlan, interpreter: str) -> JobRequest:
    """One Slurm job per worker, one task per node, no node names: a lost node costs one worker, not the run."""
    by_gres = {"gres": f"{cluster.gres}:{pool.gpus_per_node}"} if cluster.gres and pool.gpus_per_node else {}
    return JobRequest(
        name=name,
        executor=cluster.executor.value,
        num_nodes=pool.layout.num_nodes,
        gpus_per_node=0 if by_gres else pool.gpus_per_node,
        cpus_per_task=pool.cpus_per_node,
        mem_gb=pool.mem_gb_per_node,
        time_min=cluster.walltime_min,
        setup=tuple(cluster.setup),
        interpreter=interpreter,
        slurm=_site(cluster, cluster.partition) | by_gres,
        additional=_additional(cluster, requeue=cluster.requeue),
    )


def _controller(config: Config, interpreter: str) -> JobRequest | None:
    cluster, controller = config.cluster, config.controller
    assert cluster is not None
    if controller.where is ControllerPlace.foreground:
        return None
    return JobRequest(
        name=f"{config.run}.controller",
        executor=cluster.executor.value,
        num_nodes=1,
        gpus_per_node=0,
        cpus_per_task=controller.cpus,
        mem_gb=controller.mem_gb,
        time_min=controller.walltime_min or cluster.walltime_min,
        setup=tuple(cluster.setup),
        interpreter=interpreter,
        slurm=_site(cluster, controller.partition or cluster.partition),
        additional=_additional(cluster, requeue=True),
    )


def _site(cluster: ClusterConfig, partition: str | None) -> dict[str, Any]:
    """`wckey` is named to keep submitit's own out: sites that check wckeys refuse it."""
    given = {"partition": partition, "account": cluster.account, "qos": cluster.qos}
    return {key: value for key, value in given.items() if value is not None} | {"wckey": None}


def _additional(cluster: ClusterConfig, *, requeue: bool) -> dict[str, Any]:
    return {"signal": WARNING_SIGNAL, "requeue" if requeue else "no-requeue": True} | cluster.sbatch


def _proxy(config: Config, pools: tuple[PoolPlan, ...], pairs: tuple[Pair, ...], code: str, run_dir: str) -> ProxySpec:
    assert config.cluster is not None and config.run is not None
    limits, deadlines, routing = config.proxy.limits, config.proxy.deadlines, config.routing
    return ProxySpec(
        run=config.run,
        run_dir=run_dir,
        proxy=PROXY,
        code=code,
        models=_served_names(config),
        interface=config.controller.interface or config.cluster.interface,
        http_port=config.proxy.http_port,
        tls_cert=config.proxy.tls_cert,
        tls_key=config.proxy.tls_key,
        pools={
            pool.name: PoolCaps(max_prefill_tokens=pool.max_prefill_tokens, max_decodes=pool.max_decodes)
            for pool in pools
        },
        pairs=tuple((pair.prefill, pair.decode) for pair in pairs if not pair.faults),
        workers={f"{pool.name}-{replica}": pool.name for pool in pools for replica in range(pool.replicas)},
        redeem_s=config.handoff.redeem_s,
        limits=Limits(**{name: getattr(limits, name) for name in Limits.__struct_fields__}),
        deadlines=Deadlines(**{name: getattr(deadlines, name) for name in Deadlines.__struct_fields__}),
        routing=RoutingSpec(
            **{name: getattr(routing, name) for name in RoutingSpec.__struct_fields__ if name != "targets"},
            targets=LatencyTargets(ttft_s=routing.targets.ttft_s, itl_s=routing.targets.itl_s),
        ),
        processes=config.proxy.processes,
        max_loading=config.cluster.max_loading,
    )


def _served_names(config: Config) -> tuple[str, ...]:
    return (config.model.name, *config.model.aliases)
