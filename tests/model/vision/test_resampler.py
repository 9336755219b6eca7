"""Queries that read an image's features: as many come out as there are queries, through every path of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.hub.weights import load_llava, save_llava
from model.vision.projector import num_projected_features
from model.vision.resampler import Resampler
from tests.model.conftest import WIDTH, random_images

X = IMAGE_TOKEN_INDEX
MakeLlava = Callable[..., LlavaLlamaForCausalLM]


def test_number_of_features_is_the_number_of_queries() -> None:
    assert num_projected_features("resampler5_2", 576) == 5
    assert num_projected_features("pool2_resampler5_2", 144) == 5
    assert num_projected_features("mlp2x_gelu", 576) == 576


def test_output_does_not_depend_on_the_order_of_features() -> None:
    torch.manual_seed(3)
    resampler = Resampler(5, 2, 22, WIDTH)
    features = torch.randn(2, 9, 22)
    out = resampler(features)
    assert out.shape == (2, 5, WIDTH)
    assert torch.allclose(resampler(features.flip(1)), out, atol=1e-5)
    assert not torch.allclose(resampler(features[:, :8]), out, atol=1e-3)
    with pytest.raises(ValueError, match="image by image"):
        resampler(features.flatten(0, 1))


def test_packed_loss_equals_the_padded_one_and_reaches_the_queries(make_llava: MakeLlava) -> None:
    model = make_llava("resampler5_2")
    ids, images = torch.tensor([[1, X, 5, X, 7]]), random_images(2)
    labels = ids.masked_fill(ids == X, -100)
    out = model(ids, labels=labels, images=images, num_items_in_batch=1)
    assert out.logits.shape[1] == 3 + 2 * 5
    loss = model.packed_loss(pack_samples([(ids[0], labels[0])], [5, 5]), model.encode_vision(images))
    assert torch.allclose(loss, out.loss, rtol=1e-5)
    loss.backward()
    assert model.model.mm_projector.queries.grad.any()
    text = torch.tensor([1, 5, 7])
    model.packed_loss(pack_samples([(text, text)], []), None).backward()
    assert model.model.mm_projector.queries.grad is not None


def test_model_with_a_resampler_saves_and_opens(make_llava: MakeLlava, tmp_path: Path) -> None:
    model = make_llava("resampler5_2")
    ids, images = torch.tensor([[1, X, 5]]), random_images(1)
    save_llava(model, tmp_path)
    assert torch.equal(load_llava(tmp_path).train(False)(ids, images=images).logits, model(ids, images=images).logits)
