"""How far a LLaVA model is from transformers' own class of its language model, on the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.hub.weights import LlavaModel, set_trainable
from tests.model.conftest import random_images

X = IMAGE_TOKEN_INDEX
ROWS = [[1, X, 5, 6, 7], [7, 8, 9], [X, 3, X, 4, 5, 9, 2]]
LABELS = [[IGNORE_INDEX if token in (X, 6) else token for token in row] for row in ROWS]
IMAGES_OF_ROW = [slice(0, 1), slice(1, 1), slice(1, 3)]
NEW_TOKENS = 5


class Parity(NamedTuple):
    """Largest differences, each relative to the largest value of transformers' class."""

    logits: float
    loss: float
    """Of the packed row; transformers' class reads each sample alone."""
    gradients: float
    """Of the language model's weights, worst tensor."""
    tokens: int
    """How many of the greedily generated ones differ."""


def compare(model: LlavaModel, folder: str | Path) -> Parity:
    """Compare a model with the class of its language model, whose attention is transformers' own eager code.

    Args:
        model: in evaluation mode; its gradients are replaced.
        folder: its language model's weights.
    """
    other: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    other.train(False)
    set_trainable(model, "finetune")
    pixels = random_images(3)
    with torch.no_grad():
        features = model.encode_vision(pixels)
        projected = model.encode_images(pixels)

    samples = [(torch.tensor(row), torch.tensor(labels)) for row, labels in zip(ROWS, LABELS, strict=True)]
    loss = model.packed_loss(pack_samples(samples, [features.shape[1]] * 3), features.flatten(0, 1))
    loss.backward()

    errors, wanted = [], torch.zeros(())
    for ids, labels, part in zip(ROWS, LABELS, IMAGES_OF_ROW, strict=True):
        embeds, targets = _fused(model, ids, labels, projected[part])
        logits = other(inputs_embeds=embeds[None]).logits
        wanted = wanted + F.cross_entropy(logits[0, :-1], targets[1:], reduction="sum", ignore_index=IGNORE_INDEX)
        with torch.no_grad():
            own = model(torch.tensor([ids]), images=pixels[part] if X in ids else None).logits
        errors.append(_distance(own, logits))
    wanted.backward()
    return Parity(
        max(errors), _distance(loss, wanted), _worst_gradient(model, other), _other_tokens(model, other, projected[:1])
    )


def _fused(model: LlavaModel, ids: list[int], labels: list[int], features: Tensor) -> tuple[Tensor, Tensor]:
    """Put features [N, P, D] in the places of a sample's images; returns its embeddings [S, D] and labels [S]."""
    table, images = model.get_model().embed_tokens, iter(features)
    parts = [next(images) if token == X else table(torch.tensor([token])) for token in ids]
    targets = [torch.full((len(part),), label) for part, label in zip(parts, labels, strict=True)]
    return torch.cat(parts).detach(), torch.cat(targets)


def _distance(own: Tensor, other: Tensor) -> float:
    return float((own.detach() - other.detach()).abs().max() / other.detach().abs().max().clamp(min=1e-6))


def _worst_gradient(model: LlavaModel, other: Any) -> float:
    """Embeddings are left out: transformers' class was given them ready-made."""
    theirs = {name: p.grad for name, p in other.named_parameters() if p.grad is not None and "embed_tokens" not in name}
    own = {name: p.grad for name, p in model.named_parameters() if name in theirs}
    assert set(own) == set(theirs)
    assert len(own) > 10
    errors = []
    for name, gradient in theirs.items():
        mine = own[name]
        assert mine is not None, name
        errors.append(_distance(mine, gradient))
    return max(errors)


def _other_tokens(model: LlavaModel, other: Any, projected: Tensor) -> int:
    """Answer the first row greedily with both; transformers' class computes the whole sequence for each token."""
    embeds, _ = _fused(model, ROWS[0], LABELS[0], projected)
    wanted: list[int] = []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            wanted.append(int(other(inputs_embeds=embeds[None]).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, model.get_model().embed_tokens(torch.tensor([wanted[-1]]))])
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    tokens: Any = model.generate(
        torch.tensor([ROWS[0]]), images=random_images(3)[:1], max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return sum(mine != theirs for mine, theirs in zip(tokens[0].tolist(), wanted, strict=True))
