"""Every backbone computes what transformers' class of its language model computes, from files to gradients."""

from pathlib import Path

import pytest
import torch

from model.fusion.packed import pack_samples
from model.hub.weights import build_llava
from model.llava.attention import enable_packed_attention
from tests.model.backbones.parity import LABELS, ROWS, compare
from tests.model.conftest import random_images
from tests.model.tiny import KINDS, save_tiny_backbone


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_gradients_and_answers_equal_those_of_transformers(
    kind: str, tower_path: str, tmp_path: Path
) -> None:
    folder = save_tiny_backbone(kind, tmp_path)
    parity = compare(build_llava(folder, tower_path).eval(), folder)
    assert parity.logits < 1e-5
    assert parity.loss < 1e-5
    assert parity.gradients < 1e-4
    assert parity.tokens == 0


@pytest.mark.parametrize("kind", ["gemma2", "ministral", "olmo3"])
def test_flex_computes_caps_and_windows_in_the_packed_row(kind: str, tower_path: str, tmp_path: Path) -> None:
    model = build_llava(save_tiny_backbone(kind, tmp_path), tower_path).eval()
    features = model.encode_vision(random_images(3))
    samples = [(torch.tensor(row), torch.tensor(labels)) for row, labels in zip(ROWS, LABELS, strict=True)]
    batch = pack_samples(samples, [features.shape[1]] * 3)
    with torch.no_grad():  # flex has no backward pass on a CPU
        wanted = model.packed_loss(batch, features.flatten(0, 1))
        enable_packed_attention(model, "flex")
        got = model.packed_loss(batch, features.flatten(0, 1))
    assert torch.allclose(got, wanted, rtol=1e-5)
