"""Where an experiment config comes from: a file, or one of the configs that are installed with the package."""

import importlib.resources
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import ConfigError, ExperimentConfig, load_config
from pipeline.run_folder.place import reading_copy

CONFIG_FOLDER = Path(str(importlib.resources.files("jobs"))) / "configs"

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", metavar="FILE|NAME", help="YAML file, or the name of an included config.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values that replace those of the config.")
]


def find_config(name: str) -> Path:
    """Return the file that `--config` names: a path, or an included config without its ending."""
    included = CONFIG_FOLDER / f"{name}.yaml"
    return included if included.is_file() and not Path(name).exists() else Path(name)


def included_configs() -> list[str]:
    """Return the names of the configs that come with the package."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def read_config(name: str, overrides: list[str] | None, stage: str | None = None) -> ExperimentConfig:
    """Load a config with its overrides.

    Args:
        name: What `--config` was given.
        overrides: `a.b=c` strings.
        stage: The stage it must be for; None takes either.

    Raises:
        ConfigError: no such config, a wrong value, or a config for the other stage.
    """
    path = reading_copy(name.rpartition("/")[0]) / name.rpartition("/")[2] if "://" in name else find_config(name)
    if not path.is_file():
        raise ConfigError(f"config {name}: no such file, and the included ones are {', '.join(included_configs())}")
    config = load_config(path, overrides or [])
    if stage is not None and config.stage != stage:
        raise ConfigError(f"config {name} is for stage {config.stage!r}: run `ray-llava {config.stage}` with it")
    return config
