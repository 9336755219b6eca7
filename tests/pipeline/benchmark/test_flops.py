import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.packed import pack_samples
from model.weights import set_trainable
from pipeline.benchmark.flops import FlopModel, SampleSize, peak_flops
from pipeline.benchmark.shapes import build_model, llava_config

LENGTHS = (67, 1, 31, 5, 127)  # few enough for one chunk of the loss: torch does not count products added in place


def test_of_llama_7b_matches_published_sizes() -> None:
    flops = FlopModel.of(llava_config("7b"), num_tower_layers=23)
    assert flops.layer_linear_per_token == 2 * 202_375_168  # parameters in one layer's matrices
    assert flops.num_layers * flops.layer_linear_per_token // 2 == 6_476_005_376
    assert flops.head_per_target == 2 * 131_072_000
    assert flops.tower_per_image == pytest.approx(366e9, rel=0.01)


def test_step_one_sample_counts_forward_and_what_the_stage_needs_backward() -> None:
    flops = FlopModel(
        layer_linear_per_token=7,
        layer_attention_per_pair=11,
        num_layers=2,
        head_per_target=13,
        projector_first_per_image=17,
        projector_rest_per_image=19,
        tower_per_image=23,
    )
    sample = SampleSize(num_tokens=3, num_images=1, num_targets=2)
    attention = 3 * 2 * 11 * 6  # forward and twice that backward, 2 layers, 6 causal pairs
    beside = 2 * 17 + 3 * 19 + 23
    assert flops.step([sample], "finetune") == 3 * (2 * 7 * 3 + 13 * 2) + attention + beside
    assert flops.step([sample], "pretrain") == 2 * (2 * 7 * 3 + 13 * 2) + attention + beside


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
    sizes = [SampleSize(n, 0, int((row != -100).sum()) - 1) for n, row in zip(packed.seqlens, labels, strict=True)]
    sizes[0] = sizes[0]._replace(num_images=1, num_targets=sizes[0].num_targets)
    flops = FlopModel.of(model.config, tower.num_used_layers)
    attention_free = FlopModel(**{**vars(flops), "layer_attention_per_pair": 0})
    tower_attention = 2 * 4 * (tower.num_features + 1) ** 2 * tower.hidden_size
    assert products == attention_free.step(sizes, stage) - tower_attention  # type: ignore[arg-type]


def test_peak_flops_by_device_name() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("some other device") is None
