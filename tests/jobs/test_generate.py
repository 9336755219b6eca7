"""`generate` gives the model exactly the ids and pixels that training would, and spells its answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.generate import answer, build_conversation, tokenizer_source
from model.fusion.embedding import FusedInputs
from model.hub.weights import build_llava, save_projector
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import open_model
from pipeline.config import ConfigError, load_config
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from pipeline.samples.schema import Sample
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER
from tests.jobs.conftest import RunCommand, png


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished pretraining run, as far as `generate` looks at it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"""
name: r
run_dir: {folder}
stage: pretrain
data: {{shards: [a.tar], template: v1}}
model: {{language_model: {LANGUAGE_MODEL}, vision_tower: {TOWER}}}
training: {{global_batch_size: 7, learning_rate: 0.001}}
"""
    )
    config = load_config(folder / "config.yaml").model
    torch.manual_seed(5)
    model = build_llava(language_model=config.language_model, vision_tower=str(config.vision_tower))
    save_projector(model, folder / "projector" / "mm_projector.safetensors")
    return folder


def test_answer_uses_the_ids_and_pixels_of_training(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(run_dir)
    tokenizer = load_tokenizer(tokenizer_source(run_dir))
    seen: dict[str, Any] = {}
    fuse = opened.model.fuse_prompts

    def record(**given: Any) -> FusedInputs:
        seen.update(given)
        return fuse(**given)

    monkeypatch.setattr(opened.model, "fuse_prompts", record)
    images = [png(3, 37, 53), png(5, 61, 41)]
    question = build_conversation("First: <image>\nSecond: <image>\nHow many?", num_images=2)
    answer(opened, tokenizer, question, images, max_new_tokens=7)

    trained = Conversation((*question.turns, Turn("assistant", ("Two.",))))
    encoded = opened.encoder.encode(Sample(key="k", kind="instruction", images=tuple(images), conversation=trained))
    prompt_length = int(np.flatnonzero(encoded.labels != -100)[0])
    assert seen["input_ids"].tolist() == [encoded.input_ids[:prompt_length].tolist()]
    tower = opened.model.get_vision_tower()
    assert tower is not None
    pixels = torch.cat([torch.from_numpy(image.pixels) for image in encoded.images])
    assert torch.equal(tower(torch.cat(seen["images"])), opened.model.encode_vision(pixels))


def test_generate_prints_the_answer_about_an_image_of_a_finished_run(
    run_command: RunCommand, run_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(3, 97, 89))
    ended = run_command("generate", str(run_dir), "What is it?", "-i", str(path), "--max-new-tokens", "5")
    assert ended.exit_code in (None, 0), ended.messages
    opened, tokenizer = open_model(run_dir), load_tokenizer(tokenizer_source(run_dir))
    question = build_conversation("What is it?", num_images=1)
    assert ended.output == answer(opened, tokenizer, question, [path.read_bytes()], max_new_tokens=5) + "\n"


def test_conversation_without_placeholders_starts_with_all_images() -> None:
    conversation = build_conversation("What?", num_images=2)
    assert conversation.turns == (Turn("user", (Image(), Image(), "What?")),)
    assert build_conversation("What?", num_images=0).turns == (Turn("user", ("What?",)),)


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_conversation_whose_placeholders_do_not_match_is_refused(num_images: int) -> None:
    with pytest.raises(ConfigError, match=f"2 <image> but {num_images} --image"):
        build_conversation("<image> or <image>?", num_images)
