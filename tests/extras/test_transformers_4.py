"""Exported folders opened by transformers 4.57, which many servers bring: the same logits, and a processor.

`make test-extras` installs that version next to ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForImageTextToText

from model.hub.export import export_transformers
from model.hub.weights import LlavaModel, build_llava
from model.vision.vision_tower import SelectFeature
from tests.model.hub.rope_cases import ROPES, save_backbone_with_rope
from tests.model.tiny import save_tiny_backbone, save_tiny_tower
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

OTHER = Path(__file__).resolve().parents[2] / ".venv" / "transformers4"
READ = """
import sys, torch, transformers
from transformers import AutoModelForImageTextToText, AutoProcessor
assert transformers.__version__.startswith("4.57."), transformers.__version__
folder, inputs = sys.argv[1:]
given = torch.load(inputs)
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
with torch.no_grad():
    logits = model.eval()(given["ids"], pixel_values=given["pixels"]).logits
ids = AutoProcessor.from_pretrained(folder).tokenizer("a red ball")["input_ids"]
torch.save({"logits": logits, "ids": ids}, inputs)
"""


@pytest.mark.parametrize("name", ROPES)
def test_4_57_reads_the_same_logits_and_ids(name: str, tmp_path: Path) -> None:
    assert OTHER.is_dir(), "run `make test-extras`, which installs it"
    model = build_llava(save_backbone_with_rope(name, tmp_path / "lm"), save_tiny_tower("clip_vision_model", tmp_path))
    check_equal(model, 21, tmp_path)


@pytest.mark.parametrize(
    ("tower", "projector", "feature"),
    [
        ("dinov2", "mlp2x_gelu", "patch"),
        ("dinov2_with_registers", "mlp2x_gelu", "cls_patch"),
        ("dinov3_vit", "mlp2x_gelu", "cls_patch"),
        ("siglip_vision_model", "mlp2x_gelu", "patch"),
        ("clip_vision_model", "ln_mlp2x_gelu", "patch"),
        ("dinov2", "ln_mlp2x_gelu", "patch"),
    ],
)
def test_4_57_reads_towers_and_projectors(tower: str, projector: str, feature: SelectFeature, tmp_path: Path) -> None:
    lm = save_tiny_backbone("llama", tmp_path / "lm")
    path = save_tiny_tower(tower, tmp_path / "tower")
    model = build_llava(lm, path, projector, select_layer=(-2, -1), select_feature=feature)
    check_equal(model, 35 if tower.startswith("dino") else 21, tmp_path)


def check_equal(model: LlavaModel, size: int, tmp_path: Path) -> None:
    tokenizer = build_tokenizer("chatml")
    processor = {"size": size, "crop_size": size, "resample": 3}
    model.resize_token_embeddings(len(tokenizer))
    folder = tmp_path / "out"
    export_transformers(model, tokenizer, folder, image_processor=processor)
    ours: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    num_features = cast(Any, model.get_vision_tower()).num_features_at(size)
    image = ours.config.image_token_id
    ids = torch.tensor([[7, 11, *[image] * num_features, *range(20, 90)]])
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ours(ids, pixel_values=pixels).logits
    file = tmp_path / "inputs.pt"
    torch.save({"ids": ids, "pixels": pixels}, file)
    environment = {**os.environ, "PYTHONPATH": str(OTHER), "USE_TF": "0"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder), str(file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(file)
    assert torch.allclose(found["logits"], expected, atol=1e-5)
    assert found["ids"] == tokenizer("a red ball")["input_ids"]
