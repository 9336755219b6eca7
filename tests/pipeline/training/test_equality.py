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
from pipeline.checkpoint.state import HostCopies, gather_whole
from pipeline.config import ConfigError, TrainingConfig
from pipeline.parallel.ranks import Workers
from pipeline.stream.feature_files import ShardReader, ShardWriter
from pipeline.training.optim import build_optimizer
from pipeline.training.sharding import check_groups, choose_reduction, shard_model

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


def run(
    model: LlavaLlamaForCausalLM,
    cuts: list[list[int]],
    features: torch.Tensor | None = None,
    *,
    once_per_step: bool = False,
) -> float:
    """Forward and backward of samples cut into packed rows; returns the loss, leaves gradients in the model."""
    rows = samples()
    if features is None:
        features = model.encode_vision(pixels())
    total = 0.0
    for number, members in enumerate(cuts):
        choose_reduction(model, is_last=number + 1 == len(cuts), once_per_step=once_per_step)
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


@pytest.fixture(scope="module")
def found_by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four ranks found with every kind of sharding."""
    path = tmp_path_factory.mktemp("ranks") / "found.pt"
    run_ranks(partial(_run_rank, path), 4, use_gpu=False, timeout_s=300.0)
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


KINDS: dict[str, dict[str, Any]] = {
    "all": {},
    "all, once": {"reduce_gradients": "step"},
    "groups": {"fsdp_group_size": 2},
    "groups, once": {"fsdp_group_size": 2, "reduce_gradients": "step"},
    "one group": {"fsdp_group_size": 4},
    "bfloat16": {"fsdp_group_size": 2, "reduce_dtype": "bfloat16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_ranks_equal_one_process(found_by_ranks: dict[str, Any], kind: str) -> None:
    """Each rank has two micro-batches, of which some hold no sample."""
    alone = tiny_model()
    wanted_loss = run(alone, [[0, 1], [2, 3]])
    found = found_by_ranks[kind]
    assert found["loss"] == pytest.approx(wanted_loss, rel=1e-6)
    wanted = gradients(alone)
    if kind == "bfloat16":  # 8 bits of each part
        assert found["gradients"].keys() == wanted.keys()
        errors = [(found["gradients"][name] - wanted[name]).norm() / wanted[name].norm() for name in wanted]
        assert 1e-5 < max(errors) < 0.02
    else:
        assert_close(found["gradients"], wanted)


@pytest.mark.parametrize(("kind", "writers"), [("all", 4), ("groups", 2)])
def test_ranks_save_every_element_once(found_by_ranks: dict[str, Any], kind: str, writers: int) -> None:
    shares = found_by_ranks[kind]["shares"]
    assert [bool(share) for share in shares] == [rank < writers for rank in range(4)]
    for name, parameter in tiny_model().named_parameters():
        if parameter.requires_grad:
            rows = sorted(tuple(share[name]) for share in shares if name in share)
            assert [first for first, _ in rows] == [0, *(end for _, end in rows[:-1])], name
            assert rows[-1][1] == parameter.shape[0], name


def test_groups_that_cannot_hold_all_ranks_are_refused() -> None:
    check_groups(1, 8)
    check_groups(16, 8)
    with pytest.raises(ConfigError, match="fsdp_group_size is 8, but 12 workers"):
        check_groups(12, 8)


def _run_rank(path: Path, workers: Workers) -> None:
    found = {}
    for kind, options in KINDS.items():
        training = TrainingConfig(global_batch_size=4, learning_rate=1e-3, sharding="fsdp", **options)
        model = tiny_model()
        shard_model(model, workers, training)
        cuts: list[list[int]] = [[[0], []], [[1], []], [[], [2]], [[3], []]][workers.rank]
        loss = workers.sum([run(model, cuts, once_per_step=training.reduce_gradients == "step")])[0]
        copies = HostCopies().take(model, build_optimizer(model, training), own_shards=True, is_first=workers.is_first)
        rows = {
            name: (piece.offsets[0], piece.offsets[0] + len(piece.tensor)) for name, piece in copies["model"].items()
        }
        found[kind] = {"loss": loss, "gradients": gradients(model), "shares": workers.gather(rows)}
    if workers.is_first:
        torch.save(found, path)
