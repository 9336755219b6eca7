from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IMAGE_TOKEN_INDEX
from tests.model.conftest import random_images

X = IMAGE_TOKEN_INDEX
NEW = 6


def greedy(model: LlavaLlamaForCausalLM, ids: list[int], images: torch.Tensor | None) -> list[int]:
    """Continue one prompt by running the whole sequence again for each token."""
    out: list[int] = []
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(torch.tensor([ids + out]), images=images).logits
        out.append(int(logits[0, -1].argmax()))
    return out


def generate(model: LlavaLlamaForCausalLM, ids: list[list[int]], **kwargs: Any) -> list[list[int]]:
    tokens = model.generate(torch.tensor(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **kwargs)
    return [list(row) for row in tokens.tolist()]


@pytest.fixture(autouse=True)
def _no_end_token(llava: LlavaLlamaForCausalLM) -> None:
    llava.generation_config.eos_token_id = None
    llava.generation_config.pad_token_id = 0


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_one_image_equals_full_forward_per_token(llava: LlavaLlamaForCausalLM, use_cache: bool) -> None:
    images = random_images(1)
    assert generate(llava, [[1, X, 5, 6]], images=images, use_cache=use_cache) == [greedy(llava, [1, X, 5, 6], images)]


@pytest.mark.parametrize("left", [True, False])
def test_generate_mixed_batch_equals_prompts_run_alone(llava: LlavaLlamaForCausalLM, left: bool) -> None:
    prompts = [[1, X, 5, 6, X], [4, 5], [7, X, 8]]
    images = random_images(3)
    width = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        fill = [0] * (width - len(prompt))
        ids.append(fill + prompt if left else prompt + fill)
        mask.append([0] * len(fill) + [1] * len(prompt) if left else [1] * len(prompt) + [0] * len(fill))
    got = generate(llava, ids, images=images, attention_mask=torch.tensor(mask))
    assert got == [
        greedy(llava, prompts[0], images[:2]),
        greedy(llava, prompts[1], None),
        greedy(llava, prompts[2], images[2:]),
    ]


def test_generate_text_only_equals_the_plain_language_model(llava: LlavaLlamaForCausalLM, llama_path: str) -> None:
    plain: Any = LlamaForCausalLM.from_pretrained(llama_path)
    ids = torch.tensor([[1, 5, 9]])
    wanted = plain.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None)
    assert generate(llava, [[1, 5, 9]]) == wanted[:, 3:].tolist()


def test_generate_accepts_input_ids_by_name_and_beams(llava: LlavaLlamaForCausalLM) -> None:
    tokens = llava.generate(
        input_ids=torch.tensor([[1, X]]), images=random_images(1), max_new_tokens=3, num_beams=2, do_sample=False
    )
    assert tokens.shape == (1, 3)


def test_generate_placeholder_without_images_refuses(llava: LlavaLlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="row 0 has 1 image placeholders"):
        generate(llava, [[1, X]])
