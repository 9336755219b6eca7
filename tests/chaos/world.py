"""What the chaos runs train on: the smallest backbones, and samples that say their own number.

Every human turn opens with `item NNNN`, so the tokens that reach the model prove which sample was trained, whatever
plan, loader and stream believe. Text-only, one-image and many-image samples mix; Phi-3 has dropout that packed rows
use, so a random state that is not restored shows.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, Phi3Config

from pipeline.config import ExperimentConfig, load_config
from pipeline.shards.writer import write_shards

_DEMO_WEIGHTS = Path(__file__).parents[2] / "pipeline" / "tools" / "demo" / "weights"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NUM_SAMPLES = 37
"""The global batch of 5 does not divide it: every epoch ends with a short step."""
NUM_EPOCHS = 2
_SIDE = 24  # pixels, three patches of 8
_WORDS = ("red", "blue", "green", "square", "circle", "left", "right", "above", "below", "two", "three", "large")
_NUM_IMAGES = (0, 1, 1, 2, 3, 1, 0)  # of sample i: entry i mod 7

_CONFIG = """
name: chaos
run_dir: {run_dir}
stage: finetune
seed: 11
data: {{shards: ["{folder}/items-*.tar"], index_dir: "{folder}/index", template: v1, max_length: 256}}
model: {{language_model: "{folder}/language_model", vision_tower: "{folder}/tower"}}
training:
  global_batch_size: 5
  micro_batch_tokens: 257
  learning_rate: 0.003
  num_epochs: {num_epochs}
checkpoint: {{every_steps: 2}}
cluster: {{launcher: local, data_workers: 0, torch_threads: 1, cpus_per_worker: 0.5}}
tracking: {{enabled: false}}
"""


class World(NamedTuple):
    """A folder with everything that a chaos run reads."""

    folder: Path

    def config(self, run_dir: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """Return the config of a run in `run_dir`."""
        return load_config(self.write_config(run_dir), overrides)

    def write_config(self, run_dir: Path) -> Path:
        """Write the config of a run next to its folder, for the command line; returns its path."""
        path = run_dir.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_CONFIG.format(run_dir=run_dir, folder=self.folder, num_epochs=NUM_EPOCHS))
        return path


def build_world(folder: Path) -> World:
    """Write backbones and shards into a new folder; equal bytes at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_language_model(folder / "language_model")
    _write_tower(folder / "tower")
    write_shards(_samples(NUM_SAMPLES), folder / "items-%06d.tar", max_samples=11)
    return World(folder)


def number_of(text: str) -> int:
    """Return the number of the sample that `text`, the decoded tokens of one sample, belongs to.

    Raises:
        ValueError: the text names none, or more than one.
    """
    numbers = {int(part.split()[0].rstrip(".")) for part in text.split("item ")[1:]}
    if len(numbers) != 1:
        raise ValueError(f"expected the tokens of one sample, found those of {sorted(numbers)}: {text!r}")
    return numbers.pop()


def _write_language_model(folder: Path) -> None:
    torch.manual_seed(5)
    config = Phi3Config(
        vocab_size=784, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=512, initializer_range=0.2, resid_pdrop=0.1, embd_pdrop=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copy(_DEMO_WEIGHTS / "language_model" / name, folder / name)


def _write_tower(folder: Path) -> None:
    torch.manual_seed(7)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=_SIDE,
        patch_size=8, projection_dim=16,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)
    processor = json.loads((_DEMO_WEIGHTS / "tower" / "preprocessor_config.json").read_text())
    processor["size"], processor["crop_size"] = {"shortest_edge": _SIDE}, {"height": _SIDE, "width": _SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _samples(num_samples: int) -> Iterator[dict[str, str | bytes]]:
    for number in range(num_samples):
        rng = random.Random(f"item {number}")
        pictures = [_picture(rng) for _ in range(_NUM_IMAGES[number % len(_NUM_IMAGES)])]
        images = {f"{idx}.png": picture for idx, picture in enumerate(pictures)}
        turns = []
        for turn in range(rng.choice((1, 1, 2))):
            places = "<image> " * len(pictures) if turn == 0 else ""
            asked, answered = (" ".join(rng.choices(_WORDS, k=rng.randint(2, 13))) for _ in range(2))
            turns.append({"from": "human", "value": f"{places}item {number:04d}. {asked}"})
            turns.append({"from": "gpt", "value": answered})
        record: dict[str, object] = {"id": f"{number:04d}", "conversations": turns}
        if images:
            record["image"] = list(images)
        yield {"__key__": f"{number:06d}", **images, "json": json.dumps(record)}


def _picture(rng: random.Random) -> bytes:
    picture = Image.frombytes("RGB", (29, 23), rng.randbytes(29 * 23 * 3))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
