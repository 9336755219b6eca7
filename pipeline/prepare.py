"""From a config to the source of batches: encoder, index, token counts, plan. Everything before the first worker.

Training builds what is missing or stale by itself; `ray-llava index` runs just this.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from transformers import AutoTokenizer, BaseImageProcessor, PreTrainedTokenizerBase

from model.resolution import Pinpoints, Resolution, read_resolution
from model.vision_tower import VisionTower, build_vision_tower, read_checkpoint_config
from model.weights import read_llava_config
from pipeline.config import ConfigError, ExperimentConfig, ModelConfig
from pipeline.indexed_data import IndexedData, index_data
from pipeline.loader import BatchSource
from pipeline.mix import order_mix
from pipeline.plan.epochs import EpochOrder
from pipeline.plan.plan import Order, Plan, check_lengths
from pipeline.plan.sources import Sources
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec
from pipeline.shards.index import RunMap, run_serially


class TowerFacts(NamedTuple):
    """What the data side must know of a vision tower; read from its configs, no weights."""

    processor: dict[str, Any]
    """Content of preprocessor_config.json."""
    num_features: int
    """Features per tile after selection."""
    feature_grid: int | None
    """Features per side of a tile, None when class tokens are among them."""
    patch_merge: str
    """`mm_patch_merge_type` of the model that the tower belongs to, or is to belong to."""

    @property
    def image_spec(self) -> ImageSpec:
        """The square that every tile becomes."""
        return ImageSpec.from_preprocessor_config(self.processor)

    def resolution(self, aspect_ratio: str, pinpoints: Pinpoints) -> Resolution:
        """Return how images become tiles and features.

        Raises:
            ValueError: see `read_resolution`.
        """
        return read_resolution(
            aspect_ratio,
            pinpoints,
            self.patch_merge,
            tile_size=self.image_spec.size,
            tile_features=self.num_features,
            tile_grid=self.feature_grid,
        )


class _TowerArgs(NamedTuple):
    vision_tower: str
    mm_vision_select_layer: int | tuple[int, ...]
    mm_vision_select_feature: str
    mm_projector_type: str


def prepare_source(config: ExperimentConfig, *, console: Console, run_map: RunMap = run_serially) -> BatchSource:
    """Index the shards if needed and plan the run.

    Raises:
        ConfigError: model parts or shards do not exist, or too many samples are unusable.
        ShardError: a shard is defective and data.on_bad_shard is `fail`.
    """
    encoder = build_encoder(config)
    data = index_data(config, encoder, console=console, run_map=run_map)
    _check_rejected(config, data.tokens)
    plan = plan_run(config, data, encoder)
    console.print(
        f"{config.name}: {plan.num_samples} of {data.index.num_samples} samples in {len(data.index.shards)} shards, "
        f"{pc.sum(data.tokens['num_tokens']).as_py()} tokens; {plan.total_steps} steps of {plan.global_batch_size} "
        "samples"
    )
    return BatchSource(plan, data.index, encoder)


def plan_run(config: ExperimentConfig, data: IndexedData, encoder: SampleEncoder) -> Plan:
    """Plan a run over indexed data.

    Raises:
        ValueError: no sample is usable, or one is longer than a micro-batch.
    """
    num_tokens, training = data.tokens["num_tokens"].to_numpy(), config.training
    usable = check_lengths(num_tokens, training.micro_batch_tokens)
    order: Order
    if config.data.sources:
        order = order_mix(config, {name: usable.count(first, end) for name, first, end in data.sources})
    else:
        order = EpochOrder(len(usable), config.seed, training.global_batch_size, training.num_epochs)
    return Plan(
        num_tokens=num_tokens,
        usable=usable,
        order=order,
        sources=Sources(tuple(config.data.sources), tuple(source.end_row for source in data.sources)),
        data_fingerprint=f"{data.index.fingerprint}:{encoder.fingerprint}",
        seed=config.seed,
        max_steps=training.max_steps,
        micro_batch_tokens=training.micro_batch_tokens,
    )


def build_encoder(config: ExperimentConfig) -> SampleEncoder:
    """Build the encoder that a config describes, from configs and tokenizer only.

    Raises:
        ConfigError: a model part is missing or cannot be read.
    """
    try:
        facts, data = read_tower_facts(config.model), config.data
        resolution = facts.resolution(data.image_aspect_ratio, data.image_grid_pinpoints)
        tokenizer = load_tokenizer(config.model.language_model)
        return SampleEncoder(tokenizer, data.template, facts.image_spec, resolution, data.max_length)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def read_tower_facts(parts: ModelConfig) -> TowerFacts:
    """Read what the data side must know of the tower that a config names, which a LLaVA folder may hold inside.

    Raises:
        ValueError: the tower or its preprocessor_config.json is missing.
    """
    if parts.vision_tower is None:
        facts = read_llava_facts(parts.language_model)
        return facts._replace(patch_merge=parts.mm_patch_merge_type or facts.patch_merge)
    args = _TowerArgs(
        parts.vision_tower, parts.mm_vision_select_layer, parts.mm_vision_select_feature, parts.mm_projector_type
    )
    tower = build_vision_tower(args, delay_load=True)
    return _facts(tower, parts.vision_tower, parts.mm_patch_merge_type or "flat")


def read_llava_facts(folder: str) -> TowerFacts:
    """Read what the data side must know of the tower of a LLaVA folder.

    Raises:
        ValueError: it is no LLaVA folder, or has neither a preprocessor_config.json nor a tower that has one.
    """
    values = read_checkpoint_config(folder, "model.language_model")
    if not values.get("mm_vision_tower"):
        raise ValueError(
            f"{folder} is a language model without a vision tower; set model.vision_tower to a tower's folder or hub id"
        )
    config: Any = read_llava_config(folder)
    tower = build_vision_tower(config, delay_load=True)
    own = Path(folder) / "preprocessor_config.json"
    return _facts(tower, folder if own.is_file() else tower.spec.name, config.mm_patch_merge_type)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or hub id, never running code from it.

    Raises:
        ValueError: there is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise ValueError(f"{name}: no tokenizer found ({error}); copy tokenizer.json into that folder") from error
    return tokenizer


def _facts(tower: VisionTower, processor_folder: str, patch_merge: str) -> TowerFacts:
    processor = _read_processor(processor_folder)
    size = ImageSpec.from_preprocessor_config(processor).size
    return TowerFacts(processor, tower.num_features_at(size), tower.feature_grid_at(size), patch_merge)


def _read_processor(name: str) -> dict[str, Any]:
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(name)
    except OSError as error:
        raise ValueError(
            f"{name}: no preprocessor_config.json found, which says how images are sized and normalised; copy it into "
            "that folder"
        ) from error
    return dict(values)


def _check_rejected(config: ExperimentConfig, tokens: pa.Table) -> None:
    reasons = Counter(reason for reason in tokens["reason"].to_pylist() if reason)
    num_rejected = sum(reasons.values())
    allowed = config.data.allowed_rejected(tokens.num_rows)
    if num_rejected > allowed:
        listing = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
        raise ConfigError(
            f"{num_rejected} of {tokens.num_rows} samples are unusable ({listing}), more than the {allowed} that "
            "data.max_rejected_fraction allows; `ray-llava index` lists each of them. Repair the shards, or raise it"
        )
