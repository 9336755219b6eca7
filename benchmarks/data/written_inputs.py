"""What whole runs read, on disk: models of named sizes with random weights, and captioned photographs in shards."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import pipeline.tools.demo
from benchmarks.data.data_rate import encode_jpeg
from benchmarks.step.shapes import IMAGE_MEAN, IMAGE_STD, LANGUAGE_MODELS, created_as, image_size, vision_config
from pipeline.config import ModelConfig
from pipeline.shards.writer import write_shards

_TOKENIZER: Final = Path(pipeline.tools.demo.__file__).parent / "weights" / "language_model"
_CAPTION: Final = "a red circle is left of a blue square and above a small green triangle"


def write_model(
    folder: Path, shape: str, dtype: torch.dtype, device: torch.device, *, few_words: bool = False
) -> ModelConfig:
    """Write a language model and its tower with random weights and the demo's tokenizer; returns the config of them.

    Args:
        folder: target.
        shape: named size.
        dtype: of the files.
        device: where the weights are drawn.
        few_words: shrink the vocabulary to the tokenizer's, which makes checkpoints small.
    """
    known = json.loads((_TOKENIZER / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    sizes = dict(LANGUAGE_MODELS[shape])
    sizes["vocab_size"] = known if few_words else max(known, sizes["vocab_size"])
    torch.manual_seed(0)
    with created_as(device, dtype):
        language_model, tower = LlamaForCausalLM(LlamaConfig(**sizes)), CLIPVisionModel(vision_config(shape))
    language_model.save_pretrained(folder / "language_model")
    tower.save_pretrained(folder / "tower")
    for file in _TOKENIZER.glob("tokenizer*.json"):
        shutil.copy(file, folder / "language_model")
    side = image_size(shape)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}, "resample": 3,
        "crop_size": {"height": side, "width": side}, "image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD),
    }  # fmt: skip
    (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return named_model(folder)


def named_model(folder: Path) -> ModelConfig:
    """Return the config of the model that `write_model` leaves in a folder."""
    return ModelConfig(language_model=str(folder / "language_model"), vision_tower=str(folder / "tower"))


def write_photographs(
    folder: Path, num_samples: int, *, num_pictures: int = 32, width: int = 640, height: int = 480, per_shard: int = 256
) -> list[str]:
    """Write captioned JPEGs, each another file, so that none is decoded or encoded for two; returns the shards."""
    folder.mkdir(parents=True)
    pictures = [encode_jpeg(seed, width, height) for seed in range(min(num_samples, num_pictures))]
    samples: Iterator[dict[str, str | bytes]] = (
        {"__key__": f"{n:06d}", "jpg": numbered_jpeg(pictures[n % len(pictures)], n), "txt": _CAPTION}
        for n in range(num_samples)
    )
    return write_shards(samples, folder / "photographs-%06d.tar", max_samples=per_shard)


def numbered_jpeg(picture: bytes, number: int) -> bytes:
    """Return another file of the same pixels: with a number in a comment."""
    return picture[:2] + b"\xff\xfe" + struct.pack(">HI", 6, number) + picture[2:]
