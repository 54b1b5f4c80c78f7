"""The time of a step: what it is made of, the estimate of a model on a GPU, and the fit of measured points."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy
import pytest

from launcher.planning.capacity import Demand
from launcher.planning.shapes import shape_from_config
from launcher.twin import profile as profiles
from launcher.twin.gpus import GPUS
from launcher.twin.profile import BadProfile, Profile
from launcher.twin.roofline import step_model
from launcher.twin.step_model import StepModel

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
TRUE = StepModel(
    fixed_s=0.004, weights_s=0.003, token_s=2e-5, pair_s=3e-10, read_s=4e-8, sequence_s=1e-5, source="profile"
)
BUDGET = 4096


def demand(tensor: int = 1, pipeline: int = 1) -> Demand:
    return Demand(
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        block_size=16,
        dtype="bfloat16",
        kv_dtype="bfloat16",
        max_num_batched_tokens=8192,
        max_num_seqs=256,
    )


def estimate(tensor: int = 1, pipeline: int = 1, gpu: str = "h100") -> StepModel:
    return step_model(shape_from_config(SHAPE), demand(tensor, pipeline), GPUS[gpu], 8)


def measured(model: StepModel, noise: float = 0.0, num_gpus: int = 1) -> Profile:
    rng = numpy.random.default_rng(1)
    isl = numpy.array([1000.0, 2000, 4000, 8000, 12000, 16000])
    ttft = numpy.array([model.prefill_s(int(size), 0, BUDGET) * 1000 for size in isl])
    usage, context = (grid.reshape(-1) for grid in numpy.meshgrid([0.1, 0.3, 0.6, 0.9], [500.0, 2000, 8000]))
    decodes = usage * 400_000 / context
    itl = numpy.array([model.decode_step_s(n, n * c) * 1000 for n, c in zip(decodes, context, strict=True)])
    ttft, itl = (values * rng.uniform(1 - noise, 1 + noise, values.size) for values in (ttft, itl))
    return Profile(
        prefill_isl=isl,
        prefill_ttft=ttft,
        prefill_thpt_per_gpu=isl / ttft * 1000 / num_gpus,
        x_kv_usage=usage,
        y_context_length=context,
        z_itl=itl,
        z_thpt_per_gpu=decodes / itl * 1000 / num_gpus,
        max_kv_tokens=400_000,
    )


def test_linear_layers_take_what_their_weights_or_their_tokens_take() -> None:
    assert TRUE.linear_s(1) == TRUE.linear_s(150) == 0.003
    assert TRUE.linear_s(1500) == pytest.approx(0.03)
    experts = msgspec.structs.replace(TRUE, experts_s=0.1, expert_share=0.25)
    assert experts.linear_s(1) == pytest.approx(0.003 + 0.025)
    assert experts.linear_s(100) == pytest.approx(0.103)


def test_a_step_costs_more_with_more_of_anything() -> None:
    base = TRUE.chunk_step_s(1000, 5e5, 10, 10_000, 0.0)
    assert base < TRUE.chunk_step_s(1001, 5e5, 10, 10_000, 0.0)
    assert base < TRUE.chunk_step_s(1000, 6e5, 10, 10_000, 0.0)
    assert base < TRUE.chunk_step_s(1000, 5e5, 11, 10_000, 0.0)
    assert base < TRUE.chunk_step_s(1000, 5e5, 10, 10_001, 0.0)
    steps = TRUE.decode_steps_s(10, numpy.array([100.0, 200.0]), numpy.zeros(2))
    assert steps.tolist() == pytest.approx([TRUE.decode_step_s(10, 100), TRUE.decode_step_s(10, 200)])


def test_the_estimate_of_one_gpu_is_its_data_sheets() -> None:
    """8e9 parameters: 16 GB to read, 16 GFLOPs per token."""
    model = estimate()
    assert model.source == "estimate"
    assert model.weights_s == pytest.approx(16.06e9 / 3.35e12 / 0.8, rel=0.01)
    assert model.token_s == pytest.approx(2 * 6.98e9 / 989e12 / 0.6, rel=0.01)
    assert model.read_s == pytest.approx(131_072 / 3.35e12 / 0.8)
    assert estimate(gpu="h200").decode_step_s(8, 8000) < 0.75 * model.decode_step_s(8, 8000)


def test_more_gpus_share_the_work_and_have_to_talk() -> None:
    one, four, staged = estimate(), estimate(tensor=4), estimate(pipeline=4)
    assert four.weights_s == pytest.approx(one.weights_s / 4) and four.read_s == pytest.approx(one.read_s / 4)
    assert one.token_s / 4 < four.token_s < one.token_s
    assert four.fixed_s > one.fixed_s == staged.fixed_s
    assert staged.weights_s == pytest.approx(one.weights_s) and staged.token_s == pytest.approx(one.token_s / 4)


@pytest.mark.parametrize(
    "true", [TRUE, msgspec.structs.replace(TRUE, weights_s=0.0, chunk_s=0.008), estimate(), estimate(tensor=4)]
)
def test_a_fit_finds_the_model_that_made_the_points(true: StepModel) -> None:
    fitted = profiles.fit(measured(true), BUDGET)
    assert fitted.prefill_error < 0.01 and fitted.decode_error < 0.02
    for size in (1500, 6000, 30_000):  # the last lies outside
        assert fitted.model.prefill_s(size, 0, BUDGET) == pytest.approx(true.prefill_s(size, 0, BUDGET), rel=0.03)
    for num, context in ((1, 1000), (30, 3000), (200, 4000)):
        expected = true.decode_step_s(num, num * context)
        assert fitted.model.decode_step_s(num, num * context) == pytest.approx(expected, rel=0.04)


def test_noise_does_not_make_a_term_negative() -> None:
    fitted = profiles.fit(measured(TRUE, noise=0.3), BUDGET).model
    assert all(value >= 0 for value in msgspec.structs.asdict(fitted).values() if isinstance(value, float))


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profiles.write(tmp_path / "one.npz", measured(TRUE, num_gpus=4))
    for path in (tmp_path / "one.npz", tmp_path):
        found = profiles.read(path)
        assert found.num_gpus == 4 and found.max_kv_tokens == 400_000
        assert found.z_itl.tolist() == measured(TRUE).z_itl.tolist()


def test_a_profile_in_two_files_is_one(tmp_path: Path) -> None:
    fields = msgspec.structs.asdict(measured(TRUE))
    for name, keys in (("prefill", profiles.PREFILL), ("decode", (*profiles.DECODE, "max_kv_tokens"))):
        (tmp_path / name).mkdir()
        numpy.savez(
            tmp_path / name / "raw_data.npz", allow_pickle=False, **{key: numpy.atleast_1d(fields[key]) for key in keys}
        )
    assert profiles.read(tmp_path).z_itl.size == 12


def test_all_faults_of_a_profile_are_told_with_their_keys(tmp_path: Path) -> None:
    fields = {name: numpy.atleast_1d(value) for name, value in msgspec.structs.asdict(measured(TRUE)).items()}
    del fields["z_itl"]
    fields["prefill_ttft"] = numpy.array([1.0, -1.0])
    numpy.savez(tmp_path / "bad.npz", allow_pickle=False, **fields)
    with pytest.raises(BadProfile) as refused:
        profiles.read(tmp_path / "bad.npz")
    for words in ("z_itl: is missing", "prefill_isl: 6, prefill_ttft: 2", "prefill_ttft: has values"):
        assert words in str(refused.value)
    (tmp_path / "text.npz").write_text("not numbers")
    with pytest.raises(BadProfile, match=r"text\.npz"):
        profiles.read(tmp_path / "text.npz")
