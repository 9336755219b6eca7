"""Gradients of a rank-step: of the loss over the tokens of the whole step, however it is split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.step.shapes import features_per_image
from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.packed import pack_samples
from pipeline.training.gradients import LocalLoss, accumulate_gradients
from tests.pipeline.training.small_session import (
    SOURCES,
    make_model,
    make_plan,
    make_session,
    picture,
    prepared_steps,
    sample,
)


def loss_of(model: LlavaLlamaForCausalLM, sample_id: int) -> tuple[Tensor, int]:
    """Loss summed over the targets of one sample, alone in a forward pass of its own; and how many these are."""
    batch = pack_samples([sample(sample_id)], [features_per_image("tiny")])
    return model.packed_loss(batch, model.encode_vision(picture(sample_id))), len(batch.targets)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("trains_tower", [False, True])
def test_accumulate_gradients_equal_those_of_the_mean_over_all_targets(tmp_path: Path, trains_tower: bool) -> None:
    session = make_session(tmp_path, vision_tower_lr=0.01 if trains_tower else None)
    prepared = next(prepared_steps(session))
    assert len(prepared.micro_batches) > 1
    local = accumulate_gradients(session, prepared, prepared.counts.targets, prepared.counts.tokens)

    reference = make_model(trains_tower=trains_tower)
    losses, counts = zip(*(loss_of(reference, idx) for idx in session.plan.samples(0).tolist()), strict=True)
    wanted = torch.stack(losses).sum() / sum(counts)
    wanted.backward()
    assert prepared.counts.targets == sum(counts)
    assert local.share.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert not local.share.requires_grad
    found, expected = gradients(session.model), gradients(reference)
    assert found.keys() == expected.keys()
    assert any("vision_tower" in name for name in found) is trains_tower
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_accumulate_gradients_divides_by_the_targets_of_all_ranks(tmp_path: Path) -> None:
    own, half = make_session(tmp_path / "own"), make_session(tmp_path / "half")
    prepared = next(prepared_steps(own))
    alone = accumulate_gradients(own, prepared, prepared.counts.targets, prepared.counts.tokens)
    shared = accumulate_gradients(half, prepared, 2 * prepared.counts.targets, 2 * prepared.counts.tokens)
    assert shared.share.item() == pytest.approx(alone.share.item() / 2)
    for name, gradient in gradients(own.model).items():
        torch.testing.assert_close(gradients(half.model)[name], gradient / 2, msg=name)


def test_accumulate_gradients_with_a_single_target_is_not_divided(tmp_path: Path) -> None:
    one, none = make_session(tmp_path / "one"), make_session(tmp_path / "none")
    prepared = next(prepared_steps(one))
    shares = [
        accumulate_gradients(session, prepared, count, 1.0).share.item() for session, count in ((one, 1.0), (none, 0.0))
    ]
    assert shares[0] == shares[1]
    summed = sum(loss_of(make_model(), idx)[0].item() for idx in one.plan.samples(0).tolist())
    assert shares[0] == pytest.approx(summed, rel=1e-5)


def test_accumulate_gradients_by_source_sums_undivided_losses(tmp_path: Path) -> None:
    session = make_session(tmp_path, plan=make_plan(SOURCES))
    prepared = next(prepared_steps(session))
    local = accumulate_gradients(session, prepared, prepared.counts.targets, prepared.counts.tokens)
    wanted = [0.0, 0.0]
    for sample_id in session.plan.samples(0).tolist():
        wanted[sample_id >= SOURCES.end_rows[0]] += loss_of(make_model(), sample_id)[0].item()
    assert 0 not in wanted
    share, *by_source = local.tolist()
    assert by_source == pytest.approx(wanted, rel=1e-5)
    assert share == pytest.approx(sum(wanted) / prepared.counts.targets, rel=1e-5)


def test_local_loss_to_list_begins_with_the_share() -> None:
    assert LocalLoss(torch.tensor(0.5), torch.tensor([2.0, 3.0]), torch.tensor([7.0])).tolist() == [0.5, 2.0, 3.0, 7.0]
    assert LocalLoss(torch.tensor(0.5), torch.zeros(0), torch.zeros(0)).tolist() == [0.5]


def test_features_from_a_cache_are_used_in_place_of_the_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = make_session(tmp_path / "plain"), make_session(tmp_path / "cached")
    prepared = next(prepared_steps(plain))
    features = plain.model.encode_vision(prepared.pixels)
    wanted = accumulate_gradients(plain, prepared, 1.0, 1.0)

    def never(*_: object) -> None:
        raise AssertionError("the tower ran although its features are known")

    monkeypatch.setattr(cached.model, "encode_vision", never)
    found = accumulate_gradients(cached, prepared._replace(features=features, pixels=prepared.pixels[:0]), 1.0, 1.0)
    assert found.share.item() == pytest.approx(wanted.share.item(), rel=1e-6)


@pytest.mark.parametrize("trains_tower", [False, True])
def test_tower_runs_on_the_whole_step_when_frozen_and_on_each_micro_batch_when_it_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trains_tower: bool
) -> None:
    session = make_session(tmp_path, vision_batch_size=3, vision_tower_lr=0.01 if trains_tower else None)
    prepared = next(prepared_steps(session))
    seen: list[tuple[int, int | None]] = []
    encode = session.model.encode_vision

    def watched(pixels: Tensor, chunk: int | None = None, grids: None = None) -> Tensor:
        seen.append((len(pixels), chunk))
        return encode(pixels, chunk, grids)

    monkeypatch.setattr(session.model, "encode_vision", watched)
    accumulate_gradients(session, prepared, 1.0, 1.0)
    batches = [(len(batch.tiles), 3) for batch in prepared.micro_batches]
    assert seen == (batches if trains_tower else [(7, 3)])


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_forward_computes_in_the_precision_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    session = make_session(tmp_path, precision=precision)
    seen: list[torch.dtype] = []
    loss = session.model.packed_loss

    def watched(*arguments: Tensor) -> Tensor:
        enabled = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if enabled else torch.float32)
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(session.model, "packed_loss", watched)
    prepared = next(prepared_steps(session))
    accumulate_gradients(session, prepared, 1.0, 1.0)
    assert seen == [dtype] * len(prepared.micro_batches)
