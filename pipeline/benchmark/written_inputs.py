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

import pipeline.demo
from pipeline.benchmark.data_rate import encode_jpeg
from pipeline.benchmark.shapes import IMAGE_MEAN, IMAGE_STD, LANGUAGE_MODELS, created_as, image_size, vision_config
from pipeline.config import ModelConfig
from pipeline.shards.writer import write_shards

_TOKENIZER: Final = Path(pipeline.demo.__file__).parent / "weights" / "language_model"
_CAPTION: Final = "a red circle is left of a blue square and above a small green triangle"
_NUM_PICTURES: Final = 32


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


def write_photographs(folder: Path, num_samples: int) -> list[str]:
    """Write captioned 640 x 480 JPEGs; a comment makes each file another one, so that none is encoded for two."""
    folder.mkdir(parents=True)
    pictures = [encode_jpeg(seed) for seed in range(min(num_samples, _NUM_PICTURES))]

    def commented(number: int) -> bytes:
        comment = b"\xff\xfe" + struct.pack(">HI", 6, number)
        picture = pictures[number % len(pictures)]
        return picture[:2] + comment + picture[2:]

    samples: Iterator[dict[str, str | bytes]] = (
        {"__key__": f"{n:06d}", "jpg": commented(n), "txt": _CAPTION} for n in range(num_samples)
    )
    return write_shards(samples, folder / "photographs-%06d.tar", max_samples=256)
