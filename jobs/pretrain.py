"""`ray-llava pretrain`: train the projector; tower and language model stay as they are."""

from jobs.config_source import ConfigOption, OverridesArgument
from jobs.training import DryRunOption, run_stage


def run(config: ConfigOption, overrides: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    """Stage 1: train the projector on captions. The same command continues an interrupted run."""
    run_stage("pretrain", config, overrides, dry_run)
