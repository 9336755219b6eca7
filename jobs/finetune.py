"""`ray-llava finetune`: train projector and language model; the tower stays frozen by default."""

from jobs.config_source import ConfigOption, OverridesArgument
from jobs.training import DryRunOption, run_stage


def run(config: ConfigOption, overrides: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    """Stage 2: train projector and language model on instructions. The same command continues an interrupted run."""
    run_stage("finetune", config, overrides, dry_run)
