"""Prompts with several images in tiles, with one and with none, answered together as transformers answers alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.generate import build_conversation
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import OpenedModel, assemble_model
from pipeline.config import DataConfig, ModelConfig
from pipeline.errors import DataError
from pipeline.generation.generator import Generator
from pipeline.generation.requests import Prompt, Sampling
from pipeline.samples.prompt.ending import answer_as_trained
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER
from tests.jobs.conftest import png

NEW = 11


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    torch.manual_seed(11)
    parts = ModelConfig(
        language_model=str(LANGUAGE_MODEL), vision_tower=str(TOWER), mm_patch_merge_type="spatial_unpad"
    )
    data = DataConfig(
        shards=("none.tar",), image_aspect_ratio="anyres", image_grid_pinpoints="(1x2),(2x1),(2x2)", max_length=601
    )
    return assemble_model(parts, data, projector=None)


@pytest.fixture(scope="module")
def generator(opened: OpenedModel) -> Generator:
    return Generator(opened, load_tokenizer(str(LANGUAGE_MODEL)))


def prompts_of(generator: Generator) -> list[Prompt]:
    asked: list[tuple[str, list[bytes]]] = [
        ("What color is the circle?", [png(3, 97, 211)]),
        ("How many?", []),
        ("First: <image> Second: <image> Which image shows a square?", [png(5, 150, 90), png(7, 40, 41)]),
        ("Is there a red shape?", [png(9, 301, 100)]),
        ("true or false?", []),
    ]
    return [generator.prepare(build_conversation(text, len(images)), images) for text, images in asked]


def by_transformers(opened: OpenedModel, generator: Generator, prompt: Prompt) -> list[int]:
    model = opened.model
    ending = answer_as_trained(model, opened.encoder.template, generator.tokenizer)
    stats = pixel_stats_of(model.config)
    tiles = [normalize_pixels(torch.from_numpy(image.pixels), stats, torch.float32) for image in prompt.images]
    ids = model.generate(
        torch.from_numpy(prompt.input_ids)[None],
        images=tiles or None,
        image_sizes=[image.view for image in prompt.images] or None,
        do_sample=False,
        max_new_tokens=NEW,
        **ending.generation_options(generator.tokenizer),
    )
    return [int(token) for token in ids[0]]


@pytest.mark.parametrize("max_rows", [None, 1, 2])
def test_tiled_images_and_text_answer_together_as_alone(
    opened: OpenedModel, generator: Generator, max_rows: int | None
) -> None:
    prompts = prompts_of(generator)
    assert [sum(len(image.pixels) for image in prompt.images) for prompt in prompts] == [3, 0, 6, 3, 0]
    replies = generator.generate(prompts, [Sampling(NEW)] * len(prompts), max_rows)
    assert [list(reply.token_ids) for reply in replies] == [
        by_transformers(opened, generator, prompt) for prompt in prompts
    ]
    fused = [opened.model.fuse_prompts(torch.from_numpy(prompts[idx].input_ids)[None]) for idx in (1, 4)]
    assert [prompts[idx].num_tokens for idx in (1, 4)] == [one.inputs_embeds.shape[1] for one in fused]
    assert all(reply.num_prompt_tokens == prompt.num_tokens for reply, prompt in zip(replies, prompts, strict=True))


def test_a_reply_is_as_long_as_its_own_limit(generator: Generator) -> None:
    prompts = prompts_of(generator)[:3]
    replies = generator.generate(prompts, [Sampling(limit) for limit in (1, 5, 2)], max_rows=2)
    assert all(len(reply.token_ids) <= limit for reply, limit in zip(replies, (1, 5, 2), strict=True))
    assert {reply.finish_reason for reply in replies} <= {"stop", "length"}


def test_a_prompt_that_cannot_be_asked_is_refused(generator: Generator) -> None:
    with pytest.raises(DataError, match=r"takes \d+ tokens, \d+ more than the 601"):
        generator.prepare(build_conversation("word " * 700, 0), [])
    with pytest.raises(DataError, match="convert the image to JPEG"):
        generator.prepare(build_conversation("What?", 1), [b"not an image"])
    with pytest.raises(DataError, match="1 image places in the conversation but 2 images"):
        generator.prepare(build_conversation("What?", 1), [png(3, 20, 20)] * 2)
    with pytest.raises(ValueError, match="3 prompts but 2 samplings"):
        generator.generate(prompts_of(generator)[:3], [Sampling(1)] * 2)


def test_nothing_asked_is_nothing_answered(generator: Generator) -> None:
    assert generator.generate([], []) == []


def test_opening_a_generator_leaves_the_model_as_it_is(opened: OpenedModel, tmp_path: Path) -> None:
    before = opened.model.generation_config.to_dict()
    opened.model.generation_config.max_length = 17
    Generator(opened, load_tokenizer(str(LANGUAGE_MODEL)))
    assert opened.model.generation_config.max_length == 17
    opened.model.generation_config.max_length = before["max_length"]
