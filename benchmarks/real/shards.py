"""Shards of emoji scenes: captions, conversations, and held-out sets whose emoji no training picture shows.

`held_out.tar` has the vendors of training, `other_vendor.tar` a third one. `*_shuffled.tar` have the same questions
with the pictures of other samples.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image

from benchmarks.real.emoji import Scene, draw_scene, drawing, read_emoji

_VENDORS: Final = ("google", "twitter")
_OTHER_VENDOR: Final = "fluent"
_HELD_OUT_SHARE: Final = 0.2
_MOST_EMOJI: Final = 120  # of a class
_QUESTIONS: Final = {
    "class": ("What is shown?", "What do you see?", "Which kind of thing is this?"),
    "background": ("Which color is the background?", "What color is behind it?", "Name the background color."),
}
HELD_OUT: Final = ("held_out", "other_vendor")


class Sizes(NamedTuple):
    """Scenes of each class."""

    captions: int = 200
    conversations: int = 200
    held_out: int = 25


def write_shards(packages: dict[str, Path], folder: Path, sizes: Sizes) -> None:
    """Write all shards that are not there yet, the same ones every time."""
    if (folder / "other_vendor_shuffled.tar").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    # 1. Emoji for training and held-out ones, of every class.
    train, held = {}, {}
    for name, stems in read_emoji(packages).items():
        rng.shuffle(stems)
        chosen = stems[:_MOST_EMOJI]
        cut = round(len(chosen) * _HELD_OUT_SHARE)
        held[name], train[name] = chosen[:cut], chosen[cut:]
    # 2. Training.
    scenes = _scenes(packages, train, _VENDORS, sizes.captions, rng)
    _write(folder / "captions.tar", [_caption(scene) for scene in scenes])
    scenes = _scenes(packages, train, _VENDORS, sizes.conversations, rng)
    _write(folder / "conversations.tar", [_conversation(scene, scene.picture, rng) for scene in scenes])
    # 3. Held out.
    for name, vendors in zip(HELD_OUT, (_VENDORS, (_OTHER_VENDOR,)), strict=True):
        scenes = _scenes(packages, held, vendors, sizes.held_out, rng)
        _write(folder / f"{name}.tar", [_conversation(scene, scene.picture, rng) for scene in scenes])
        others = [scenes[(idx + len(scenes) // 2) % len(scenes)].picture for idx in range(len(scenes))]
        shuffled = [_conversation(scene, other, rng) for scene, other in zip(scenes, others, strict=True)]
        _write(folder / f"{name}_shuffled.tar", shuffled)


def _scenes(
    packages: dict[str, Path], stems: dict[str, list[str]], vendors: Sequence[str], per_class: int, rng: random.Random
) -> list[Scene]:
    """Draw equally many scenes of every class, in random order; every drawing is used before one is used again."""
    scenes = []
    for name, members in stems.items():
        arts = [art for stem in members for v in vendors if (art := drawing(packages[v], v, stem)) is not None]
        order: list[Image.Image] = []
        while len(order) < per_class:
            rng.shuffle(arts)
            order += arts
        scenes += [draw_scene(art, name, rng) for art in order[:per_class]]
    rng.shuffle(scenes)
    return scenes


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _caption(scene: Scene) -> dict[str, bytes]:
    return {"png": _png(scene.picture), "txt": f"{scene.emoji_class} on {scene.background}".encode()}


def _conversation(scene: Scene, picture: Image.Image, rng: random.Random) -> dict[str, bytes]:
    """Ask both questions, always in this order."""
    answers = {"class": scene.emoji_class, "background": scene.background}
    turns: list[dict[str, str]] = []
    for kind, answer in answers.items():
        question = rng.choice(_QUESTIONS[kind])
        turns.append({"from": "human", "value": question if turns else f"<image>\n{question}"})
        turns.append({"from": "gpt", "value": answer})
    tree = {"conversations": turns, "kinds": list(answers)}
    return {"json": json.dumps(tree).encode(), "png": _png(picture)}


def _write(path: Path, samples: Sequence[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for ending, content in members.items():
                entry = tarfile.TarInfo(f"{number:06}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
