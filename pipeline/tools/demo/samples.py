"""Samples of the demo as the records that go into shards: captioned scenes, and conversations about scenes.

Every sample is a pure function of (split, index); held-out samples come from other scenes, and from combinations of
colour and shape that no training sample has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pipeline.tools.demo.questions import ORDINALS, Question, ask, caption
from pipeline.tools.demo.scenes import ALL_COMBINATIONS, TRAINING_COMBINATIONS, Combination, Scene, random_scene

Split: TypeAlias = Literal["pretrain", "finetune", "held_out", "backbones", "backbones_held_out"]
_HELD_OUT: frozenset[Split] = frozenset({"held_out", "backbones_held_out"})
_ONE_WORDING: frozenset[Split] = frozenset({"backbones", "backbones_held_out"})
"""The backbones learn a single wording of each question; the demo asks in several."""

_NUM_IMAGES = {0: 0.1, 1: 0.5, 2: 0.25, 3: 0.15}
"""Share of conversations about that many images; those about none describe a scene in words."""
_MAX_THINGS = {0: 4, 1: 4, 2: 3, 3: 3}


@dataclass(frozen=True)
class CaptionSample:
    """One scene and its caption."""

    scene: Scene
    caption: str


@dataclass(frozen=True)
class ConversationSample:
    """Questions about the scenes shown, or about a scene that the first turn describes in words."""

    scenes: tuple[Scene, ...]
    """The images, in order; empty for a text-only sample."""
    preamble: str
    """What the first turn says before its question, placeholders included."""
    questions: tuple[Question, ...]

    def conversations(self) -> list[dict[str, str]]:
        """Return the turns in LLaVA's form."""
        turns: list[dict[str, str]] = []
        for k, question in enumerate(self.questions):
            text = self.preamble + question.text if k == 0 else question.text
            turns.append({"from": "human", "value": text})
            turns.append({"from": "gpt", "value": question.answer})
        return turns

    def record(self, sample_id: str, image_names: Sequence[str]) -> dict[str, Any]:
        """Return the LLaVA record, with the kind of every question under `kinds`.

        Args:
            sample_id: unique name of the sample.
            image_names: member names of the images, e.g. `0.png`; one per scene.
        """
        record: dict[str, Any] = {"id": sample_id, "conversations": self.conversations()}
        if image_names:
            record["image"] = list(image_names)
        record["kinds"] = [question.kind for question in self.questions]
        return record


def caption_sample(split: Split, index: int) -> CaptionSample:
    """Return the caption sample with this number."""
    rng = random.Random(f"caption/{split}/{index}")
    scene = random_scene(rng, rng.randint(1, 4), _combinations(split))
    return CaptionSample(scene, caption(rng, scene))


def conversation_sample(split: Split, index: int, max_questions: int = 4) -> ConversationSample:
    """Return the conversation with this number; it has at least one question."""
    rng = random.Random(f"conversation/{split}/{index}")
    num_images = rng.choices(list(_NUM_IMAGES), weights=list(_NUM_IMAGES.values()))[0]
    scenes = tuple(
        random_scene(rng, rng.randint(1, _MAX_THINGS[num_images]), _combinations(split))
        for _ in range(max(1, num_images))
    )
    preamble = image_preamble(num_images) if num_images else f"A picture shows {caption(rng, scenes[0])} "
    questions = tuple(ask(rng, scenes, max_questions, one_wording=split in _ONE_WORDING))
    return ConversationSample(scenes if num_images else (), preamble, questions)


def image_preamble(num_images: int) -> str:
    """Return the placeholders that open a conversation; several images are numbered in words."""
    if num_images == 1:
        return "<image>\n"
    return "".join(f"{ORDINALS[k].capitalize()} image: <image>\n" for k in range(num_images))


def _combinations(split: Split) -> tuple[Combination, ...]:
    return ALL_COMBINATIONS if split in _HELD_OUT else TRAINING_COMBINATIONS
