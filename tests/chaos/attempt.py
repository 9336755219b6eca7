"""What a child of the nursery does: train as the command does, save checkpoints without end, or damage some.

Environment: CHAOS_WITNESS (file to report steps to), CHAOS_MARKS (file for the moments of a start), CHAOS_STEP_DELAY_S
(seconds that a step takes longer), CHAOS_MUTATION (a defect to run with), and a moment to end by SIGKILL:
CHAOS_KILL_BEFORE_STEP, or CHAOS_KILL_AT (right before that file operation of a checkpoint save),
or CHAOS_KILL_AT_REQUEST (right before that request to object storage).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_PRELOADED = (
    "pipeline.launch.run", "pipeline.tracking", "jobs.failures", "pyarrow.dataset", "pandas",
    "tests.chaos.mutations", "tests.chaos.witness", "tests.chaos.file_moments", "transformers.models.phi3",
    "transformers.models.clip", "transformers.conversion_mapping",
)  # fmt: skip


def preload() -> None:
    """Import what every child needs, and nothing that starts a thread."""
    for name in _PRELOADED:
        importlib.import_module(name)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("clip")  # compiles 300 regular expressions at its first call


def become(request: dict[str, Any]) -> NoReturn:
    """Turn the forked process into the child that a request describes; ends the process."""
    exit_code = 1
    try:
        os.setsid()  # a signal to the harness's terminal is not the child's
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["environment"])
        install()
        TARGETS[request["target"]](*request["arguments"])
        exit_code = 0
    except BaseException as error:  # the exit code that the command line would give
        from jobs.failures import classify

        traceback.print_exc()
        exit_code = classify(error).exit_code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def install() -> None:
    """Put witness, defect and moment of death in place, as the environment asks."""
    from tests.chaos.file_moments import die_at, die_at_request
    from tests.chaos.mutations import mutate
    from tests.chaos.witness import mark_start, report_steps

    if "CHAOS_WITNESS" in os.environ:
        step = os.environ.get("CHAOS_KILL_BEFORE_STEP")
        delay_s = float(os.environ.get("CHAOS_STEP_DELAY_S", "0"))
        report_steps(Path(os.environ["CHAOS_WITNESS"]), None if step is None else int(step), delay_s)
    if "CHAOS_MARKS" in os.environ:
        mark_start(Path(os.environ["CHAOS_MARKS"]))
    if "CHAOS_MUTATION" in os.environ:
        mutate(os.environ["CHAOS_MUTATION"])
    if "CHAOS_KILL_AT" in os.environ:
        die_at(int(os.environ["CHAOS_KILL_AT"]))
    if "CHAOS_KILL_AT_REQUEST" in os.environ:
        die_at_request(int(os.environ["CHAOS_KILL_AT_REQUEST"]))


def train(config: str, *overrides: str) -> None:
    """Run a training to its end."""
    import logging

    from pipeline.config import load_config
    from pipeline.launch.run import run_training

    logging.basicConfig(level=logging.WARNING)
    run_training(load_config(Path(config), overrides))


def save_for_ever(folder: str, first_step: str) -> None:
    """Save checkpoints whose every number is their step, and print each step once it is durable."""
    import torch

    from pipeline.checkpoint.store import CheckpointStore

    store = CheckpointStore(Path(folder) / "checkpoints", keep_last=2)
    step = int(first_step)
    while True:
        group = {"weight": torch.full((20_011,), float(step)), "bias": torch.full((7,), float(step))}
        store.save(step, {"model": group, "optimizer": group, "random": group}, {"mark": step})
        os.write(1, f"{step}\n".encode())
        step += 1


def read_newest(folder: str) -> None:
    """Print the step of the newest checkpoint that `save_for_ever` left."""
    from tests.chaos import saves

    print(saves.read_newest(Path(folder)))


def damage(run_dir: str, num_damages: str) -> None:
    """Damage the checkpoints of a run, expecting every damage to be noticed."""
    import random

    from tests.chaos.saves import damage_files

    damage_files(Path(run_dir) / "checkpoints", random.Random(run_dir), int(num_damages))


def replay(run_dir: str, tracking_uri: str) -> None:
    """Send what a run folder has to a tracking server, as `mlflow-replay` does."""
    from pipeline.tracking import replay as send

    send(Path(run_dir), tracking_uri)


TARGETS: dict[str, Callable[..., None]] = {
    "train": train,
    "save_for_ever": save_for_ever,
    "read_newest": read_newest,
    "damage": damage,
    "replay": replay,
}
