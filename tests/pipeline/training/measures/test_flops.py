import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step.shapes import build_model, flop_model
from model.fusion.packed import pack_samples
from model.hub.weights import set_trainable
from pipeline.training.measures.flops import FlopModel, peak_flops, peak_of
from pipeline.training.measures.metrics import StepCounts

LENGTHS = (67, 1, 31, 5, 127)  # few enough for one chunk of the loss: torch does not count products added in place


def test_of_llama_7b_matches_published_sizes() -> None:
    flops = flop_model("7b", "finetune")
    assert flops.per_token == 3 * 2 * 32 * 202_375_168  # parameters in one layer's matrices
    assert flops.per_target == 3 * 2 * 131_072_000
    assert flops.per_pair == 3 * 4 * 32 * 4096
    projector = 576 * (2 * 2 * 1024 * 4096 + 3 * 2 * 4096 * 4096)
    assert flops.per_tile - projector == pytest.approx(366e9, rel=0.01)


def test_step_adds_up_what_its_counts_cost() -> None:
    flops = FlopModel(per_token=7, per_pair=11, per_target=13, per_tile=17)
    counts = StepCounts(samples=19, images=23, tiles=2, tokens=3, pairs=6, targets=5, rejected=29)
    assert flops.step(counts) == 3 * 7 + 6 * 11 + 5 * 13 + 2 * 17


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_step_agrees_with_operations_counted_while_training_except_for_attention(stage: str) -> None:
    torch.set_num_threads(1)
    model = build_model("tiny", torch.device("cpu"), torch.float32, attention="sdpa")
    set_trainable(model, stage)  # type: ignore[arg-type]
    tower = model.get_vision_tower()
    assert tower is not None
    rows = [torch.randint(3, 331, (length,)) for length in LENGTHS]
    rows[0][1] = -200
    labels = [row.masked_fill(row < 0, -100) for row in rows]
    packed = pack_samples(list(zip(rows, labels, strict=True)), [tower.num_features])
    with FlopCounterMode(display=False) as counter:
        features = model.encode_vision(torch.randn(1, 3, 28, 28)).flatten(0, 1)
        model.packed_loss(packed, features).backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(number for operation, number in counted.items() if "attention" not in str(operation))
    counts = StepCounts(tiles=1, tokens=sum(packed.seqlens), targets=len(packed.targets))
    tower_attention = 2 * 4 * (tower.num_features + 1) ** 2 * tower.hidden_size
    assert products == FlopModel.of(model).step(counts) - tower_attention


def test_peak_is_that_of_the_first_name_that_fits() -> None:
    assert peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA L40S") == 362e12
    assert peak_of("some other device") is None
    assert peak_flops(torch.device("cpu")) is None


def test_steps_on_cached_features_leave_out_the_tower_only() -> None:
    flops = FlopModel(per_token=7, per_pair=11, per_target=13, per_tile=17, tower_per_tile=5)
    counts = StepCounts(tiles=3, tokens=2, pairs=1, targets=1)
    assert flops.step(counts) - flops.without_tower().step(counts) == 5 * 3
    assert flops.without_tower().tower_per_tile == 0
