"""`ray-llava cache-features`: compute the features of a frozen vision tower once and keep them for training."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console


def run(config: ConfigOption, overrides: OverridesArgument = None) -> None:
    """Fill the folder data.feature_cache with features of all images of a config; finished shards are kept."""
    experiment = read_config(config, overrides).with_absolute_paths()
    console = output_console()

    from pipeline.features.filling import fill_cache
    from pipeline.launch.preflight import check_config
    from pipeline.launch.prepare import index_run
    from pipeline.launch.run_maps import choose_run_map

    encoder = check_config(experiment, fills_cache=True).encoder
    data = index_run(experiment, encoder, console, choose_run_map(experiment.cluster))
    columns = (TextColumn("computing features, shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        report = fill_cache(
            experiment.recipe,
            data.index,
            encoder,
            use_gpu=experiment.cluster.use_gpu,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    repaired = f" ({report.shards_repaired} of them had been damaged)" if report.shards_repaired else ""
    console.print(
        f"{report.shards_written} shards written{repaired}, {report.shards_present} were there: "
        f"{report.images} images, {report.tiles} tiles, {report.num_bytes / 1e9:.3g} GB in {report.folder}"
    )
