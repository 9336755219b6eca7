"""The training loop's own steps with FP8 layers, and the rival's, on the CPU at a tiny size."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.step import shapes
from benchmarks.step.baseline import time_baseline
from benchmarks.step.fp8_quality import Lesson, run_seed, summarize
from benchmarks.step.ours import build_session, time_session
from benchmarks.step.rival import time_rival
from benchmarks.step.scenarios import SCENARIOS, OurSettings, RivalSettings, Scenario
from benchmarks.step.shapes import flop_model
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.llava.fp8_linear import fp8_layers, quantize_rows
from pipeline.training.session import TrainingSession

CPU = torch.device("cpu")
FP8 = OurSettings(4096, compile=False, linear_precision="fp8")


@pytest.fixture(autouse=True)
def _widths_of_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    tiny = {**shapes.LANGUAGE_MODELS["tiny"], "intermediate_size": 80}
    monkeypatch.setitem(shapes.LANGUAGE_MODELS, "tiny", tiny)


@pytest.fixture
def finetune() -> Scenario:
    return replace(SCENARIOS["tiny"][1], num_steps=2)


def test_every_step_quantises_the_weights_it_trains(finetune: Scenario, tmp_path: Path) -> None:
    sizes = finetune.sizes()
    session = build_session(finetune, FP8, sizes, CPU, tmp_path)
    checked = []

    def inspect(session: TrainingSession, step: Any) -> None:
        before = [layer.weight.detach().clone() for layer in fp8_layers(session.model)]
        step()
        for layer, weight in zip(fp8_layers(session.model), before, strict=True):
            assert torch.equal(layer.by_row.float(), quantize_rows(weight).values.float())
            assert torch.equal(layer.by_column_scales, quantize_rows(weight.T).scales)
            checked.append(bool((layer.weight != weight).any()))

    time_session(finetune, session, sizes, inspect)
    assert len(checked) == 7 * 2
    assert all(checked)


class _Loss:
    """What the rival needs of Liger's loss."""

    def __init__(self, ignore_index: int, reduction: str) -> None:
        assert (ignore_index, reduction) == (IGNORE_INDEX, "sum")

    def __call__(self, weight: Tensor, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("fused_linear_cross_entropy")
    module.LigerFusedLinearCrossEntropyLoss = _Loss
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.fused_linear_cross_entropy", module)


@pytest.mark.parametrize("lora_rank", [None, 16])
def test_rival_trains_on_the_same_samples_without_padding(
    lora_rank: int | None, finetune: Scenario, liger: None
) -> None:
    scenario = replace(finetune, lora_rank=lora_rank)
    rival = time_rival(scenario, RivalSettings(4096, "plain", "sdpa"), CPU)
    padded = time_baseline(finetune, finetune.baselines[0], CPU)
    assert rival.samples == padded.samples
    assert rival.computed_tokens == tuple(sum(s.num_tokens for s in samples) for samples in rival.samples)
    assert rival.losses[0] == pytest.approx(padded.losses[0], rel=0.01)


def test_adapters_cost_less_than_all_weights() -> None:
    whole, adapted = flop_model("tiny", "finetune"), flop_model("tiny", "finetune", 16)
    assert adapted.per_pair == whole.per_pair
    assert adapted.per_target < whole.per_target


def test_quality_of_both_precisions_is_summed_up_by_seed() -> None:
    from benchmarks.demo_parts.worded_scenes import WordedBatch
    from pipeline.tools.demo.scenes import GRID

    cells = GRID * GRID
    ids = torch.randint(3, 90, (6, cells + 9), dtype=torch.int32)
    labels = ids.clone()
    ids[:, 2 : 2 + cells] = IMAGE_TOKEN_INDEX
    labels[:, : 4 + cells] = IGNORE_INDEX
    batch = WordedBatch(ids, labels, torch.randint(3, 90, (6, 1, cells, 4), dtype=torch.int32))
    lesson = Lesson(6, 0, 4, 60, 60, 64, 1)
    run = run_seed(1, lesson, [batch], 90)
    summary = summarize([run, run])
    for training in ("decoder", "projector"):
        assert len(run[training]["fp8"]) == 60
        assert run[training]["fp8"] != run[training]["bfloat16"]
        first, second = summary[training]["fp8_minus_bfloat16"]
        assert first == second
        assert abs(first) < 0.2
        assert summary[training]["spread_of_seeds"] == 0
