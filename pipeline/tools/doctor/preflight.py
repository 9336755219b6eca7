"""The checks that training makes before its first worker, as findings."""

from __future__ import annotations

from rich.console import Console

from pipeline.config import ExperimentConfig
from pipeline.tools.doctor.data import IncompleteError, read_nothing
from pipeline.tools.doctor.finding import Finding


def check_model_fits(config: ExperimentConfig) -> list[Finding]:
    """Put the model together without its weights; raises what training would.

    Raises:
        ValueError: parts are missing or do not fit.
    """
    from pipeline.launch.preflight import cautions, check_model, check_outputs  # torch takes seconds to load

    check_outputs(config)
    check_model(config)
    fits = Finding("model and options", "ok", "the parts fit together, and so do options and devices")
    return [fits, *(Finding("options", "warning", caution) for caution in cautions(config))]


def check_run_data(config: ExperimentConfig) -> list[Finding]:
    """Look into the feature cache, and plan the run if the shards are indexed; raises what training would.

    Raises:
        ValueError: no sample is usable, or nothing can be learned from them.
        FeatureCacheError: a file of the cache is damaged or lost.
    """
    from pipeline.assembly.encoder import build_encoder
    from pipeline.features.opening import check_complete, find_cache
    from pipeline.launch.preflight import check_something_to_learn, plan_cautions
    from pipeline.launch.prepare import index_run
    from pipeline.stream.prepare import plan_run

    encoder = build_encoder(config.model, config.data)
    cache = find_cache(config.recipe, encoder)
    if cache is not None:
        cache.verify()
    try:
        data = index_run(config, encoder, Console(quiet=True), read_nothing)
    except IncompleteError:
        return [Finding("plan", "ok", "made when the shards are indexed")]
    check_something_to_learn(config, data)
    plan = plan_run(config.data, config.training, config.seed, data, encoder)
    if cache is not None:
        check_complete(cache, data.index)
    found = Finding("plan", "ok", f"{plan.total_steps} steps of {plan.global_batch_size} samples")
    return [found, *(Finding("options", "warning", caution) for caution in plan_cautions(config, plan))]
