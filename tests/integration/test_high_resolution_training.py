"""Images in tiles from pretraining to answers: the newline learns, is saved, goes on learning, and is asked with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.generate import answer, build_conversation
from model.adapter import read_adapter
from pipeline.config import ConfigError, load_config
from pipeline.evaluation.questions import read_evaluation_samples
from pipeline.evaluation.run import EvaluationSettings, evaluate
from pipeline.model_facts import load_tokenizer
from pipeline.model_folder import assemble_model, open_model
from pipeline.shards.index import build_index
from pipeline.training.launch import run_training
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
    fresh = assemble_model(config, projector=None).model.get_model().image_newline
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


def test_fields_that_do_not_fit_are_refused_before_training(write_config: WriteConfig) -> None:
    path = write_config("wrong")
    with pytest.raises(ConfigError, match="must be spatial_unpad"):
        run_training(load_config(path, ["data.image_aspect_ratio=anyres_max_9"]))
    with pytest.raises(ConfigError, match=r"data\.image_aspect_ratio: String should match pattern"):
        load_config(path, ["data.image_aspect_ratio=sqaure"])
