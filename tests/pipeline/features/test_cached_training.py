"""A run on cached features equals the run that computes them; a cache that does not fit is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipeline.assembly.parts import build_model
from pipeline.config import ConfigError, ExperimentConfig, load_config
from pipeline.errors import DataError, Reason
from pipeline.features.filling import FillReport, fill_cache
from pipeline.features.opening import check_tower, with_cached_features
from pipeline.features.tower import load_tower
from pipeline.launch.prepare import prepare_source
from pipeline.launch.run import run_training
from pipeline.stream.cached_features import FeatureCacheError
from pipeline.stream.feature_files import ShardWriter
from pipeline.stream.rank_step import BatchSource, build_rank_step
from pipeline.stream.transport import from_row, to_row
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, losses

QUIET = Console(quiet=True)


@pytest.fixture
def config(write_config: WriteConfig, tmp_path: Path) -> ExperimentConfig:
    return load_config(write_config("run", "finetune"), [f"data.feature_cache={tmp_path / 'features'}"])


def prepared(config: ExperimentConfig) -> BatchSource:
    return prepare_source(config, console=QUIET)


def fill(config: ExperimentConfig) -> FillReport:
    source = prepared(config)
    return fill_cache(config.recipe, source.index, source.encoder, use_gpu=config.cluster.use_gpu)


def train(config: ExperimentConfig, run_dir: Path, feature_cache: str | None) -> None:
    data = config.data.model_copy(update={"feature_cache": feature_cache})
    run_training(config.model_copy(update={"run_dir": str(run_dir), "data": data}), QUIET)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_run_on_cached_features_equals_one_that_computes_them_bit_by_bit(
    stage: str, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = load_config(write_config("run", stage), [f"data.feature_cache={tmp_path / 'features'}"])
    torch.set_num_threads(1)  # as in the runs: it decides how sums are split
    report = fill(config)
    assert report.images >= 61
    train(config, tmp_path / "computed", None)
    train(config, tmp_path / "cached", config.data.feature_cache)
    assert len(losses(tmp_path / "cached")) == 7
    assert_same_run(tmp_path / "cached", tmp_path / "computed")


@pytest.mark.parametrize("aspect_ratio", ["pad", "anyres", "dynamic_1_5"])
def test_rank_step_carries_the_features_of_its_pixels(
    aspect_ratio: str, write_config: WriteConfig, tmp_path: Path
) -> None:
    overrides = [f"data.feature_cache={tmp_path / 'features'}", f"data.image_aspect_ratio={aspect_ratio}"]
    config = load_config(write_config("run", "finetune"), overrides)
    fill(config)
    source = prepared(config)
    plan = source.plan.split(1, 2)[1]
    plain, cached = (build_rank_step(each, plan) for each in (source, with_cached_features(config.recipe, source)))
    arrived = from_row(to_row(cached))
    assert arrived.features is not None
    assert len(arrived.pixels) == 0
    for name in ("sample_ids", "input_ids", "labels", "image_ids", "views", "text_lengths"):
        assert torch.equal(getattr(arrived, name), getattr(plain, name)), name
    model = build_model(config.recipe, torch.device("cpu"))
    wanted = model.encode_vision(plain.pixels)
    assert (arrived.num_tiles, arrived.features.shape) == (plain.num_tiles, wanted.shape)
    assert aspect_ratio == "pad" or plain.num_tiles > len(plain.views)
    torch.testing.assert_close(arrived.features, wanted, rtol=1e-5, atol=1e-6)


def test_fill_again_keeps_finished_shards_and_writes_a_missing_one(config: ExperimentConfig) -> None:
    first = fill(config)
    assert fill(config)[1:4] == (0, first.shards_written, 0)
    tables = sorted(Path(first.folder).glob("*.table.safetensors"))
    before = tables[0].read_bytes()
    tables[0].unlink()
    again = fill(config)
    assert again[1:3] == (1, first.shards_written - 1)
    assert tables[0].read_bytes() == before


def test_fill_repairs_exactly_what_is_damaged(config: ExperimentConfig) -> None:
    first = fill(config)
    folder = Path(first.folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    features = next(path for path in sorted(folder.iterdir()) if ".table." not in path.name)
    features.write_bytes(features.read_bytes()[:-5] + bytes(5))
    with pytest.raises(FeatureCacheError, match=features.name):
        train(config, folder.parent / "run", config.data.feature_cache)
    again = fill(config)
    assert (again.shards_written, again.shards_repaired) == (1, 1)
    assert again.shards_present == first.shards_written - 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_cache_that_lost_a_file_is_refused_before_training(config: ExperimentConfig, tmp_path: Path) -> None:
    folder = Path(fill(config).folder)
    next(path for path in sorted(folder.iterdir()) if ".table." not in path.name).unlink()
    with pytest.raises(FeatureCacheError, match="is gone"):
        train(config, tmp_path / "run2", config.data.feature_cache)
    assert not (tmp_path / "run2" / "metrics.jsonl").exists()


def test_cache_serves_every_layout_of_the_same_tiles(config: ExperimentConfig) -> None:
    tiles = {"image_aspect_ratio": "anyres"}
    flat = config.model_copy(update={"data": config.data.model_copy(update=tiles)})
    first = fill(flat)
    unpad = flat.model_copy(update={"model": flat.model.model_copy(update={"mm_patch_merge_type": "spatial_unpad"})})
    assert fill(unpad)[:3] == (first.folder, 0, first.shards_written)


def test_start_without_the_shards_names_the_command(config: ExperimentConfig) -> None:
    with pytest.raises(ConfigError, match=r"lacks \d+ of \d+ shards.*ray-llava cache-features"):
        with_cached_features(config.recipe, prepared(config))


def test_start_with_another_image_policy_finds_no_shard_and_names_what_is_there(config: ExperimentConfig) -> None:
    folder = Path(fill(config).folder).name
    other = config.model_copy(update={"data": config.data.model_copy(update={"image_aspect_ratio": "crop"})})
    with pytest.raises(ConfigError, match=rf"other towers or settings: {folder}"):
        with_cached_features(other.recipe, prepared(other))


def empty_tables(source: BatchSource) -> BatchSource:
    """Make every shard one that is finished but holds no image."""
    assert source.features is not None
    for shard in source.index.shards:
        ShardWriter(Path(source.features.folder), shard.sha256).finish()
    return source


def test_image_without_features_is_an_error_that_names_its_sample(config: ExperimentConfig) -> None:
    fill(config)
    source = empty_tables(with_cached_features(config.recipe, prepared(config)))
    plan = source.plan.split(0, 1)[0]
    with pytest.raises(FeatureCacheError, match=r"\.tar, key \w+: an image has no features in .*cache-features"):
        build_rank_step(source, plan)


def test_image_that_cannot_be_decoded_is_rejected_as_without_a_cache(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DataError(Reason.IMAGE_CORRUPT, "cut")

    fill(config)
    source = empty_tables(with_cached_features(config.recipe, prepared(config)))
    monkeypatch.setattr("pipeline.samples.encode.decode_image", refuse)
    plan = source.plan.split(0, 1)[0]
    plain, cached = (build_rank_step(dataclasses.replace(source, features=f), plan) for f in (None, source.features))
    assert cached.rejected == plain.rejected
    assert {entry.reason for entry in cached.rejected} == {"image_corrupt"}


def test_features_that_vanish_are_an_error_that_names_the_shard(config: ExperimentConfig) -> None:
    fill(config)
    source = with_cached_features(config.recipe, prepared(config))
    assert source.features is not None
    for file in Path(source.features.folder).glob("*"):
        file.unlink()
    with pytest.raises(FeatureCacheError, match=r"\.tar: its features are gone from .*ray-llava cache-features"):
        build_rank_step(source, source.plan.split(0, 1)[0])


def test_tower_of_the_model_is_the_one_loaded_alone_and_another_is_refused(config: ExperimentConfig) -> None:
    fill(config)
    source = with_cached_features(config.recipe, prepared(config))
    assert source.features is not None
    tower = build_model(config.recipe, torch.device("cpu")).get_vision_tower()
    check_tower(source.features, tower)
    assert tower is not None
    with torch.no_grad():
        next(tower.parameters()).view(-1)[3] += 1
    with pytest.raises(ConfigError, match="come from a tower with SHA-256"):
        check_tower(source.features, tower)


def test_tower_keeps_the_type_of_the_precision(config: ExperimentConfig) -> None:
    training = config.training.model_copy(update={"precision": "bfloat16"})
    lone = load_tower(config.model_copy(update={"training": training}).recipe)
    assert {parameter.dtype for parameter in lone.tower.parameters()} == {torch.bfloat16}


def test_config_with_a_cache_and_a_tower_that_learns_is_refused(write_config: WriteConfig) -> None:
    overrides = ["data.feature_cache=features", "training.vision_tower_lr=0.0001"]
    with pytest.raises(ConfigError, match="features of a frozen tower"):
        load_config(write_config("run", "finetune"), overrides)
