"""What a training process really computed, recorded independently of the product's own accounts.

One line per rank and optimizer step: the tokens that went through the model, sample by sample, a checksum of the
pixels, loss and gradient norm to the last bit. It is written after the update of the weights, with a single write.
"""

from __future__ import annotations

import json
import os
import signal
import time
import zlib
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.fusion.constants import IMAGE_TOKEN_INDEX
from pipeline.parallel.ranks import Workers
from pipeline.training import batches, loop, worker
from pipeline.training.batches import PreparedStep
from pipeline.training.session import StepOutcome, TrainingSession


def report_steps(path: Path, die_before_step: int | None, delay_s: float) -> None:
    """Report every optimizer step of this process to `path` from now on.

    Args:
        path: file that all processes of a run append to.
        die_before_step: end this process by SIGKILL when it is about to compute this step.
        delay_s: seconds that every step takes longer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    original = loop.run_step

    def run_step(session: TrainingSession, prepared: PreparedStep) -> StepOutcome:
        group = _group(session.workers)
        if prepared.step == die_before_step:
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = original(session, prepared)
        line = {
            "group": group,
            "rank": session.workers.rank,
            "world_size": session.workers.world_size,
            "step": prepared.step,
            "samples": _tokens(prepared),
            "pixels": zlib.crc32(prepared.pixels.numpy().tobytes()),
            "numbers": [outcome.loss.hex(), outcome.grad_norm.hex()],
            "time_s": time.time(),
        }
        os.write(descriptor, json.dumps(line).encode() + b"\n")
        time.sleep(delay_s)
        return outcome

    loop.run_step = run_step


def mark_start(path: Path) -> None:
    """Report to `path` when this process passes the moments between its creation and its first step."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def mark(moment: str) -> None:
        line = {"pid": os.getpid(), "moment": moment, "time_s": time.time()}
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    def after(name: str, moment: str) -> None:
        original = vars(worker)[name]

        def marked(*arguments: Any, **settings: Any) -> Any:
            result = original(*arguments, **settings)
            mark(moment)
            return result

        setattr(worker, name, marked)

    mark("imported")
    after("build_model", "model built")
    after("restore", "restored")
    prepare_ahead = batches.prepare_ahead

    def prepare_marked(*arguments: Any) -> Generator[PreparedStep, None, None]:
        prepared = prepare_ahead(*arguments)
        first = next(prepared)
        mark("data")
        yield first
        yield from prepared

    setattr(worker, "prepare_ahead", prepare_marked)  # noqa: B010


@lru_cache(maxsize=1)
def _group(workers: Workers) -> str:
    """Name the worker group: what rank 0 calls itself. A collective, once per process."""
    name: str = workers.gather(f"{os.getpid()}-{time.time_ns()}")[0]
    return name


def _tokens(prepared: PreparedStep) -> list[list[list[int]]]:
    """Token ids by micro-batch and sample, image positions left out."""
    micro_batches = []
    for micro_batch in prepared.micro_batches:
        packed = micro_batch.packed
        parts = packed.input_ids.split(list(packed.seqlens)) if packed.targets.numel() else ()
        micro_batches.append([[idx for idx in part.tolist() if idx != IMAGE_TOKEN_INDEX] for part in parts])
    return micro_batches
