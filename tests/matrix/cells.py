"""One cell of the matrix: how a combination ends, and whether Ray trains what the local launcher trains.

A cell of several workers runs without Ray as that many processes, with the variables that torchrun sets.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
from collections.abc import Mapping, Set
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from safetensors import safe_open

from jobs.failures import classify
from pipeline.config import ExperimentConfig
from pipeline.features.filling import fill_cache
from pipeline.launch.preflight import check_config
from pipeline.launch.prepare import index_run
from pipeline.launch.run import run_training
from pipeline.parallel.run_map import run_serially
from tests.matrix.covering import Pair, choices_left
from tests.matrix.options import ACTS_WITH, OPTIONS
from tests.matrix.parts import cell_config

_QUIET = Console(quiet=True)
RANKS = multiprocessing.get_context("forkserver")
"""Starts ranks from a process that has loaded what they need."""
RANKS.set_forkserver_preload(["tests.matrix.cells"])


class Outcome(NamedTuple):
    """How a run of a cell ended."""

    kind: Literal["trains", "refused", "fails"]
    steps: tuple[tuple[int, float, float], ...] = ()
    """Number, loss and gradient norm of each."""
    weights: str = ""
    """SHA-256 of what was trained."""
    told: str = ""


def values_of(row: Mapping[str, int]) -> dict[str, Any]:
    """Return the values that a row of the covering array names by number."""
    return {name: OPTIONS[name][value] for name, value in row.items()}


def defaults_with(**changed: Any) -> dict[str, Any]:
    """Return the first value of every option, with others in the place of some; `__` stands for the point."""
    own = {name.replace("__", "."): value for name, value in changed.items()}
    assert own.keys() <= OPTIONS.keys()
    return {name: own.get(name, values[0]) for name, values in OPTIONS.items()}


def refused_values(name: str, value: Any, other: str, own: Any, excluded: Set[Pair]) -> dict[str, Any]:
    """Return the values of a cell that has two which exclude each other, and others that go with either of them."""
    row = {name: list(OPTIONS[name]).index(value), other: list(OPTIONS[other]).index(own)}
    pair = (min(row.items()), max(row.items()))
    for needed, needed_value in [ACTS_WITH[option] for option in row if option in ACTS_WITH]:
        row[needed] = list(OPTIONS[needed]).index(needed_value)
    left = choices_left(row, OPTIONS, excluded - {pair})
    return values_of(row | {option: values[0] if values else 0 for option, values in left.items()})


def run_cell(values: Mapping[str, Any], run_dir: Path, parts: Mapping[str, str], launcher: str) -> Outcome:
    """Train a cell; an error that explains itself is a refusal, any other a failure."""
    try:
        config = cell_config(values, run_dir, parts, launcher).with_absolute_paths()
        if config.data.feature_cache is not None:
            _fill_cache(config)
        if launcher == "local" and config.cluster.max_workers > 1:
            return _run_ranks(config)
        run_training(config, _QUIET)
    except Exception as error:  # whatever a combination brings about is what is looked for
        return _outcome_of(error)
    return Outcome("trains", _steps(run_dir), _digest(run_dir))


def _outcome_of(error: Exception) -> Outcome:
    failure = classify(error)
    refused = failure.is_explained and failure.exit_code in (2, 4)
    return Outcome("refused" if refused else "fails", told=f"{type(error).__name__}: {error}")


def _run_ranks(config: ExperimentConfig) -> Outcome:
    """Run a config in as many processes as it has workers; the first that does not train ends the others."""
    # 1. Start them.
    num_ranks = config.cluster.max_workers
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pipes = [RANKS.Pipe(duplex=False) for _ in range(num_ranks)]
    ranks = [
        RANKS.Process(target=_run_rank, args=(config, rank, port, ends[1]), daemon=False)
        for rank, ends in enumerate(pipes)
    ]
    for rank, ends in zip(ranks, pipes, strict=True):
        rank.start()
        ends[1].close()
    # 2. Hear how each ended.
    told, waiting = dict[int, Outcome](), {ends[0]: number for number, ends in enumerate(pipes)}
    while waiting and all(outcome.kind == "trains" for outcome in told.values()):
        for pipe in wait(list(waiting)):
            assert isinstance(pipe, Connection)
            number = waiting.pop(pipe)
            try:
                told[number] = pipe.recv()
            except EOFError:
                told[number] = Outcome("fails", told=f"rank {number} ended and said nothing")
    for rank in ranks:
        if waiting:
            rank.kill()
        rank.join()
    return next((outcome for outcome in told.values() if outcome.kind != "trains"), told[0])


def _run_rank(config: ExperimentConfig, rank: int, port: int, told: Connection) -> None:
    own, number = str(rank), str(config.cluster.max_workers)
    os.environ |= {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        run_training(config, _QUIET)
        run_dir = Path(config.run_dir)
        told.send(Outcome("trains", _steps(run_dir), _digest(run_dir)) if rank == 0 else Outcome("trains"))
    except Exception as error:
        told.send(_outcome_of(error))
    finally:
        os._exit(0)  # as processes of ray-llava end, before gloo's threads and the interpreter get in each other's way


def _fill_cache(config: ExperimentConfig) -> None:
    encoder = check_config(config, fills_cache=True).encoder
    fill_cache(config.recipe, index_run(config, encoder, _QUIET, run_serially).index, encoder, use_gpu=False)


def _steps(run_dir: Path) -> tuple[tuple[int, float, float], ...]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    found = {entry["step"]: entry["metrics"] for entry in map(json.loads, lines)}
    return tuple((step, metrics["train/loss"], metrics["train/grad_norm"]) for step, metrics in found.items())


def _digest(run_dir: Path) -> str:
    """Return a digest of the tensors of the result, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted([*run_dir.glob("projector/*.safetensors"), *run_dir.glob("model/*.safetensors")]):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                digest.update(name.encode())
                digest.update(tensors.get_tensor(name).float().numpy().tobytes())
    return digest.hexdigest()
