"""Backbones with towers: what a user does with a model, once. `make pairs` takes every pair."""

from pathlib import Path

import pytest
import torch

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.hub.weights import build_llava, load_llava, save_llava, set_trainable
from tests.model.conftest import random_images
from tests.model.tiny import KINDS, PAIRS, TOWERS, VOCAB, save_tiny_backbone, save_tiny_tower

X = IMAGE_TOKEN_INDEX


def test_every_backbone_and_every_tower_is_in_a_pair() -> None:
    assert {kind for kind, _ in PAIRS} == set(KINDS)
    assert {tower for _, tower in PAIRS} == set(TOWERS)


@pytest.mark.parametrize(("kind", "tower"), PAIRS)
def test_pair_computes_learns_generates_saves_and_opens(kind: str, tower: str, tmp_path: Path) -> None:
    model = build_llava(save_tiny_backbone(kind, tmp_path / "lm"), save_tiny_tower(tower, tmp_path / "tower"))
    model.train(False)
    images, ids = random_images(2), torch.tensor([[1, X, 5, X, 7]])
    labels = ids.masked_fill(ids == X, IGNORE_INDEX)
    out = model(ids, labels=labels, images=images, num_items_in_batch=1)
    num_features = model.encode_vision(images).shape[1]
    assert out.logits.shape == (1, 3 + 2 * num_features, VOCAB)

    set_trainable(model, "finetune")
    batch = pack_samples([(ids[0], labels[0])], [num_features] * 2)
    loss = model.packed_loss(batch, model.encode_vision(images).flatten(0, 1))
    assert torch.allclose(loss, out.loss, rtol=1e-4)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []

    tokens = model.generate(ids, images=images, max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=True)
    assert tokens[0, 0] == out.logits[0, -1].index_fill(0, torch.tensor([2]), -torch.inf).argmax()
    save_llava(model, tmp_path / "saved")
    again = load_llava(tmp_path / "saved").train(False)(ids, images=images).logits
    assert torch.equal(again, out.logits)
