"""One optimizer step of both stages through the training loop, for each backbone, with the towers in turn."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import load_config
from pipeline.training.launch import run_training
from tests.integration.conftest import WEIGHTS, WriteConfig
from tests.integration.runs import losses, weights
from tests.model.tiny import KINDS, TOWERS, save_tiny_tower, tiny_backbone_config

TINY = (
    "training.global_batch_size=5",
    "training.micro_batch_tokens=127",
    "training.max_steps=1",
    "data.max_length=127",
)
PAIRS = list(zip(KINDS, itertools.cycle(TOWERS), strict=False))


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


def save_language_model(kind: str, folder: Path) -> None:
    """A tiny backbone that knows the demo tokenizer's vocabulary."""
    config = tiny_backbone_config(kind)
    config.vocab_size = len(AutoTokenizer.from_pretrained(WEIGHTS / "language_model"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WEIGHTS / "language_model" / file, folder)


@pytest.mark.parametrize(("kind", "tower"), PAIRS)
def test_both_stages_take_a_step(
    kind: str, tower: str, write_config: WriteConfig, index_dir: Path, tmp_path: Path
) -> None:
    save_language_model(kind, tmp_path / "lm")
    save_tiny_tower(tower, tmp_path / "tower")
    parts = [f"model.language_model={tmp_path / 'lm'}", f"model.vision_tower={tmp_path / 'tower'}"]
    overrides = [*TINY, *parts, f"data.index_dir={index_dir}"]
    run_training(load_config(write_config("pre"), overrides))
    assert all("mm_projector" in name for name in weights(tmp_path / "pre"))
    overrides += [f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}", f"data.index_dir={index_dir}-finetune"]
    run_training(load_config(write_config("fine", "finetune"), overrides))
    before = {name.partition(".")[2]: tensor for name, tensor in weights(tmp_path / "pre").items()}
    after = {name.partition(".")[2]: tensor for name, tensor in weights(tmp_path / "fine").items()}
    assert len(before) == 4
    assert not [name for name, tensor in before.items() if torch.equal(after[name], tensor)]
    assert [step for step, _ in losses(tmp_path / "fine")] == [0]
