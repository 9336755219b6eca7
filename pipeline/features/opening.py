"""From a config to its cache: the key is computed, and every shard must be there before a run starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from model.hub.lone_tower import LoneTower
from model.vision.tower_builder import AnyTower
from pipeline.config import ConfigError, DataConfig, Recipe
from pipeline.features.identity import cache_key, tower_revision
from pipeline.features.tower import load_tower
from pipeline.index.dataset import checks_of
from pipeline.index.index import ShardIndex, ShardInfo
from pipeline.samples.encode import SampleEncoder
from pipeline.stream.cached_features import HOW_TO_FILL, FeatureCache
from pipeline.stream.rank_step import BatchSource


def with_cached_features(recipe: Recipe, source: BatchSource) -> BatchSource:
    """Return a source that reads features where the config names a cache.

    Raises:
        ConfigError: shards are missing in it.
    """
    return dataclasses.replace(source, features=open_cache(recipe, source.index, source.encoder))


def open_cache(recipe: Recipe, index: ShardIndex, encoder: SampleEncoder) -> FeatureCache | None:
    """Open the cache that a config names, None when it names none.

    Raises:
        ConfigError: shards are missing in it.
    """
    cache = find_cache(recipe, encoder)
    if cache is not None:
        check_complete(cache, index)
    return cache


def find_cache(recipe: Recipe, encoder: SampleEncoder) -> FeatureCache | None:
    """Return the cache that a config names with every file of it checked, None when it names none.

    Raises:
        ConfigError: the tower is missing or does not fit.
        FeatureCacheError: a file is damaged or lost.
    """
    if recipe.data.feature_cache is None:
        return None
    cache = locate_cache(recipe.data, recipe.training.precision, encoder, load_tower(recipe))
    cache.check_files()
    return cache


def check_complete(cache: FeatureCache, index: ShardIndex) -> None:
    """Refuse a cache that lacks shards of a run.

    Raises:
        ConfigError: names the first.
    """
    wanted = shards_with_images(index)
    missing = [shard for shard in wanted if not cache.has(shard)]
    if missing:
        own = Path(cache.folder)
        others = sorted(path.name for path in own.parent.glob("*/") if path.name != own.name)
        hint = f" (there are features of other towers or settings: {', '.join(others)})" if others else ""
        raise ConfigError(
            f"data.feature_cache: {cache.folder} lacks {len(missing)} of {len(wanted)} shards, the first is "
            f"{missing[0].url}{hint}; {HOW_TO_FILL}, or leave data.feature_cache out"
        )


def locate_cache(data: DataConfig, precision: str, encoder: SampleEncoder, lone: LoneTower) -> FeatureCache:
    """Return the cache of exactly this tower and preprocessing, which may be empty.

    Raises:
        ConfigError: data.feature_cache is not set.
    """
    if data.feature_cache is None:
        raise ConfigError("data.feature_cache is not set; set it to a folder for the features")
    revision = tower_revision(lone.tower)
    key = cache_key(lone, revision, encoder.image_spec, encoder.resolution, checks_of(data), precision)
    return FeatureCache(str(Path(data.feature_cache).absolute() / key), revision)


def shards_with_images(index: ShardIndex) -> list[ShardInfo]:
    """Return the shards that have usable samples with images, each content once, in index order."""
    shown = index.usable & (index.samples["num_images"].to_numpy() > 0)
    numbers = np.unique(index.samples["shard"].to_numpy()[shown])
    return list({index.shards[number].sha256: index.shards[number] for number in numbers.tolist()}.values())


def check_tower(cache: FeatureCache, tower: AnyTower | None) -> None:
    """Compare the tower of a model that is to be trained with the one that computed the features.

    Raises:
        ConfigError: they differ.
    """
    found = None if tower is None else tower_revision(tower)
    if found != cache.revision:
        raise ConfigError(
            f"the features in {cache.folder} come from a tower with SHA-256 {cache.revision[:12]}, the model has one "
            f"with {str(found)[:12]}; {HOW_TO_FILL}, or leave data.feature_cache out"
        )
