"""One cell of the matrix: how a combination ends, and whether Ray trains what the local launcher trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from jobs.failures import classify
from pipeline.config import ExperimentConfig
from pipeline.features.filling import fill_cache
from pipeline.launch.preflight import check_config
from pipeline.launch.prepare import index_run
from pipeline.launch.run import run_training
from pipeline.parallel.run_map import run_serially
from tests.integration.runs import losses
from tests.matrix.options import OPTIONS
from tests.matrix.parts import cell_config

_QUIET = Console(quiet=True)


class Outcome(NamedTuple):
    """How a run of a cell ended."""

    kind: Literal["trains", "refused", "fails"]
    losses: tuple[tuple[int, float], ...] = ()
    told: str = ""


def values_of(row: Mapping[str, int]) -> dict[str, Any]:
    """Return the values that a row of the covering array names by number."""
    return {name: OPTIONS[name][value] for name, value in row.items()}


def defaults_with(**changed: Any) -> dict[str, Any]:
    """Return the first value of every option, with others in the place of some; `__` stands for the point."""
    own = {name.replace("__", "."): value for name, value in changed.items()}
    assert own.keys() <= OPTIONS.keys()
    return {name: own.get(name, values[0]) for name, values in OPTIONS.items()}


def run_cell(values: Mapping[str, Any], run_dir: Path, parts: Mapping[str, str], launcher: str) -> Outcome:
    """Train a cell; an error that explains itself is a refusal, any other a failure."""
    try:
        config = cell_config(values, run_dir, parts, launcher).with_absolute_paths()
        if config.data.feature_cache is not None:
            _fill_cache(config)
        run_training(config, _QUIET)
    except Exception as error:  # whatever a combination brings about is what is looked for
        failure = classify(error)
        refused = failure.is_explained and failure.exit_code in (2, 4)
        return Outcome("refused" if refused else "fails", told=f"{type(error).__name__}: {error}")
    return Outcome("trains", tuple(losses(run_dir)))


def _fill_cache(config: ExperimentConfig) -> None:
    encoder = check_config(config, fills_cache=True).encoder
    fill_cache(config.recipe, index_run(config, encoder, _QUIET, run_serially).index, encoder, use_gpu=False)
