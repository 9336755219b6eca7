"""Images of native resolution from pretraining to answers; batches, caches and trained towers change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from jobs.generate import answer, build_conversation
from model.fusion.feature_layout import layout_of
from model.fusion.resolution import ImageView
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import open_model
from pipeline.config import ConfigError, load_config
from pipeline.evaluation.questions import read_evaluation_samples
from pipeline.evaluation.run import EvaluationSettings, evaluate
from pipeline.features.filling import fill_cache
from pipeline.index.build import build_index
from pipeline.launch.prepare import prepare_source
from pipeline.launch.run import run_training
from tests.integration.conftest import WriteConfig
from tests.integration.runs import losses, weights
from tests.integration.test_pairs_training import save_language_model
from tests.jobs.conftest import png
from tests.model.tiny import NATIVE_TOWERS, save_tiny_tower

QUIET = Console(quiet=True)
PIXELS = 4900
"""At most 25 cells of Qwen's 14 pixels, or 100 of NaFlex's 7."""


def options(tmp_path: Path, tower: str) -> list[str]:
    save_language_model("qwen2", tmp_path / "lm")
    save_tiny_tower(tower, tmp_path / "tower")
    return [
        f"model.language_model={tmp_path / 'lm'}",
        f"model.vision_tower={tmp_path / 'tower'}",
        f"data.image_aspect_ratio=native_196_{PIXELS}",
        f"data.index_dir={tmp_path / 'index'}",
        "data.max_length=601",
        "training.global_batch_size=7",
        "training.micro_batch_tokens=607",
        "training.max_steps=2",
    ]


@pytest.mark.parametrize("tower", NATIVE_TOWERS)
def test_both_stages_and_answers_see_images_in_their_own_shape(
    tower: str, write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path
) -> None:
    overrides = options(tmp_path, tower)
    run_training(load_config(write_config("pre"), overrides), QUIET)
    overrides += [f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}", f"data.index_dir={tmp_path / 'index2'}"]
    run_training(load_config(write_config("fine", "finetune"), overrides), QUIET)
    opened = open_model(tmp_path / "fine")
    resolution = opened.encoder.resolution
    assert (resolution.kind, resolution.pixels) == ("native", (196, PIXELS))
    wide = layout_of(resolution, ImageView(30, 61)).num_features
    assert wide == (2 * 4 if "qwen" in tower else 7 * 14)

    tokenizer = load_tokenizer(str(tmp_path / "fine" / "model"))
    question = build_conversation("First <image>, second <image>: which?", num_images=2)
    assert isinstance(answer(opened, tokenizer, question, [png(3, 37, 59), png(5, 61, 41)], 3), str)
    samples = read_evaluation_samples(build_index(shards["held_out"], tmp_path / "held"), 2)
    assert evaluate(opened, tokenizer, samples, EvaluationSettings(max_new_tokens=2)).loss > 0


def test_cache_and_size_of_batches_leave_losses_as_they_are(write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = options(tmp_path, "qwen2_5_vl_vision")
    computed = load_config(write_config("computed"), overrides)
    run_training(computed, QUIET)
    cached = load_config(write_config("cached"), [*overrides, f"data.feature_cache={tmp_path / 'features'}"])
    source = prepare_source(cached, console=QUIET)
    report = fill_cache(cached.recipe, source.index, source.encoder, use_gpu=False)
    assert report.tiles > 2 * report.images
    run_training(cached, QUIET)
    other = ["training.micro_batch_tokens=1213", "training.vision_batch_size=2"]
    run_training(load_config(write_config("batches"), [*overrides, *other]), QUIET)
    wanted = torch.tensor([loss for _, loss in losses(tmp_path / "computed")])
    assert len(wanted) == 2
    for run in ("cached", "batches"):
        assert torch.allclose(torch.tensor([loss for _, loss in losses(tmp_path / run)]), wanted, rtol=1e-5), run


def test_tower_learns_in_finetuning(write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = [*options(tmp_path, "siglip2_vision_model"), "training.vision_tower_lr=0.001"]
    run_training(load_config(write_config("fine", "finetune"), overrides), QUIET)
    prefix = "model.vision_tower.vision_tower."
    trained = {name.removeprefix(prefix): own for name, own in weights(tmp_path / "fine").items() if prefix in name}
    before = open_tower(tmp_path / "tower")
    changed = {name for name, own in trained.items() if not torch.equal(own, before[name])}
    assert any("patch_embedding" in name for name in changed)
    assert any("encoder.layers.0" in name for name in changed)


def open_tower(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_towers_and_aspect_ratios_that_do_not_fit_are_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = options(tmp_path, "qwen3_vl_vision")
    with pytest.raises(ConfigError, match="native resolution: use native_MIN_MAX"):
        run_training(load_config(write_config("square"), [*overrides, "data.image_aspect_ratio=pad"]), QUIET)
    with pytest.raises(ConfigError, match="the vision tower takes squares"):
        run_training(load_config(write_config("native"), ["data.image_aspect_ratio=native_1_5000"]), QUIET)
