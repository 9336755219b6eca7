"""Writes the demo's data as WebDataset shards: captioned scenes, conversations, and held-out conversations.

The bytes depend on nothing but the sizes asked for, so writing them again gives the same shards.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pipeline.shards.writer import write_shards
from pipeline.tools.demo.drawing import draw_scene, encode_picture
from pipeline.tools.demo.samples import Split, caption_sample, conversation_sample
from pipeline.tools.demo.scenes import HELD_OUT_COMBINATIONS, Scene

PictureFormat: TypeAlias = Literal["jpg", "png"]

_SAMPLES_PER_SHARD = 1000
_PNG_SHARE = 0.2
_PIXELS_PER_CELL = (16, 32)
_JPEG_QUALITY = (80, 95)


class DemoSizes(NamedTuple):
    """Numbers of samples."""

    pretrain: int
    finetune: int
    held_out: int


def ensure_demo_shards(folder: Path, sizes: DemoSizes) -> dict[str, list[str]]:
    """Write all shards of the demo, unless the folder holds them already.

    Returns:
        Paths of the shards of `pretrain`, `finetune` and `held_out`.
    """
    finished = folder / "shards.json"  # written last, when nothing is missing
    wanted = sizes._asdict()
    if finished.is_file():
        found = json.loads(finished.read_text(encoding="utf-8"))
        if found["sizes"] == wanted:
            return {name: [str(folder / shard) for shard in shards] for name, shards in found["shards"].items()}
    shards = write_demo_shards(folder, sizes)
    names = {name: [Path(path).name for path in paths] for name, paths in shards.items()}
    finished.write_text(json.dumps({"sizes": wanted, "shards": names}, indent=1), encoding="utf-8")
    return shards


def write_demo_shards(folder: Path, sizes: DemoSizes) -> dict[str, list[str]]:
    """Write all shards of the demo; returns their paths as `ensure_demo_shards` does."""
    pretrain = (caption_member_files("pretrain", index) for index in range(sizes.pretrain))
    finetune = (conversation_member_files("finetune", index) for index in range(sizes.finetune))
    held_out = (conversation_member_files("held_out", index) for index in range(sizes.held_out))
    return {
        name: write_shards(samples, folder / f"{name}-%06d.tar", max_samples=_SAMPLES_PER_SHARD)
        for name, samples in (("pretrain", pretrain), ("finetune", finetune), ("held_out", held_out))
    }


def new_combination_keys(num_samples: int) -> frozenset[str]:
    """Return the keys of the held-out samples that show a combination of colour and shape never shown in training."""
    return frozenset(
        _key("held_out", index)
        for index in range(num_samples)
        for scene in conversation_sample("held_out", index).scenes
        if any((thing.color, thing.shape) in HELD_OUT_COMBINATIONS for thing in scene.things)
    )


def caption_member_files(split: Split, index: int) -> dict[str, str | bytes]:
    """Return a captioned scene as members of a tar file, as img2dataset lays them out."""
    sample = caption_sample(split, index)
    file_format, picture = _picture(random.Random(f"picture/caption/{split}/{index}"), sample.scene)
    return {"__key__": _key(split, index), file_format: picture, "txt": sample.caption}


def conversation_member_files(split: Split, index: int) -> dict[str, str | bytes]:
    """Return a conversation as members of a tar file: numbered images and LLaVA's JSON."""
    sample = conversation_sample(split, index)
    rng = random.Random(f"picture/conversation/{split}/{index}")
    pictures = [_picture(rng, scene) for scene in sample.scenes]
    images = {f"{number}.{file_format}": picture for number, (file_format, picture) in enumerate(pictures)}
    key = _key(split, index)
    return {"__key__": key, **images, "json": json.dumps(sample.record(key, list(images)))}


def _key(split: Split, index: int) -> str:
    return f"{split}{index:06d}"


def _picture(rng: random.Random, scene: Scene) -> tuple[PictureFormat, bytes]:
    """Draw a scene at a random resolution and encode it in a random format."""
    picture = draw_scene(scene, rng.randint(*_PIXELS_PER_CELL))
    file_format: PictureFormat = "png" if rng.random() < _PNG_SHARE else "jpg"
    return file_format, encode_picture(picture, file_format, rng.randint(*_JPEG_QUALITY))
