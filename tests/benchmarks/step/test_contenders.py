import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.step.baseline import time_baseline
from benchmarks.step.correctness import Check, check_all, relative_error
from benchmarks.step.kernels import family_of
from benchmarks.step.measure import Timing, time_steps
from benchmarks.step.ours import time_ours
from benchmarks.step.scenarios import SCENARIOS
from benchmarks.step.shapes import flop_model
from benchmarks.step.workloads import SampleSize, counts_of
from benchmarks.training_step import app

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_check_all_on_the_cpu_passes() -> None:
    checks = check_all(CPU, ["sdpa"], "tiny", seed=7, compiled=False)
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 18


def test_check_nan_never_passes() -> None:
    assert not Check("x", float("nan"), 1.0).passed
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


@pytest.mark.parametrize("scenario", SCENARIOS["tiny"], ids=lambda scenario: scenario.stage)
def test_both_sides_time_the_same_samples_and_start_from_the_same_loss_level(scenario: object, tmp_path: Path) -> None:
    ours = time_ours(scenario, scenario.ours[0], CPU, tmp_path)  # type: ignore[attr-defined, arg-type]
    theirs = time_baseline(scenario, scenario.baselines[0], CPU)  # type: ignore[attr-defined, arg-type]
    assert ours.samples == theirs.samples
    assert ours.computed_tokens == (sum(sample.num_tokens for sample in ours.samples[0]),)
    assert theirs.computed_tokens > ours.computed_tokens
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=0.02)  # both near the logarithm of the vocabulary


def test_report_rates_are_medians_over_steps() -> None:
    sample = SampleSize(num_tokens=10, num_images=1, num_targets=3)
    timing = Timing((2.0, 1.0, 4.0), ((sample,) * 2,) * 3, (25, 25, 25), (0.5,) * 3, None)
    flops = flop_model("tiny", "finetune")
    report = timing.report(flops, "NVIDIA H200")
    assert (report["samples_per_s"], report["useful_tokens_per_s"], report["step_time_s"]) == (1.0, 10.0, 2.0)
    assert report["useful_share_of_tokens"] == 0.8
    assert report["mfu"] == pytest.approx(flops.step(counts_of((sample,) * 2)) / 2.0 / 989e12)


def test_time_steps_leaves_warm_up_out() -> None:
    losses = iter(range(5))
    times, kept, peak = time_steps([lambda: float(next(losses))] * 5, 2, CPU)
    assert (len(times), kept, peak) == (3, (2.0, 3.0, 4.0), None)


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("nvjet_sm90_tst_128x288_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...cutlass::bfloat16_t>", "attention"),
        ("triton_tem_fused_flex_attention_backward_transpose_view_4", "attention"),
        ("triton_poi_fused_mul_silu_3", "compiled elementwise"),
        ("void at::native::multi_tensor_apply_kernel<FusedOptimizer>", "optimizer and norm of gradients"),
        ("kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90FlashAttentionBackwardSm90_object", "attention"),
        ("_gate_gradient_kernel", "compiled elementwise"),
        ("Memset (Device)", "copies and fills"),
        ("something new", "other"),
    ],
)
def test_family_of_known_kernels(kernel: str, family: str) -> None:
    assert family_of(kernel) == family


def test_command_writes_every_part_it_ran(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    result = CliRunner().invoke(
        app, ["gpu", "--size", "tiny", "--part", "steps", "--scenario", "finetune", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert list(content) == ["machine", "tiny finetune"]
    assert set(content["tiny finetune"]) == {"ours", "transformers"}


def test_command_unknown_part_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["gpu", "--part", "speed", "--out", str(tmp_path / "x.json")])
    assert result.exit_code == 2


def test_cpu_command_writes_results_and_page(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["cpu", "--part", "packing", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "results.json").read_text())
    assert all(one["efficiency"] > 0.97 for one in content["packing"].values())
    assert "| 8 ranks, rows of 8192 | 99.9" in (tmp_path / "results.md").read_text()
