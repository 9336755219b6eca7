"""One optimizer step of both stages through the training loop, for pairs of backbone and tower; all in `make pairs`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.clip import CLIPImageProcessor

from pipeline.config import load_config
from pipeline.launch.run import run_training
from tests.integration.conftest import WEIGHTS, WriteConfig
from tests.integration.runs import losses, weights
from tests.model.files.test_tower_layouts import original_weights
from tests.model.files.test_tower_layouts import write as write_internvit
from tests.model.tiny import KINDS, PAIRS, TOWERS, save_tiny_tower, tiny_backbone_config

TINY = (
    "training.global_batch_size=5",
    "training.micro_batch_tokens=127",
    "training.max_steps=1",
    "data.max_length=127",
)
OPTIONS: dict[str, tuple[str, ...]] = {
    "joined": ("model.vision_tower=[{clip_vision_model}, {siglip_vision_model}]",),
    "scales": ("model.vision_tower={clip_vision_model}", "model.mm_vision_scales=[1, 2]"),
    "layers": ("model.vision_tower={dinov2}", "model.mm_vision_select_layer=[-1, 1]"),
    "original internvit": ("model.vision_tower={intern_vit_6b}",),
    "resampler": ("model.vision_tower={clip_vision_model}", "model.mm_projector_type=resampler5_1"),
    "shuffle": ("model.vision_tower={internvl_vision}", "model.mm_projector_type=shuffle3_ln_mlp2x_gelu"),
    "own template": ("model.vision_tower={clip_vision_model}", "data.template=tokenizer"),
}
"""Further towers, projectors and templates, each once, with the same backbone."""
CHAT = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every backbone and tower on disk, by kind."""
    root = tmp_path_factory.mktemp("parts")
    saved = {kind: save_tiny_tower(kind, root / kind) for kind in TOWERS}
    saved["intern_vit_6b"] = write_internvit(root / "intern_vit_6b", original_weights())
    CLIPImageProcessor(size={"shortest_edge": 21}, crop_size=21).save_pretrained(root / "intern_vit_6b")
    for kind in KINDS:
        saved[kind] = str(root / kind)
        save_language_model(kind, root / kind)
    return saved


def save_language_model(kind: str, folder: Path) -> None:
    """A tiny backbone that knows the demo tokenizer's vocabulary."""
    config = tiny_backbone_config(kind)
    config.vocab_size = len(AutoTokenizer.from_pretrained(WEIGHTS / "language_model"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WEIGHTS / "language_model" / file, folder)
    (folder / "chat_template.jinja").write_text(CHAT)


def train_both_stages(overrides: list[str], write_config: WriteConfig, index_dir: Path, tmp_path: Path) -> None:
    """Take one step of each; what the first learnt is learnt further by the second."""
    overrides = [*TINY, *overrides, f"data.index_dir={index_dir}"]
    run_training(load_config(write_config("pre"), overrides))
    assert all("mm_projector" in name for name in weights(tmp_path / "pre"))
    overrides += [f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}", f"data.index_dir={index_dir}-finetune"]
    run_training(load_config(write_config("fine", "finetune"), overrides))
    before = {name.partition(".")[2]: tensor for name, tensor in weights(tmp_path / "pre").items()}
    after = {name.partition(".")[2]: tensor for name, tensor in weights(tmp_path / "fine").items()}
    assert before
    assert not [name for name, tensor in before.items() if torch.equal(after[name], tensor)]
    assert [step for step, _ in losses(tmp_path / "fine")] == [0]


@pytest.mark.parametrize(("kind", "tower"), PAIRS)
def test_every_backbone_takes_a_step_of_both_stages_with_a_tower(
    kind: str, tower: str, folders: dict[str, str], write_config: WriteConfig, index_dir: Path, tmp_path: Path
) -> None:
    parts = [f"model.language_model={folders[kind]}", f"model.vision_tower={folders[tower]}"]
    train_both_stages(parts, write_config, index_dir, tmp_path)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_takes_a_step_of_both_stages(
    option: str, folders: dict[str, str], write_config: WriteConfig, index_dir: Path, tmp_path: Path
) -> None:
    parts = [f"model.language_model={folders['qwen2']}", *(text.format(**folders) for text in OPTIONS[option])]
    train_both_stages(parts, write_config, index_dir, tmp_path)
