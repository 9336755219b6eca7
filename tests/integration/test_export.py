"""A finetuned run, exported by the command, answers in transformers as it does here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from transformers import AutoProcessor, LlavaForConditionalGeneration

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.assembly.export import export_model
from pipeline.assembly.folder import open_model
from pipeline.config import ConfigError, load_config
from pipeline.launch.run import run_training
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from tests.integration.conftest import WriteConfig
from tests.integration.runs import run
from tests.jobs.conftest import png

QUESTION = "What colour is the ball?"


def test_exported_run_reads_the_same_tokens_and_gives_the_same_logits(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    run_training(load_config(write_config("fine", "finetune"), ["training.max_steps=1"]))
    target, file = tmp_path / "exported", tmp_path / "image.png"
    file.write_bytes(png(3, 131, 67))
    run("jobs", "export", str(tmp_path / "fine"), str(target), "--dtype", "float32")
    model, encoder = open_model(tmp_path / "fine")
    ids = encoder.encode_prompt(Conversation((Turn("user", (Image(), QUESTION)),)))
    pixels = torch.from_numpy(encoder.encode_image(file.read_bytes()).pixels)

    processor: Any = AutoProcessor.from_pretrained(target, backend="pil")
    content = [{"type": "image", "image": PilImage.open(file)}, {"type": "text", "text": QUESTION}]
    theirs: dict[str, torch.Tensor] = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    exported: Any = LlavaForConditionalGeneration.from_pretrained(target)
    image = exported.config.image_token_id
    repeated = [image] * encoder.resolution.tile_features
    expanded = [t for i in ids for t in (repeated if i == IMAGE_TOKEN_INDEX else [int(i)])]
    assert theirs["input_ids"].tolist() == [expanded]
    normalised = normalize_pixels(pixels, pixel_stats_of(model.config), torch.float32)
    assert (theirs["pixel_values"] - normalised).abs().max() < 0.02  # a grey level: 1 / 255 / std

    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)[None], images=normalised).logits
        got = exported.eval()(theirs["input_ids"], pixel_values=normalised).logits[..., : wanted.shape[-1]]
    assert torch.allclose(got, wanted, atol=1e-4)

    with pytest.raises(ConfigError, match="is not an empty folder"):
        export_model(tmp_path / "fine", target)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no ray_llava\.json"):
        export_model(tmp_path, tmp_path / "out")
