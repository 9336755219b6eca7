"""The checks that training makes before its first worker, as findings."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipeline.config import CheckpointConfig, ClusterConfig, Recipe
from pipeline.tools.doctor.data import IncompleteError, read_nothing
from pipeline.tools.doctor.finding import Finding


def check_model_fits(
    cluster: ClusterConfig, recipe: Recipe, run_dir: str | Path, checkpoint: CheckpointConfig
) -> list[Finding]:
    """Put the model together without its weights; raises what training would.

    Raises:
        ValueError: parts are missing or do not fit.
    """
    from pipeline.launch.preflight import cautions, check_model, check_outputs  # torch takes seconds to load

    check_outputs(str(run_dir), checkpoint, recipe.data)
    check_model(recipe, use_gpu=cluster.use_gpu)
    fits = Finding("model and options", "ok", "the parts fit together, and so do options and devices")
    return [fits, *(Finding("options", "warning", caution) for caution in cautions(cluster, recipe))]


def check_run_data(recipe: Recipe, run_dir: str | Path, seed: int) -> list[Finding]:
    """Look into the feature cache, and plan the run if the shards are indexed; raises what training would.

    Raises:
        ValueError: no sample is usable, or nothing can be learned from them.
        FeatureCacheError: a file of the cache is damaged or lost.
    """
    from pipeline.assembly.encoder import build_encoder
    from pipeline.features.opening import check_complete, find_cache
    from pipeline.index.dataset import index_data, index_folder
    from pipeline.launch.preflight import check_something_to_learn, plan_cautions
    from pipeline.stream.prepare import plan_run

    data, training = recipe.data, recipe.training
    encoder = build_encoder(recipe.model, data)
    cache = find_cache(recipe, encoder)
    if cache is not None:
        cache.verify()
    try:
        folder = index_folder(data, run_dir)
        indexed = index_data(data, folder, encoder, Console(quiet=True), read_nothing)
    except IncompleteError:
        return [Finding("plan", "ok", "made when the shards are indexed")]
    check_something_to_learn(recipe.stage, indexed)
    plan = plan_run(data, training, seed, indexed, encoder)
    if cache is not None:
        check_complete(cache, indexed.index)
    found = Finding("plan", "ok", f"{plan.total_steps} steps of {plan.global_batch_size} samples")
    return [found, *(Finding("options", "warning", caution) for caution in plan_cautions(data, training, plan))]
