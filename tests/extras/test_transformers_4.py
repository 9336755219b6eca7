"""Exported folders opened by transformers 4.57, which many servers bring: the same logits, and a processor.

`make test-extras` installs that version next to ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from model.hub.export import export_transformers
from model.hub.weights import build_llava
from tests.model.hub.rope_cases import ROPES, save_backbone_with_rope
from tests.model.tiny import save_tiny_tower
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

OTHER = Path(__file__).resolve().parents[2] / ".venv" / "transformers4"
READ = """
import sys, torch, transformers
from transformers import AutoProcessor, LlavaForConditionalGeneration
assert transformers.__version__.startswith("4.57."), transformers.__version__
folder, inputs = sys.argv[1:]
given = torch.load(inputs)
model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
with torch.no_grad():
    logits = model.eval()(given["ids"], pixel_values=given["pixels"]).logits
ids = AutoProcessor.from_pretrained(folder).tokenizer("a red ball")["input_ids"]
torch.save({"logits": logits, "ids": ids}, inputs)
"""


@pytest.mark.parametrize("name", ROPES)
def test_4_57_reads_the_same_logits_and_ids(name: str, tmp_path: Path) -> None:
    assert OTHER.is_dir(), "run `make test-extras`, which installs it"
    tokenizer = build_tokenizer("chatml")
    model = build_llava(save_backbone_with_rope(name, tmp_path / "lm"), save_tiny_tower("clip_vision_model", tmp_path))
    processor = {"size": 21, "crop_size": 21, "resample": 3}
    model.resize_token_embeddings(len(tokenizer))
    folder = tmp_path / "out"
    export_transformers(model, tokenizer, folder, image_processor=processor)
    ours: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    image = ours.config.image_token_id
    ids = torch.tensor([[7, 11, *[image] * 9, *range(20, 90)]])
    pixels = torch.randn(1, 3, 21, 21, generator=torch.Generator().manual_seed(0))
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
