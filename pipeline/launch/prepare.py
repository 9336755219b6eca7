"""From a config to the source of batches: encoder, index, token counts, plan. Everything before the first worker.

Training builds what is missing or stale by itself; `ray-llava index` runs just this.
"""

from __future__ import annotations

import pyarrow.compute as pc
from rich.console import Console

from pipeline.assembly.encoder import build_encoder
from pipeline.config import ExperimentConfig
from pipeline.index.budget import check_rejected
from pipeline.index.dataset import IndexedData, index_data, index_folder
from pipeline.parallel.run_map import RunMap, run_serially
from pipeline.samples.encode import SampleEncoder
from pipeline.stream.prepare import plan_run
from pipeline.stream.rank_step import BatchSource


def prepare_source(config: ExperimentConfig, *, console: Console, run_map: RunMap = run_serially) -> BatchSource:
    """Index the shards if needed and plan the run, whose config is known to be sound; raises as `prepare_run` does."""
    encoder = build_encoder(config.model, config.data)
    return prepare_run(config, encoder, console=console, run_map=run_map)[0]


def prepare_run(
    config: ExperimentConfig, encoder: SampleEncoder, *, console: Console, run_map: RunMap = run_serially
) -> tuple[BatchSource, IndexedData]:
    """Index the shards if needed and plan the run; returns the data too, rejected samples included.

    Raises:
        ConfigError: model parts or shards do not exist, or too many samples are unusable.
        ShardError: a shard is defective and data.on_bad_shard is `fail`.
    """
    data = index_run(config, encoder, console, run_map)
    check_rejected(data, config.data)
    plan = plan_run(config.data, config.training, config.seed, data, encoder)
    num_defective = sum(bool(shard.defect_reason) for shard in data.index.shards)
    console.print(
        f"{config.name}: {plan.num_samples} of {data.index.num_samples} samples in {len(data.index.shards)} shards"
        f"{f' ({num_defective} of them defective)' if num_defective else ''}, "
        f"{pc.sum(data.tokens['num_tokens']).as_py()} tokens; {plan.total_steps} steps of {plan.global_batch_size} "
        "samples"
    )
    return BatchSource(plan, data.index, encoder), data


def index_run(config: ExperimentConfig, encoder: SampleEncoder, console: Console, run_map: RunMap) -> IndexedData:
    """Bring the index of a run up to date; see `index_data`."""
    folder = index_folder(config.data, config.run_dir)
    return index_data(config.data, folder, encoder, console, run_map, config.name)
