"""Images in tiles from pretraining to answers: the newline learns, is saved, goes on learning, and is asked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from jobs.generate import answer, build_conversation
from model.files.adapter import read_adapter
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.feature_layout import layout_of
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.assembly.export import export_model
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import OpenedModel, assemble_model, open_model
from pipeline.config import ConfigError, load_config
from pipeline.evaluation.questions import read_evaluation_samples
from pipeline.evaluation.run import EvaluationSettings, evaluate
from pipeline.index.build import build_index
from pipeline.launch.run import run_training
from tests.integration.conftest import WriteConfig
from tests.jobs.conftest import png

TILED = [
    "data.image_aspect_ratio=anyres",
    "data.image_grid_pinpoints=(1x2),(2x1),(2x2)",
    "model.mm_patch_merge_type=spatial_unpad",
    "data.max_length=2048",
    "training.micro_batch_tokens=2048",
    "training.max_steps=2",
    "training.global_batch_size=3",
]
NEWLINE = "model.image_newline"


def test_newline_learns_in_both_stages_and_answers_are_asked_with_tiles(
    write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path
) -> None:
    config = load_config(write_config("pre"), TILED)
    pretrained = run_training(config)
    torch.manual_seed(config.seed)
    fresh = assemble_model(config.model, config.data, projector=None).model.get_model().image_newline
    first = read_adapter(pretrained.output)[NEWLINE]
    assert fresh is not None
    assert 0 < (first - fresh).abs().max() < 1

    overrides = [*TILED, f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}"]
    run_training(load_config(write_config("fine", "finetune"), overrides))
    opened = open_model(tmp_path / "fine")
    second = opened.model.get_model().image_newline
    assert second is not None
    assert 0 < (second - first).abs().max() < 0.1
    assert opened.model.config.image_grid_pinpoints == "(1x2),(2x1),(2x2)"
    assert (opened.encoder.resolution.kind, opened.encoder.resolution.merge) == ("anyres", "spatial_unpad")

    tokenizer = load_tokenizer(str(tmp_path / "fine" / "model"))
    question = build_conversation("First <image>, second <image>: which?", num_images=2)
    assert isinstance(answer(opened, tokenizer, question, [png(3, 37, 199), png(5, 61, 41)], 3), str)
    samples = read_evaluation_samples(build_index(shards["held_out"], tmp_path / "index"), 2)
    assert evaluate(opened, tokenizer, samples, EvaluationSettings(max_new_tokens=2)).loss > 0

    exported_reads_the_same(tmp_path / "fine", opened, tmp_path)


def exported_reads_the_same(run_dir: Path, opened: OpenedModel, tmp_path: Path) -> None:
    """transformers' own processor gives the ids and tiles of training, and its class the logits."""
    export_model(run_dir, tmp_path / "exported")
    file = tmp_path / "image.png"
    file.write_bytes(png(3, 131, 67))
    conversation = build_conversation("What colour is the ball?", num_images=1)
    ids, image = opened.encoder.encode_prompt(conversation), opened.encoder.encode_image(file.read_bytes())
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "exported", backend="pil")
    content = [{"type": "image", "image": PilImage.open(file)}, {"type": "text", "text": "What colour is the ball?"}]
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    exported: Any = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "exported")
    repeated = [exported.config.image_token_id] * layout_of(opened.encoder.resolution, image.view).num_features
    expanded = [token for i in ids for token in (repeated if i == IMAGE_TOKEN_INDEX else [int(i)])]
    assert theirs["input_ids"].tolist() == [expanded]
    tiles = normalize_pixels(torch.from_numpy(image.pixels), pixel_stats_of(opened.model.config), torch.float32)
    assert (theirs["pixel_values"][0] - tiles).abs().max() < 0.035  # two grey levels of noise: 2 / 255 / std
    with torch.no_grad():
        wanted = opened.model(torch.from_numpy(ids)[None], images=[tiles], image_sizes=[image.view]).logits
        got = exported.eval()(theirs["input_ids"], pixel_values=tiles[None], image_sizes=theirs["image_sizes"]).logits
    assert torch.allclose(got[..., : wanted.shape[-1]], wanted, atol=1e-4)


def test_fields_that_do_not_fit_are_refused_before_training(write_config: WriteConfig) -> None:
    path = write_config("wrong")
    with pytest.raises(ConfigError, match="must be spatial_unpad"):
        run_training(load_config(path, ["data.image_aspect_ratio=anyres_max_9"]))
    with pytest.raises(ConfigError, match=r"data\.image_aspect_ratio: String should match pattern"):
        load_config(path, ["data.image_aspect_ratio=sqaure"])
