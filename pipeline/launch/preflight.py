"""What can be known before a run's first worker: one place for every check, for all callers.

Training, `--dry-run`, `plan`, `doctor` and `cache-features` all call `check_config` before the shards are read and
`check_data` afterwards, so that what training refuses they refuse, in the same words. Weights stay unread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from model.files.checkpoint_files import read_checkpoint_config
from model.hub.quantization import quantization_config
from model.hub.weights import LlavaModel
from model.llava.attention import check_training_kernel, enable_packed_attention
from model.llava.experts import num_experts
from model.llava.fp8_linear import check_widths
from pipeline.assembly.encoder import build_encoder
from pipeline.assembly.part_files import check_part_files
from pipeline.assembly.precision import DTYPES
from pipeline.assembly.provenance import check_provenance
from pipeline.assembly.skeleton import build_skeleton
from pipeline.checkpoint.resume import run_storage
from pipeline.checkpoint.room import measure_room
from pipeline.config import (
    CheckpointConfig,
    ClusterConfig,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    Recipe,
    Stage,
    TrainingConfig,
)
from pipeline.evaluation.sets import check_sets
from pipeline.features.opening import find_cache, with_cached_features
from pipeline.index.dataset import IndexedData
from pipeline.launch.adoption import check_continues
from pipeline.launch.prepare import prepare_run
from pipeline.parallel.run_map import RunMap
from pipeline.plan.mix import describe_late_changes
from pipeline.plan.plan import Plan
from pipeline.run_folder.place import working_folder
from pipeline.samples.encode import SampleEncoder
from pipeline.stream.rank_step import BatchSource
from pipeline.training.optim import check_optimizer, checkpoint_bytes
from pipeline.training.sharding import check_groups

logger = logging.getLogger(__name__)


class Checked(NamedTuple):
    """What a sound config describes."""

    encoder: SampleEncoder
    model: LlavaModel
    """Without values."""


def check_config(config: ExperimentConfig, *, fills_cache: bool = False, trains_here: bool = True) -> Checked:
    """Refuse a config that no worker could start with, from configs and headers.

    Args:
        config: with absolute paths.
        fills_cache: it is for filling the feature cache, which may then be damaged or incomplete.
        trains_here: the run's folders are those of this machine; not when it is planned for another device.

    Raises:
        ConfigError: a path, a part of the model or a package is missing.
        ValueError: parts do not fit together, or to the devices.
        FeatureCacheError: a file of the feature cache is damaged or lost.
    """
    for num_workers in _numbers_of_workers(config.cluster):
        check_groups(num_workers, config.training.fsdp_group_size)
    check_outputs(config.run_dir, config.checkpoint, config.data)
    check_continues(config)
    encoder = build_encoder(config.model, config.data)
    model = check_model(config.recipe, use_gpu=config.cluster.use_gpu)
    if not fills_cache:
        find_cache(config.recipe, encoder)
    if trains_here and not fills_cache:
        room = measure_room(
            run_storage(config.run_dir, config.checkpoint), lambda: checkpoint_bytes(model, config.training)
        )
        if room is not None and not room.is_enough:
            raise ConfigError(str(room))
    for caution in cautions(config.cluster, config.recipe):
        logger.warning(caution)
    return Checked(encoder, model)


def _numbers_of_workers(cluster: ClusterConfig) -> range:
    """Return every number of workers that the run may have."""
    if cluster.launcher == "local":
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        return range(ranks, ranks + 1)
    return range(cluster.min_workers, cluster.max_workers + 1)


def check_data(recipe: Recipe, data: IndexedData, source: BatchSource) -> BatchSource:
    """Refuse data from which nothing can be learned, and a feature cache that lacks some of it.

    Returns:
        The source with the cache opened, where the config names one.

    Raises:
        ConfigError: the reason.
        FeatureCacheError: a file of the cache is damaged.
    """
    check_something_to_learn(recipe.stage, data)
    for caution in plan_cautions(recipe.data, recipe.training, source.plan):
        logger.warning(caution)
    return with_cached_features(recipe, source)


def prepare_checked(config: ExperimentConfig, *, console: Console, run_map: RunMap) -> tuple[BatchSource, IndexedData]:
    """Check the config, index the shards if needed, plan the run and check the data.

    Raises:
        ConfigError: the run cannot start; the first reason.
        ShardError: a shard is defective and data.on_bad_shard is `fail`.
    """
    encoder = check_config(config).encoder
    source, data = prepare_run(config, encoder, console=console, run_map=run_map)
    run_dir, held_out = working_folder(config.run_dir), config.data.held_out
    check_sets(config.evaluation, run_dir, data.index, held_out, encoder)
    return check_data(config.recipe, data, source), data


def check_model(recipe: Recipe, *, use_gpu: bool) -> LlavaModel:
    """Put the model together without values; returns it.

    Raises:
        ConfigError: a package is missing, a file of a part is damaged or lacks tensors, or the projector was trained on
            other parts.
        ValueError: parts are missing or do not fit, or the attention kernel does not fit the workers' devices.
    """
    dtype = DTYPES[recipe.training.precision]
    if recipe.lora.quantize_base is not None:
        quantization_config(recipe.lora.quantize_base, dtype)
    check_part_files(recipe.model)
    check_provenance(recipe.model)
    model = build_skeleton(recipe)
    if model.last_position is not None and recipe.data.max_length > model.last_position:
        raise ConfigError(
            f"data.max_length is {recipe.data.max_length}, but {recipe.model.language_model} computes no more than "
            f"{model.last_position} tokens of a sample (max_seq_len); lower data.max_length, or raise max_seq_len in "
            "its config.json: its linear biases extend to any length"
        )
    if model.packs_rows:
        kernel = recipe.model.attention
        enable_packed_attention(model, kernel)
        check_training_kernel(model, kernel, on_cuda=use_gpu, dtype=dtype)
    if recipe.training.linear_precision == "fp8":
        check_widths(model.get_model().layers)
    check_optimizer(model, recipe.training)
    _check_expert_balance(model, recipe)
    return model


def _check_expert_balance(model: LlavaModel, recipe: Recipe) -> None:
    if recipe.training.expert_balance == 0:
        return
    if recipe.stage == "pretrain":
        raise ConfigError("training.expert_balance is for finetuning: in projector pretraining the routers are frozen")
    if not num_experts(model) or not hasattr(model.config, "router_aux_loss_coef"):
        raise ConfigError(
            f"training.expert_balance is set, but {model.config.model_type} has no experts that such a loss balances; "
            "set it to 0"
        )


def check_outputs(run_dir: str, checkpoint: CheckpointConfig, data: DataConfig) -> None:
    """Refuse folders that cannot be written, without creating them, and object stores that cannot hold a run."""
    folders = {
        "run_dir": run_dir,
        "checkpoint.folder": checkpoint.folder,
        "data.index_dir": data.index_dir,
    }
    for field, folder in folders.items():
        if folder is None:
            continue
        if "://" in folder:
            if field != "checkpoint.folder":
                working_folder(folder, field)
            continue
        found = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
        if not found.is_dir():
            raise ConfigError(f"{field} {folder}: {found} is a file, expected a folder; choose another path")
        if not os.access(found, os.W_OK | os.X_OK):
            raise ConfigError(f"{field} {folder}: {found} cannot be written by this user; choose another path")


def check_something_to_learn(stage: Stage, data: IndexedData) -> None:
    """Refuse projector pretraining without any image: no gradient would reach the projector."""
    if stage != "pretrain":
        return
    usable = data.tokens["num_tokens"].to_numpy() > 0
    shown = int(np.count_nonzero(data.index.samples["num_images"].to_numpy()[usable]))
    if np.count_nonzero(usable) and not shown:
        raise ConfigError(
            f"stage pretrain trains the projector, but none of the {np.count_nonzero(usable)} usable samples has an "
            "image, so nothing would be learned; add samples with images, or use stage finetune"
        )


def cautions(cluster: ClusterConfig, recipe: Recipe) -> Iterator[str]:
    """Yield what will not have the effect that the config suggests, though the run works."""
    training, data = recipe.training, recipe.data
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if cluster.launcher == "local" and ranks == 1 and cluster.num_workers != 1:
        yield (
            f"cluster.num_workers is {cluster.num_workers}, but launcher=local runs one worker; start it under "
            "torchrun for more, or set cluster.launcher=ray"
        )
    alone = ranks == 1 if cluster.launcher == "local" else cluster.max_workers == 1
    if training.sharding == "fsdp" and alone:
        yield "training.sharding=fsdp shards nothing with one worker; set cluster.num_workers, or sharding=none"

    idle = [f"lora.{name}" for name in ("alpha", "targets") if getattr(recipe.lora, name) is not None]
    if recipe.lora.rank is None and idle:
        yield f"{' and '.join(idle)} without lora.rank: there are no adapters, all weights learn; set lora.rank"

    limit = num_positions(read_checkpoint_config(recipe.model.language_model, "model.language_model"))
    if limit is not None and data.max_length > limit:
        yield (
            f"data.max_length is {data.max_length}, but the language model was made for {limit} positions "
            f"(max_position_embeddings, rope scaling included); samples beyond them train on positions it has never "
            "seen. Lower data.max_length, or set rope scaling in its config.json"
        )


def num_positions(values: Mapping[str, Any]) -> int | None:
    """Return the positions that a language model was made for, None where its config does not say.

    Scaling by a factor counts where `max_position_embeddings` is the length before it; the kinds that note
    `original_max_position_embeddings` have counted it already. Source: transformers, `modeling_rope_utils.py`.

    Args:
        values: content of its config.json.
    """
    values = values.get("text_config", values)
    limit = values.get("max_position_embeddings")
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    factor = scaling.get("factor") if "original_max_position_embeddings" not in {*values, *scaling} else None
    return None if limit is None else int(limit * (factor or 1))


def plan_cautions(data: DataConfig, training: TrainingConfig, plan: Plan) -> Iterator[str]:
    """Yield the same of what depends on the data."""
    late = describe_late_changes(data.mix_changes, plan.total_steps)
    if late is not None:
        yield late
    steps = training.profile_steps
    if steps is not None and steps[0] >= plan.total_steps:
        yield (
            f"training.profile_steps is {list(steps)}, but the run ends after step {plan.total_steps - 1}: nothing is "
            "recorded; lower it, or train longer"
        )
