"""Ways to compute a step that must not change it: loss and gradients within float32 rounding of each other.

More of these: the chunked loss against full logits in tests/model/llava/test_loss.py, packed rows against padded
batches in tests/model/test_packed_loss.py, recomputed and compiled layers in test_acceleration.py, transformers
LLaVA in tests/model/test_parity.py and tests/benchmarks/step/test_side_by_side.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ranks.rank_processes import run_ranks
from benchmarks.step.shapes import build_model, features_per_image
from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.packed import pack_samples
from model.fusion.resolution import ImageView
from model.hub.weights import set_trainable
from pipeline.checkpoint.state import gather_whole
from pipeline.parallel.ranks import Workers
from pipeline.stream.feature_files import ShardReader, ShardWriter
from pipeline.training.sharding import shard_model

CPU = torch.device("cpu")
LENGTHS = (7, 31, 2, 13)
VOCAB = 331


def tiny_model() -> LlavaLlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = build_model("tiny", CPU, torch.float32)
    set_trainable(model, "finetune")
    return model


def samples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, VOCAB, (length,), generator=generator)
        ids[1] = -200
        labels = ids.masked_fill(ids < 0, -100)
        rows.append((ids, labels))
    return rows


def pixels() -> torch.Tensor:
    return torch.randn(len(LENGTHS), 3, 28, 28, generator=torch.Generator().manual_seed(11))


def run(model: LlavaLlamaForCausalLM, cuts: list[list[int]], features: torch.Tensor | None = None) -> float:
    """Forward and backward of samples cut into packed rows; returns the loss, leaves gradients in the model."""
    rows = samples()
    if features is None:
        features = model.encode_vision(pixels())
    total = 0.0
    for members in cuts:
        batch = pack_samples([rows[idx] for idx in members], [features_per_image("tiny")] * len(members))
        loss = model.packed_loss(batch, features[members].flatten(0, 1))
        loss.backward()
        total += loss.item()
    return total


def gradients(model: LlavaLlamaForCausalLM) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return gather_whole(found, keep=True)


def assert_close(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("cuts", [[[0], [1], [2], [3]], [[0, 3], [2, 1]]], ids=["unpacked", "two rows"])
def test_one_packed_row_equals_other_cuts(cuts: list[list[int]]) -> None:
    packed, other = tiny_model(), tiny_model()
    assert run(packed, [[0, 1, 2, 3]]) == pytest.approx(run(other, cuts), rel=1e-6)
    assert_close(gradients(packed), gradients(other))


def test_cached_features_equal_computed_ones(tmp_path: Path) -> None:
    computed, cached = tiny_model(), tiny_model()
    writer = ShardWriter(tmp_path, "5" * 64, max_file_bytes=1)
    for number, image in enumerate(cached.encode_vision(pixels())):
        writer.add(bytes([number]) * 16, ImageView(28, 28), image[None])
    writer.finish()
    found = [ShardReader(tmp_path, "5" * 64).find(bytes([number]) * 16) for number in range(len(LENGTHS))]
    features = torch.cat([image.features for image in found if image is not None])
    cuts = [[0, 3], [2, 1]]
    assert run(cached, cuts, features) == run(computed, cuts)
    got, wanted = gradients(cached), gradients(computed)
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


def test_two_sharded_ranks_equal_one_process(tmp_path: Path) -> None:
    alone = tiny_model()
    wanted_loss = run(alone, [[0, 1], [2, 3]])
    run_ranks(partial(_run_rank, tmp_path / "found.pt"), 2, use_gpu=False, timeout_s=120.0)
    found: dict[str, Any] = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["loss"] == pytest.approx(wanted_loss, rel=1e-6)
    assert_close(found["gradients"], gradients(alone))


def _run_rank(path: Path, workers: Workers) -> None:
    model = tiny_model()
    shard_model(model, workers, torch.float32)
    loss = workers.sum([run(model, [[[0, 1], [2, 3]][workers.rank]])])[0]
    found = gradients(model)
    if workers.is_first:
        torch.save({"loss": loss, "gradients": found}, path)
