"""From a config to the source of batches: encoder, index, token counts, plan. Everything before the first worker.

Training builds what is missing or stale by itself; `ray-llava index` runs just this.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow.compute as pc
from rich.console import Console

from pipeline.assembly.facts import check_rows, has_wrapped_images, read_model_tokenizer, read_tower_facts
from pipeline.config import ClusterConfig, ConfigError, ExperimentConfig
from pipeline.index.budget import check_rejected
from pipeline.index.dataset import IndexedData, index_data
from pipeline.index.index import RunMap, run_serially
from pipeline.parallel.children import run_on_cores, survive_in_tasks
from pipeline.plan.epochs import EpochOrder
from pipeline.plan.mix import order_mix, warn_of_late_changes
from pipeline.plan.plan import Order, Plan, check_lengths
from pipeline.plan.sources import Sources
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.image import ImageLimits
from pipeline.samples.prompt.rendering import choose_template
from pipeline.samples.prompt.served_prompt import check_served
from pipeline.stream.rank_step import BatchSource


def prepare_source(config: ExperimentConfig, *, console: Console, run_map: RunMap = run_serially) -> BatchSource:
    """Index the shards if needed and plan the run; raises as `prepare_run` does."""
    return prepare_run(config, console=console, run_map=run_map)[0]


def prepare_run(
    config: ExperimentConfig, *, console: Console, run_map: RunMap = run_serially
) -> tuple[BatchSource, IndexedData]:
    """Index the shards if needed and plan the run; returns the data too, rejected samples included.

    Raises:
        ConfigError: model parts or shards do not exist, or too many samples are unusable.
        ShardError: a shard is defective and data.on_bad_shard is `fail`.
    """
    encoder = build_encoder(config)
    data = index_data(config, encoder, console=console, run_map=run_map)
    check_rejected(data, config.data)
    plan = plan_run(config, data, encoder)
    num_defective = sum(bool(shard.defect_reason) for shard in data.index.shards)
    console.print(
        f"{config.name}: {plan.num_samples} of {data.index.num_samples} samples in {len(data.index.shards)} shards"
        f"{f' ({num_defective} of them defective)' if num_defective else ''}, "
        f"{pc.sum(data.tokens['num_tokens']).as_py()} tokens; {plan.total_steps} steps of {plan.global_batch_size} "
        "samples"
    )
    return BatchSource(plan, data.index, encoder), data


def choose_run_map(cluster: ClusterConfig) -> RunMap:
    """Return what reads shards: the Ray cluster of the environment if the run is for Ray, else this machine's cores.

    The cluster is joined when there is something to read.
    """
    if cluster.launcher == "local" or not os.environ.get("RAY_ADDRESS"):
        return run_on_cores

    def run(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterator[Any]:
        from pipeline.launch.ray_cluster import join_cluster
        from pipeline.parallel.ray_map import map_on_cluster  # the others work where Ray is not installed

        if items:
            join_cluster(cluster)
            yield from map_on_cluster(function, items)

    return survive_in_tasks(run)


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
    plan = Plan(
        num_tokens=num_tokens,
        usable=usable,
        order=order,
        sources=Sources(tuple(config.data.sources), tuple(source.end_row for source in data.sources)),
        data_fingerprint=f"{data.index.fingerprint}:{encoder.fingerprint}",
        seed=config.seed,
        max_steps=training.max_steps,
        micro_batch_tokens=training.micro_batch_tokens,
    )
    warn_of_late_changes(config.data.mix_changes, plan.total_steps)
    return plan


def build_encoder(config: ExperimentConfig) -> SampleEncoder:
    """Build the encoder that a config describes, from configs and tokenizer only.

    Raises:
        ConfigError: a model part is missing or cannot be read.
    """
    try:
        facts, data = read_tower_facts(config.model), config.data
        resolution = facts.resolution(data.image_aspect_ratio, data.image_grid_pinpoints)
        tokenizer = read_model_tokenizer(config.model)
        template = choose_template(data.template, tokenizer, wraps_images=has_wrapped_images(config.model))
        check_rows(tokenizer, template, config.model.language_model)
        limits = ImageLimits(max_pixels=data.max_image_pixels)
        encoder = SampleEncoder(tokenizer, template, facts.image_spec, resolution, data.max_length, limits)
        check_served(tokenizer, template, encoder.tokenizer)
        return encoder
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
