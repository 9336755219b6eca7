"""Variants of annotations: conversations of every shape, as damaged JSON, down to token ids."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.errors import DataError
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.schema import SchemaPolicy, parse_sample
from tests.fuzz.mutate import damage
from tests.pipeline.samples.test_encode import make_encoder

_SPEAKERS = ("human", "gpt", "system", "user", "assistant", "tool", "", None, 3)
_PIECES = (
    "What is it?", "<image>", "<image>\n", "</s>", "<s>", "<|im_end|>", "[INST]", "USER:", "ASSISTANT: A",
    "\u202e", "\U0001f600", " ", "\n", "a" * 70, "\u4e2d\u6587", "<unk>", "-200", "{", "\\", "<0x0A>",
)  # fmt: skip
_EXTENSIONS = ("jpg", "png", "0.png", "1.jpg", "2.webp", "10.png", "0.jpg")


@functools.cache
def _encoder() -> SampleEncoder:
    return make_encoder("v1", max_length=500)


def run_case(rng: random.Random) -> str:
    """Build an annotation, damage it or not, parse and encode it; return the reason, or `samples`.

    Raises:
        AssertionError: image places, images and placeholders in the token ids differ, or nothing is learnt.
    """
    images = rng.sample(_EXTENSIONS, rng.choice((0, 1, 1, 1, 2, 3)))
    members = dict.fromkeys(images, b"i")
    if rng.random() < 0.2:
        members["txt"] = _text(rng).encode("utf-8", "surrogatepass")
    if "txt" not in members or rng.random() < 0.2:
        data = json.dumps(_tree(rng, images), ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
        members["json"] = damage(data, rng) if rng.random() < 0.4 else data
    policy = SchemaPolicy(rng.random() < 0.3, rng.random() < 0.3)
    try:
        sample = parse_sample("k", members, policy)
        assert sample.conversation.num_images == len(sample.images)
        views = _encoder().views([(5, 7)] * len(sample.images), sample.is_video)
        encoded = _encoder().encode_conversation(sample.conversation, views, key="k")
    except DataError as error:
        return error.reason.value
    assert int((encoded.input_ids == IMAGE_TOKEN_INDEX).sum()) == len(sample.images)
    assert bool((encoded.labels != IGNORE_INDEX).any()), "a sample that teaches nothing"
    return "samples"


def _tree(rng: random.Random, images: list[str]) -> Any:
    """Return an annotation that is usually almost right."""
    turns = [_turn(rng, idx) for idx in range(rng.choice((0, 1, 2, 2, 2, 3, 4)))]
    if turns and images and rng.random() < 0.6:
        turns[0] = {"from": "human", "value": "<image>" * len(images) + _text(rng)}
    tree: dict[str, Any] = {rng.choice(("conversations", "conversations", "messages", "turns")): turns}
    if rng.random() < 0.7:
        names = rng.choice(
            (images, images, images[::-1], ["x.png"], ["http://host/a.png"], images + images[:1], [3], "")
        )
        tree[rng.choice(("image", "image", "images"))] = names
    if rng.random() < 0.1:
        deep: Any = 0
        for _ in range(rng.choice((3, 31, 40))):
            deep = [deep]
        tree["extra"] = deep
    return rng.choice((tree, tree, tree, tree, tree, [tree], turns, None, 7)) if rng.random() < 0.1 else tree


def _turn(rng: random.Random, idx: int) -> Any:
    honest = rng.random() < 0.85
    speaker = ("human", "gpt")[idx % 2] if honest else rng.choice(_SPEAKERS)
    text: Any = _text(rng)
    if rng.random() < 0.15:
        kinds = ("text", "image", "image_url", "video", None)
        text = [{"type": rng.choice(kinds), "text": _text(rng)} for _ in range(rng.randrange(3))]
    fields = rng.choice((("from", "value"), ("role", "content")))
    turn = dict(zip(fields, (speaker, text), strict=True))
    return turn if rng.random() < 0.97 else rng.choice((None, "turn", [], {}, {fields[0]: speaker}))


def _text(rng: random.Random) -> str:
    text = "".join(rng.choices(_PIECES, k=rng.choice((0, 1, 1, 2, 3, 5))))
    return text + rng.choice(("\ud800", "\x00")) if rng.random() < 0.03 else text
