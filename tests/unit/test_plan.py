"""The plan: goldens of every cluster, and every reason to refuse one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest

from launcher.config import CONF_DIR, ConfigRefused, choices
from launcher.job import Plan
from launcher.view.render import render_plan
from tests.unit.planning import planned, refusals
from workers.engines.vllm.args import OWNED_FLAGS

H100 = "+cluster=h100x2"


@pytest.mark.parametrize("cluster", choices("cluster"))
def test_the_plan_of_every_cluster(cluster: str, golden: Callable[[str, str], None]) -> None:
    plan = planned(f"+cluster={cluster}")
    golden(f"plan_{cluster}.json", msgspec.json.format(msgspec.json.encode(plan), indent=1).decode() + "\n")
    golden(f"plan_{cluster}.txt", render_plan(plan, {}))


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_the_plan_of_every_recipe(recipe: str, golden: Callable[[str, str], None]) -> None:
    plan = planned(f"+recipe={recipe}")
    golden(f"plan_{recipe}.json", msgspec.json.format(msgspec.json.encode(plan), indent=1).decode() + "\n")
    golden(f"plan_{recipe}.txt", render_plan(plan, {}))


def test_a_recipe_is_a_cluster_a_model_and_a_split_and_all_of_it_can_be_changed() -> None:
    recipe = "+recipe=llama-3.3-70b-h100"
    assert planned(recipe, "cluster.account=me", "cluster.partition=gpu").workers[0].job.slurm["account"] == "me"
    assert planned(recipe, "cluster=h200x1", "cluster.nodes=2").cluster == "h200x1"
    assert planned(recipe, "model=llama-3.1-8b", "pools.decode.replicas=1").proxy.models == ("llama-3.1-8b",)
    with pytest.raises(ConfigRefused) as refused:
        planned(recipe, "+cluster=h200x1")
    assert refused.value.faults == (
        "cluster: the recipe brings one; write cluster=h200x1, without the plus sign, for another",
    )


@pytest.mark.parametrize("cluster", ["h100x1", "h200x1"])
def test_a_model_that_needs_data_parallel_is_refused_with_figures(
    cluster: str, golden: Callable[[str, str], None]
) -> None:
    faults = refusals(f"+cluster={cluster}", "model=deepseek-v3")
    golden(f"refused_deepseek-v3_{cluster}.txt", "\n".join(faults) + "\n")


def test_a_small_model_with_latent_attention_is_told_to_use_one_gpu() -> None:
    small = ["+cluster=h100x1", "model=deepseek-v3", "model.config_json.num_hidden_layers=6"]
    faults = refusals(*small, "pools.prefill.tensor_parallel=1")
    assert len(faults) == 1
    assert faults[0].startswith("pools.decode.tensor_parallel: latent attention has no KV heads to share out: 4 ranks")
    assert faults[0].endswith("; use 1, and more replicas")
    assert planned(*small, "pools.prefill.tensor_parallel=1", "pools.decode.tensor_parallel=1")


@pytest.mark.parametrize("cluster", ["h100x1", "h100x2"])
def test_every_other_model_is_planned_on_gpus(cluster: str) -> None:
    for model in [model for model in choices("model") if model != "deepseek-v3"]:
        assert planned(f"+cluster={cluster}", f"model={model}").proxy.models == (model,)


def test_what_is_too_large_for_a_laptop_is_refused_with_figures() -> None:
    faults = refusals("+cluster=local", "model=qwen3-0.6b")
    assert faults[0].startswith("pools.prefill: a worker holds 2336 KV tokens, one request may take 32768;")
    assert planned("+cluster=local", "model=qwen3-0.6b", "model.max_model_len=2048")


def test_the_simulator_needs_no_model_on_disk() -> None:
    plan = planned("+cluster=onebox", "engine=sim", "run=second")
    assert all(worker.memory is None and worker.spec.engine.kind == "sim" for worker in plan.workers)
    assert not any("not ready" in note for note in plan.notes)


def test_the_simulator_s_arguments_are_checked_before_anything_is_submitted() -> None:
    sim = ["+cluster=onebox", "engine=sim"]
    assert planned(*sim, "engine.engine_args.num_blocks=null")
    assert refusals(*sim, "pools.decode.engine_args.num_block=1")[0].startswith(
        "pools.decode.engine_args: Object contains unknown field `num_block`; known: mode, "
    )
    assert refusals(*sim, "engine.engine_args.num_blocks=100")[0].startswith("pools.prefill: a worker holds 3200 KV")


def test_a_plan_is_a_value_that_survives_its_file() -> None:
    plan = planned(H100)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_workers_and_ports_are_numbered_once_over_all_pools() -> None:
    plan = planned("+cluster=onebox", "pools.prefill.replicas=2")
    assert [worker.spec.worker for worker in plan.workers] == ["prefill-0", "prefill-1", "decode-0", "decode-1"]
    assert [worker.spec.index for worker in plan.workers] == [0, 1, 2, 3]
    assert plan.proxy.workers == {worker.spec.worker: worker.spec.pool for worker in plan.workers}


def test_arguments_go_from_engine_to_model_to_pool_and_null_takes_one_out() -> None:
    plan = planned(
        "+cluster=local",
        "engine.environment.A=engine",
        "cluster.environment.A=cluster",
        "pools.decode.environment.A=pool",
        "pools.decode.engine_args.max_num_seqs=3",
        "pools.decode.engine_args.tool_call_parser=null",
    )
    prefill, decode = (worker.spec.engine for worker in plan.workers)
    assert (prefill.args["max_num_seqs"], decode.args["max_num_seqs"]) == (16, 3)
    assert prefill.args["tool_call_parser"] == "hermes"
    assert "tool_call_parser" not in decode.args
    assert (prefill.environment["A"], decode.environment["A"]) == ("engine", "pool")


def test_how_weights_are_read_is_the_cluster_s_matter_unless_a_pool_says_otherwise(
    golden: Callable[[str, str], None],
) -> None:
    site = [H100, "cluster.load_strategy=prefetch", "cluster.load_format=safetensors", "cluster.max_loading=2"]
    plan = planned(*site, "pools.decode.engine_args.safetensors_load_strategy=null")
    golden("plan_loading.json", msgspec.json.format(msgspec.json.encode(plan), indent=1).decode() + "\n")
    prefill, decode = (worker.spec.engine.args for worker in plan.workers)
    assert (prefill["load_format"], prefill["safetensors_load_strategy"]) == ("safetensors", "prefetch")
    assert "safetensors_load_strategy" not in decode
    assert plan.proxy.max_loading == 2 and all(worker.spec.takes_turns for worker in plan.workers)
    assert "at most 2 workers read their model at once (cluster.max_loading)" in plan.notes
    sim = planned("+cluster=onebox", "engine=sim", "cluster.load_strategy=prefetch").workers[0].spec
    assert not sim.takes_turns and "safetensors_load_strategy" not in sim.engine.args


def test_a_way_to_read_weights_that_vllm_does_not_know_is_told_with_its_key() -> None:
    assert refusals(H100, "cluster.load_strategy=fast", "cluster.max_loading=-1") == (
        "cluster.max_loading: -1 is too little; use 1 or more; 0: no limit",
        "cluster.load_strategy: vLLM 0.32.0 knows no 'fast'; known: lazy, eager, prefetch, torchao",
    )
    (fault,) = refusals(H100, "pools.decode.engine_args.load_format=gguff")
    assert fault.startswith("pools.decode.engine_args.load_format: vLLM 0.32.0 knows no 'gguff'; known: auto, hf, ")
    threads = "pools.decode.engine_args.model_loader_extra_config={enable_multithread_load: true}"
    assert planned(H100, threads)
    assert refusals(H100, threads, "cluster.load_strategy=eager") == (
        "cluster.load_strategy: eager does not go with model_loader_extra_config.enable_multithread_load; use one of"
        " the two",
    )


def test_a_role_is_two_caps() -> None:
    caps = planned(H100).proxy.pools
    assert (caps["prefill"].max_prefill_tokens, caps["prefill"].max_decodes) == (32768, 0)
    assert (caps["decode"].max_prefill_tokens, caps["decode"].max_decodes) == (32768, 256)
    caps = planned(H100, "pools.prefill.max_decodes=7", "pools.decode.max_prefill_tokens=0").proxy.pools
    assert (caps["prefill"].max_decodes, caps["decode"].max_prefill_tokens) == (7, 0)


def test_a_pool_of_one_role_any_hands_over_only_between_two_workers() -> None:
    alone = ["+cluster=onebox", "~pools.prefill", "pools.decode.role=any"]
    one, two = planned(*alone, "pools.decode.replicas=1"), planned(*alone)
    assert (one.proxy.pairs, two.proxy.pairs) == ((), (("decode", "decode"),))
    assert one.workers[0].spec.engine.handoff is None
    assert two.workers[0].spec.engine.handoff is not None
    assert any("every request runs whole" in note for note in one.notes)


def test_engines_that_embed_hand_nothing_over() -> None:
    embeds = ("+cluster=onebox", "engine.engine_args.runner=pooling")
    plan = planned(*embeds, "~pools.prefill", "pools.decode.role=any")
    assert plan.proxy.pairs == () and plan.workers[0].spec.engine.handoff is None
    assert [fault.partition(",")[0] for fault in refusals(*embeds)] == [
        "pools.prefill.role: prefill",
        "pools.decode.role: decode",
    ]


def test_pipeline_stages_serve_whole_and_without_a_connector() -> None:
    plan = planned(H100, "~pools.prefill", "pools.decode.role=any", "pools.decode.pipeline_parallel=2")
    assert plan.proxy.pairs == ()
    assert plan.workers[0].spec.engine.handoff is None
    assert (plan.workers[0].spec.num_nodes, plan.workers[0].spec.gpus_per_node) == (2, 8)


def test_a_pair_of_any_that_cannot_exchange_is_left_out_and_said() -> None:
    plan = planned("+cluster=onebox", "pools.prefill.role=any", "pools.prefill.pipeline_parallel=2")
    assert plan.proxy.pairs == ()
    assert any(note.startswith("no KV from prefill to decode: pools.prefill.pipeline_parallel") for note in plan.notes)


def test_pipeline_stages_prefill_for_others_by_push_only() -> None:
    stages = ["+cluster=onebox", "pools.prefill.pipeline_parallel=2"]
    assert any(fault.endswith("use handoff=nixl_push") for fault in refusals(*stages))
    plan = planned(*stages, "handoff=nixl_push")
    assert plan.proxy.pairs == (("prefill", "decode"),)
    connectors = {worker.spec.engine.handoff.connector for worker in plan.workers if worker.spec.engine.handoff}
    assert connectors == {"NixlPushConnector"}


def test_a_worker_over_two_nodes_is_one_job() -> None:
    plan = planned("+cluster=onebox", "pools.decode.tensor_parallel=2", "pools.decode.nodes=2")
    decode = plan.workers[1]
    assert (decode.job.num_nodes, decode.job.gpus_per_node) == (2, 1)
    assert [(use.node, use.gpus) for use in decode.example] == [(0, (0,)), (1, (0,))]


def test_engines_load_what_their_nodes_have_copied_and_the_simulator_loads_nothing() -> None:
    disk = "cluster.stage_dir=/local/disk"
    plan = planned(H100, disk)
    assert {worker.spec.stage_dir for worker in plan.workers} == {"/local/disk"}
    assert "each node copies the model to /local/disk once and loads it from there" in plan.notes
    assert planned(H100, disk, "engine=sim").workers[0].spec.stage_dir is None
    assert planned(H100).workers[0].spec.stage_dir is None


# ---------------------------------------------------------------- jobs


def test_a_site_that_knows_only_gres() -> None:
    job = planned(H100, "cluster.gres=gpu:h100", "cluster.account=me", "cluster.sbatch.switches=1").workers[0].job
    assert (job.gpus_per_node, job.slurm["gres"], job.slurm["account"]) == (0, "gpu:h100:8", "me")
    assert job.additional == {"signal": "B:USR1@60", "no-requeue": True, "switches": 1}


def test_no_job_names_a_node_and_all_are_warned_through_the_batch_shell() -> None:
    plan = planned("+cluster=onebox")
    assert plan.controller is not None
    for job in [*(worker.job for worker in plan.workers), plan.controller]:
        assert job.additional["signal"].startswith("B:USR1@")
        assert not {"nodelist", "exclude"} & {*job.slurm, *job.additional}


def test_whole_node_workers_leave_room_for_the_controller_of_their_partition() -> None:
    together = planned(H100)
    assert together.controller is not None
    worker = together.workers[0].job
    assert worker.mem_gb is not None
    assert worker.cpus_per_task + together.controller.cpus_per_task <= 96
    assert worker.mem_gb + (together.controller.mem_gb or 0) <= 960
    apart = planned(H100, "cluster.partition=gpu", "controller.partition=cpu")
    assert apart.workers[0].job.cpus_per_task == 96
    assert apart.controller is not None
    assert apart.controller.slurm["partition"] == "cpu"


def test_a_cpu_cluster_shares_its_nodes_out_by_workers() -> None:
    plan = planned("+cluster=local", "cluster.cpus_per_node=8", "cluster.mem_gb=64")
    assert [(worker.job.cpus_per_task, worker.job.mem_gb) for worker in plan.workers] == [(4, 32), (4, 32)]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["run=My_Run"], "run: 'My_Run' is not a name"),
        (["engine.kind=sglang"], "engine.kind: unknown engine 'sglang'; known: sim, vllm"),
        (["engine.version=0.9.0"], "engine.version: 0.9.0 is not supported; use 0.32.0"),
        (["~pools.decode"], "pools: nothing can decode"),
        (["handoff.redeem_s=120"], "handoff.redeem_s: 120 is not inside the lease of 120"),
        (
            ["proxy.deadlines.node_silence_s=1"],
            "proxy.deadlines.node_silence_s: 1 is not between 1.5 s, a few beats, and 10",
        ),
        (["proxy.tls_cert=a.pem"], "proxy.tls_cert: TLS needs both"),
        (["proxy.processes=0"], "proxy.processes: 0 is too little; use 1 or more"),
        (["proxy.processes=4"], "proxy.processes: 4 processes need as many cores, controller.cpus gives 2"),
        (["proxy.limits.header_timeout_s=0"], "proxy.limits.header_timeout_s: 0 is too little; use more than 0"),
        (["proxy.limits.max_total_body_bytes=1000"], "proxy.limits.max_total_body_bytes: less than max_body_bytes"),
        (["proxy.limits.max_total_unsent_bytes=1"], "proxy.limits.max_total_unsent_bytes: less than stream_buffer"),
        (["cluster.nodes=0"], "cluster.nodes: 0 is too little"),
        (["cluster.walltime_min=0"], "cluster.walltime_min: 0 is too little"),
        (["engine.block_size=0"], "engine.block_size: 0 is too little"),
        (["routing.targets.ttft_s=nan"], "routing.targets.ttft_s: nan is too little"),
        (["proxy.http_port=99999"], "proxy.http_port: 99999 is too much; use at most 65535"),
        (["cluster.executor=local"], "controller.where: without Slurm"),
        (["cluster.executor=local"], "cluster.nodes: 2 with executor local"),
        (["cluster.gpus_per_node=0"], "engine.device: cuda, but h100x2 has no GPUs; use engine=vllm_cpu"),
        (["cluster.gpu_memory_gib=null"], "cluster.gpu_memory_gib: has no value"),
        (["cluster.stage_dir=local/disk"], "cluster.stage_dir: local/disk is not the same absolute path on every node"),
        (["cluster.stage_dir='/tmp/$SLURM_JOB_ID'"], "cluster.stage_dir: /tmp/$SLURM_JOB_ID is not the same absolute"),
        (["cluster.sbatch.nodelist=n1"], "cluster.sbatch.nodelist: Sluice sets this itself; Slurm chooses the nodes"),
        (["+pools.A_B.role=any"], "pools.A_B: 'A_B' is not a name"),
        (["pools.decode.replicas=0"], "pools.decode.replicas: 0 is not a count"),
        (["pools.decode.data_parallel=2"], "pools.decode.data_parallel: 2 is not available yet; use replicas"),
        (["pools.decode.tensor_parallel=3"], "pools.decode.tensor_parallel: 3 does not divide 64 attention heads"),
        (["pools.decode.nodes=3"], "pools.decode.nodes: 3 nodes of 3 GPUs do not make the 8 ranks"),
        (["pools.decode.gpus_per_node=4", "pools.decode.nodes=1"], "pools.decode.nodes: 1 nodes of 4 GPUs do not"),
        (["pools.decode.tensor_parallel=32"], "pools.decode: a worker needs 4 nodes, h100x2 has 2"),
        (["pools.decode.gpus_per_node=16"], "pools.decode.gpus_per_node: 16 on a node of 8"),
        (["pools.decode.replicas=2"], "pools: all workers together take 24 GPUs and do not fit on 2 nodes of 8"),
        (["pools.decode.tensor_parallel=1"], "pools.decode.tensor_parallel: 131.4 GiB of weights + 4.1 GiB to work"),
        (["model.max_model_len=2000000"], "pools.decode: a worker holds 1371120 KV tokens"),
        (["pools.decode.pipeline_parallel=2"], "pools.decode.pipeline_parallel: KV cannot be handed"),
        (["pools.prefill.pipeline_parallel=2"], "pools.prefill.pipeline_parallel: prefill over pipeline stages hands"),
        (["handoff=nixl_push", "pools.decode.pipeline_parallel=2"], "pools.decode.pipeline_parallel: KV cannot be"),
        (
            ["pools.prefill.tensor_parallel=16", "cluster.nodes=3"],
            "pools.prefill.tensor_parallel: 16 ranks replicate 8 KV heads and cannot hand over to decode with 8",
        ),
        (["pools.decode.engine_args.dtype=float16"], "pools.prefill.engine_args.dtype: bfloat16 here but float16 in"),
        (["pools.decode.engine_args.kv_cache_dtype=fp8"], "pools.prefill.engine_args.kv_cache_dtype: bfloat16 here"),
        (["pools.prefill.engine_args.attention_backend=X"], "pools.prefill.engine_args.attention_backend: X here but"),
        (["pools.decode.engine_args.dtype=int4"], "pools.decode.engine_args.dtype: unknown 'int4'"),
        (["pools.decode.engine_args.max-num-seqs=3"], "pools.decode.engine_args.max-num-seqs: write max_num_seqs"),
        (
            ["pools.decode.engine_args.max_num_sequences=3"],
            "pools.decode.engine_args.max_num_sequences: vLLM 0.32.0 has no such flag; did you mean max_num_seqs?",
        ),
        (["engine.engine_args.max_num_seqs=many"], "pools.prefill.engine_args.max_num_seqs: 'many' is not a count"),
        (["engine.engine_args.gpu_memory_utilization=90"], "pools.prefill.engine_args.gpu_memory_utilization: 90 is"),
        (
            ["cluster.chain_length=-1"],
            "cluster.chain_length: -1 is too little; use 1 or more; 0: jobs are submitted as",
        ),
        (
            ["cluster.chain_length=2", "controller.where=foreground"],
            "cluster.chain_length: 2, but only a controller",
        ),
        (
            ["cluster.chain_length=2", "planner=on", "planner.max_replicas=3"],
            "cluster.chain_length: 2: jobs are submitted at launch only, and the planner is to change their number",
        ),
        (["cluster.chain_length=2", "cluster.sbatch.dependency=singleton"], "cluster.sbatch.dependency: the jobs of"),
        (["routing.policy=luck"], "routing.policy: unknown 'luck'; known: "),
        (["planner=on"], "planner.mode: on, but roles move only among two or more workers of a pool with the role any"),
        (["handoff.connector=Mooncake"], "handoff.connector: Mooncake is not available; use NixlConnector, NixlPushCo"),
        (["engine=vllm_cpu", "handoff.buffer_device=cuda"], "handoff.buffer_device: cuda, but the engine runs on"),
        (["cluster.gpus_per_node=-1"], "cluster.gpus_per_node: -1 is too little; use 1 or more; 0: none"),
        (["model.config_json.torch_dtype=int3"], "model.config_json: torch_dtype int3 is unknown"),
        (["pools.prefill.max_prefill_tokens=0"], "pools.prefill.max_prefill_tokens: 0 in a pool that prefills"),
        (["pools.decode.max_decodes=-1"], "pools.decode.max_decodes: -1 is negative"),
        (["engine=vllm_cpu", "engine.engine_args.kv_cache_memory_bytes=null"], "pools.decode.engine_args.kv_cache_mem"),
    ],
)
def test_a_refusal_names_its_key_and_what_to_do(overrides: list[str], fault: str) -> None:
    assert any(found.startswith(fault) for found in refusals(H100, *overrides)), refusals(H100, *overrides)


def test_a_chain_is_told_with_what_its_jobs_wait_for() -> None:
    site = [H100, "cluster.chain_length=3", "cluster.walltime_min=240", "controller.walltime_min=480"]
    [note] = [note for note in planned(*site).notes if note.startswith("chain: ")]
    assert "3 jobs of each worker" in note and "about 10.5 hours" in note
    assert "--dependency=after:JOB+210?afterany:JOB, of the controller after:JOB+450?afterany:JOB" in note
    [note] = [note for note in planned(*site, "cluster.drain_first=true").notes if note.startswith("chain: ")]
    assert "--dependency=afterany:JOB, of the controller after:JOB+450?" in note


def test_flags_that_sluice_sets_are_refused() -> None:
    keys = [f"pools.decode.engine_args.{flag}" for flag in OWNED_FLAGS]
    faults = refusals(H100, *(f"{key}=1" for key in keys))
    assert [fault.partition(":")[0] for fault in faults] == keys


def test_all_refusals_at_once() -> None:
    faults = refusals(
        H100,
        "run=A",
        "pools.decode.data_parallel=2",
        "pools.prefill.tensor_parallel=1",
        "pools.decode.replicas=2",
        "pools.decode.engine_args.kv_cache_dtype=fp8",
    )
    assert {fault.partition(":")[0] for fault in faults} == {
        "run",
        "pools.decode.data_parallel",
        "pools.prefill.tensor_parallel",
        "pools",
        "pools.prefill.engine_args.kv_cache_dtype",
    }


def test_explicit_kv_counts_against_the_memory_of_a_cpu_job() -> None:
    assert planned("+cluster=local", "cluster.mem_gb=8")
    faults = refusals("+cluster=local", "cluster.mem_gb=8", "engine.engine_args.kv_cache_memory_bytes=4294967296")
    assert faults[0].endswith("+ 4.0 GiB of KV per rank do not fit in 4.0 GiB; raise it, or choose a smaller model")


def test_the_plan_s_shapes_import_without_hydra() -> None:
    """The controller reads plans and must start fast."""
    code = "import sys, launcher.job; sys.exit(bool({'hydra', 'omegaconf', 'submitit', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=CONF_DIR.parent, check=True)
