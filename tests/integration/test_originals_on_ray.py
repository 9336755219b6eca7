"""Checkpoints as their authors saved them: opened, trained two steps on Ray in bfloat16, exported, and read by
transformers with equal logits.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from model.hub.weights import build_llava, load_llava, save_llava
from pipeline.assembly.export import export_model
from pipeline.assembly.folder import open_model
from pipeline.assembly.import_folder import import_model
from pipeline.config import load_config
from pipeline.launch.run import run_training
from tests.integration.conftest import WriteConfig
from tests.integration.runs import losses
from tests.jobs.test_import import OURS, PINPOINTS, original
from tests.model.files.test_tower_layouts import CONFIG, original_weights
from tests.model.files.test_tower_layouts import write as write_internvit
from tests.model.tiny import save_tiny_backbone
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

ON_RAY = ["cluster.launcher=ray", "cluster.num_workers=2", "cluster.data_workers=2", "training.precision=bfloat16"]
RUN = ["training.max_steps=2", "training.global_batch_size=5", "data.max_length=600", "model.vision_tower=null"]
DEFAULTS = ("norm_type", "qk_normalization", "qkv_bias", "hidden_act", "layer_norm_eps", "dropout", "drop_path_rate")
ORIGINALS = {
    "1.5": ("v1", "pad", "llava"),
    "1.6 mistral": ("v1", "anyres", "llava_next"),
    "OneVision": ("qwen", "anyres_max_2", "llava_onevision"),
    "InternVL": ("v1", "pad", "vipllava"),
}
"""Template, way with images, class of transformers."""


def internvl(folder: Path) -> Path:
    """Write an InternVL LLaVA: InternViT inside in its own layout, and a config of it that leaves its defaults out."""
    tokenizer = build_tokenizer("first")
    tower = write_internvit(folder / "tower", original_weights())
    (folder / "tower/config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k not in DEFAULTS}))
    sizes = {"size": 21, "crop_size": 21, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, **sizes}
    (folder / "tower/preprocessor_config.json").write_text(json.dumps(processor))
    lm = save_tiny_backbone("llama", folder / "lm")
    model = build_llava(lm, tower, "mlp2x_gelu_ln", select_layer=-1)
    model.resize_token_embeddings(len(tokenizer))
    save_llava(model, folder / "ours")
    state = {k: t for k, t in load_file(folder / "ours/model.safetensors").items() if ".vision_tower." not in k}
    inside = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in original_weights().items()}
    source = folder / "original"
    source.mkdir()
    save_file(state | inside, source / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "ours/config.json").read_text())
    values = {name: value for name, value in values.items() if name not in OURS}
    (source / "config.json").write_text(json.dumps(values | {"model_type": "llava", "mm_vision_tower": tower}))
    tokenizer.save_pretrained(source)
    return source


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", ORIGINALS)
def test_original_is_trained_on_ray_in_bfloat16_and_exported_with_equal_logits(
    name: str, write_config: WriteConfig, tmp_path: Path
) -> None:
    template, ratio, kind = ORIGINALS[name]
    source = internvl(tmp_path) if name == "InternVL" else original(name, tmp_path)[0]
    whole = tmp_path / "whole"
    import_model(source, whole, torch.float32, template=template, vision_tower=str(tmp_path / "tower"))
    shutil.rmtree(tmp_path / "tower")
    options = [f"model.language_model={whole}", f"data.template={template}", f"data.image_aspect_ratio={ratio}"]
    if ratio == "anyres":
        options.append(f"data.image_grid_pinpoints={json.dumps(PINPOINTS)}")
    if ratio.startswith("anyres_max"):
        options.append("data.image_grid_pinpoints=[[21, 42], [42, 42]]")
    before = load_llava(whole).state_dict()
    run_training(load_config(write_config("run", "finetune"), [*ON_RAY, *RUN, *options]))
    assert len(losses(tmp_path / "run")) == 2
    after = load_llava(tmp_path / "run/model").state_dict()
    assert before.keys() == after.keys()
    frozen = [key for key in before if ".vision_tower." in key]
    assert all(torch.equal(before[key].bfloat16().float(), after[key]) for key in frozen)  # as it was computed with
    assert not any(torch.equal(before[key], after[key]) for key in ("lm_head.weight", "model.mm_projector.0.weight"))

    export_model(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == kind
    ours, theirs = logits_of_both(tmp_path / "run", tmp_path / "out")
    assert ours.shape[1] == theirs.shape[1]
    assert torch.allclose(ours, theirs[..., : ours.shape[-1]], atol=1e-4)


def logits_of_both(run: Path, exported: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a prompt with an image, here and in transformers."""
    model, encoder = open_model(run)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    other, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    size = encoder.image_spec.size
    tiles = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(5))
    given: dict[str, Any] = {"images": tiles[:1]}
    further: dict[str, Any] = {"pixel_values": tiles[:1]}
    if encoder.resolution.tiles_images:
        given = {"images": [tiles], "image_sizes": [(42, 21)]}
        further = {"pixel_values": tiles[None], "image_sizes": torch.tensor([[42, 21]])}
    with torch.no_grad():
        ours: torch.Tensor = model(torch.tensor([[5, -200, 7, 9]]), **given).logits
        image = [other.config.image_token_id] * (ours.shape[1] - 3)
        theirs: torch.Tensor = other.eval()(input_ids=torch.tensor([[5, *image, 7, 9]]), **further).logits
    return ours, theirs
