"""`ray-llava pretrain`: train the projector; tower and language model stay frozen."""

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console
from jobs.training import DryRunOption, report, saying_how_to_go_on, show_plan


def run(config: ConfigOption, overrides: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    """Stage 1: train the projector on captions. The same command continues an interrupted run."""
    experiment, console = read_config(config, overrides, "pretrain"), output_console()
    if dry_run:
        show_plan(experiment, console)
        return
    from pipeline.launch.run import run_training  # loads torch, which a wrong config need not wait for

    with saying_how_to_go_on(experiment.name, console):
        result = run_training(experiment, console)
    report(experiment, result, console)
