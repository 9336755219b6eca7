"""Equality with transformers' own LLaVA for copied weights."""

from typing import cast

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.vision.vision_tower import VisionTower
from tests.model.conftest import NUM_PATCHES, VOCAB, random_images, tiny_llama_config

X = IMAGE_TOKEN_INDEX
IMAGE_ID = VOCAB - 1


def copy_of(model: LlavaLlamaForCausalLM) -> LlavaForConditionalGeneration:
    tower = model.get_vision_tower()
    assert isinstance(tower, VisionTower)
    other = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower.config,
            text_config=tiny_llama_config(),
            image_token_index=IMAGE_ID,
            image_seq_length=NUM_PATCHES,
            vision_feature_layer=-2,
        )
    )
    body = {
        name: tensor
        for name, tensor in model.model.state_dict().items()
        if not name.startswith(("vision_tower.", "mm_projector."))
    }
    other.model.language_model.load_state_dict(body)
    other.model.vision_tower.load_state_dict(tower.vision_tower.state_dict())
    first, _, second = model.model.mm_projector
    other.model.multi_modal_projector.linear_1.load_state_dict(first.state_dict())
    other.model.multi_modal_projector.linear_2.load_state_dict(second.state_dict())
    other.lm_head.load_state_dict(model.lm_head.state_dict())
    return cast(LlavaForConditionalGeneration, other.eval())


def expand(rows: list[list[int]], image: int) -> list[list[int]]:
    return [[t for token in row for t in ([image] * NUM_PATCHES if token == X else [token])] for row in rows]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[1, X, 5, 6, 7]], id="single-image"),
        pytest.param([[1, X, 5, X, 6, 7, X], [X, 4, X, 9, 3, 2, X]], id="multi-image"),
        pytest.param([[1, X, 5, 6], [7, 8, 9], [X, 3, X, 4, 5], [2, 6]], id="mixed"),
    ],
)
def test_logits_loss_and_projector_gradients_equal_transformers(
    llava: LlavaLlamaForCausalLM, rows: list[list[int]]
) -> None:
    reference = copy_of(llava)
    images = random_images(sum(row.count(X) for row in rows))
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, IGNORE_INDEX).masked_fill(ids == X, IGNORE_INDEX)
    ours = llava(ids, attention_mask=mask, labels=labels, images=images)

    long_rows = expand(rows, IMAGE_ID)
    long = max(map(len, long_rows))
    their_ids = torch.tensor([row + [0] * (long - len(row)) for row in long_rows])
    their_mask = torch.tensor([[1] * len(row) + [0] * (long - len(row)) for row in long_rows])
    their_labels = their_ids.masked_fill(their_mask == 0, IGNORE_INDEX).masked_fill(their_ids == IMAGE_ID, IGNORE_INDEX)
    theirs = reference(their_ids, attention_mask=their_mask, labels=their_labels, pixel_values=images)

    visible = their_mask.bool()
    assert torch.allclose(ours.logits[visible], theirs.logits[visible], atol=1e-5)
    assert torch.allclose(ours.loss, theirs.loss, atol=1e-5)
    ours.loss.backward()
    theirs.loss.backward()
    projector = reference.model.multi_modal_projector
    for mine, other in (
        (llava.model.mm_projector[0], projector.linear_1),
        (llava.model.mm_projector[2], projector.linear_2),
    ):
        assert mine.weight.grad.abs().max() > 1e-4
        assert torch.allclose(mine.weight.grad, other.weight.grad, atol=1e-5)
        assert torch.allclose(mine.bias.grad, other.bias.grad, atol=1e-5)
