"""Published LLaVA models in the layouts they have, imported by the command: trained on, exported, and the way back."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from jobs.cli import app
from model.hub.weights import LlavaModel, build_llava, load_llava, save_llava
from model.vision.pixels import pixel_stats_of
from pipeline.assembly.encoder import build_encoder
from pipeline.assembly.export import export_model
from pipeline.assembly.import_folder import import_model
from pipeline.assembly.part_files import check_part_files
from pipeline.assembly.parts import join_parts
from pipeline.config import ConfigError, DataConfig, ModelConfig
from tests.model.tiny import save_tiny_backbone, save_tiny_tower
from tests.pipeline.samples.prompt.toy_tokenizers import TokenizerKind, build_tokenizer

PINPOINTS = [[21, 42], [42, 21], [42, 42]]
OURS = (
    "mm_vision_config",
    "mm_vision_weights",
    "mm_image_mean",
    "mm_image_std",
    "mm_vision_scales",
    "im_start_end_ids",
)
"""Fields that no published config has."""
PUBLISHED: dict[str, tuple[str, TokenizerKind, str, Any, dict[str, Any]]] = {
    "1.5": ("llama", "first", "clip_vision_model", "flat", {"model_type": "llava_llama", "image_aspect_ratio": "pad"}),
    "1.6 mistral": ("mistral", "first", "clip_vision_model", "spatial_unpad", {
        "model_type": "llava_mistral", "image_aspect_ratio": "anyres", "image_grid_pinpoints": PINPOINTS,
        "unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 2e-6}),
    "OneVision": ("qwen2", "chatml", "siglip_vision_model", "spatial_unpad", {
        "model_type": "llava_qwen", "image_aspect_ratio": "anyres_max_2",
        "image_grid_pinpoints": "[(21, 42), (42, 42)]",
        "mm_spatial_pool_mode": "bilinear", "mm_resampler_type": None, "mm_newline_position": "one_token"}),
}  # fmt: skip
"""Language model, tokenizer, tower, merging, and fields of its config.json."""


def command(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def original(name: str, folder: Path) -> tuple[Path, LlavaModel]:
    """Write a checkpoint as its authors saved it: 1.5 without its tower and pickled, the others with it inside."""
    kind, tokenizer_kind, tower_kind, merge, fields = PUBLISHED[name]
    tokenizer = build_tokenizer(tokenizer_kind)
    tower = save_tiny_tower(tower_kind, folder / "tower")
    model = build_llava(save_tiny_backbone(kind, folder / "lm"), tower, patch_merge=merge)
    model.resize_token_embeddings(len(tokenizer))
    ours, out = folder / "ours", folder / "original"
    save_llava(model, ours)
    out.mkdir()
    state = load_file(ours / "model.safetensors")
    prefix = "model.vision_tower.vision_tower."
    if name == "1.5":
        torch.save({key: t for key, t in state.items() if not key.startswith(prefix)}, out / "pytorch_model.bin")
    else:
        unused = (".layers.2.", ".head.", ".post_layernorm.") if name == "OneVision" else ("nothing",)
        kept = {key: t for key, t in state.items() if not (key.startswith(prefix) and any(u in key for u in unused))}
        renamed = {key.replace(prefix, f"{prefix}vision_model."): tensor for key, tensor in kept.items()}
        save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    values = {key: v for key, v in json.loads((ours / "config.json").read_text()).items() if key not in OURS}
    (out / "config.json").write_text(json.dumps(values | {"mm_vision_tower": "/not/here"} | fields))
    tokenizer.save_pretrained(out)
    return out, model.train(False)


def logits(model: LlavaModel) -> Tensor:
    images = torch.randn(1, 3, 21, 21, generator=torch.Generator().manual_seed(3))
    given: dict[str, Any] = {"images": images}
    if model.config.mm_patch_merge_type != "flat":
        given = {"images": [images.repeat(3, 1, 1, 1)], "image_sizes": [(42, 21)]}
    with torch.no_grad():
        found: Tensor = model(torch.tensor([[1, -200, 5, 7]]), **given).logits
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_original_checkpoint_becomes_a_folder_that_trains_on_and_exports(name: str, tmp_path: Path) -> None:
    source, model = original(name, tmp_path)
    target = tmp_path / "imported"
    template: Any = "qwen" if name == "OneVision" else "v1"
    said = command(
        "import", source, target, "--dtype", "float32", "--template", template, "--vision-tower", tmp_path / "tower"
    )
    assert f"data.template={template}" in said
    shutil.rmtree(tmp_path / "tower")
    loaded = load_llava(target).train(False)
    assert pixel_stats_of(loaded.config).std == pixel_stats_of(model.config).std
    model.config.image_aspect_ratio = loaded.config.image_aspect_ratio
    model.config.image_grid_pinpoints = loaded.config.image_grid_pinpoints
    assert torch.equal(logits(loaded), logits(model))

    parts = ModelConfig(language_model=str(target))
    fields = PUBLISHED[name][4]
    data = DataConfig(
        shards=("x.tar",), template=template, max_length=512, image_aspect_ratio=fields["image_aspect_ratio"],
        image_grid_pinpoints=fields.get("image_grid_pinpoints"),
    )  # fmt: skip
    check_part_files(parts)
    build_encoder(parts, data)
    join_parts(parts, None, torch.float32)
    export_model(target, tmp_path / "exported")
    assert (tmp_path / "exported/config.json").is_file()


@pytest.mark.parametrize("name", PUBLISHED)
def test_folder_of_transformers_comes_back_as_it_went(name: str, tmp_path: Path) -> None:
    source, _ = original(name, tmp_path)
    template = "qwen" if name == "OneVision" else "v1"
    first, back, second = tmp_path / "first", tmp_path / "back", tmp_path / "second"
    command(
        "import", source, tmp_path / "imported", "--dtype", "float32", "--template", template,
        "--vision-tower", tmp_path / "tower",
    )  # fmt: skip
    export_model(tmp_path / "imported", first)
    command("import", first, back, "--dtype", "float32", "--template", template)
    export_model(back, second)
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    for file in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"):
        assert (first / file).read_text() == (second / file).read_text(), file


def test_llava_1_0_has_the_defaults_of_its_time(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(build_tokenizer("first"))
    tokenizer.add_tokens(["<im_patch>", "<im_start>", "<im_end>"], special_tokens=True)
    tower = save_tiny_tower("clip_vision_model", tmp_path / "tower")
    model = build_llava(save_tiny_backbone("llama", tmp_path / "lm"), tower, projector_type="linear")
    model.resize_token_embeddings(len(tokenizer))
    source = tmp_path / "original"
    save_llava(model, source)
    values = json.loads((source / "config.json").read_text())
    late = ("image_aspect_ratio", "image_grid_pinpoints", "mm_projector_type", "mm_vision_select_feature", *OURS)
    values = {key: value for key, value in values.items() if key not in late}
    (source / "config.json").write_text(json.dumps(values | {"model_type": "llava", "mm_use_im_start_end": True}))
    tokenizer.save_pretrained(source)
    found = import_model(source, tmp_path / "out", torch.float32, template="v1")
    assert found.image_aspect_ratio == "crop"
    config: Any = load_llava(tmp_path / "out").config
    assert config.im_start_end_ids == tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
    assert (config.mm_projector_type, config.image_aspect_ratio) == ("linear", "crop")


def test_folder_of_transformers_given_to_a_run_is_answered_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next", "text_config": {}}))
    for tower in (None, "tower"):
        parts = ModelConfig(language_model=str(tmp_path), vision_tower=tower)
        with pytest.raises(ValueError, match=rf"run `ray-llava import {tmp_path} FOLDER` first"):
            join_parts(parts, None, torch.float32)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source, _ = original("1.5", tmp_path)
    with pytest.raises(ValueError, match="folder '/not/here' does not exist"):
        import_model(source, tmp_path / "out", torch.float32)
    tower = str(tmp_path / "tower")
    with pytest.raises(ValueError, match="unknown conversation template 'nope'"):
        import_model(source, tmp_path / "out", torch.float32, template="nope", vision_tower=tower)
    with pytest.raises(ConfigError, match="is not an empty folder"):
        import_model(source, source, torch.float32)
    assert not (tmp_path / "out").exists()
