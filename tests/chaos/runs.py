"""Runs of the plain launcher that are killed and started again, and the proof that the result is the same."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.chaos.ledger import (
    Record,
    ViolationError,
    check_exactly_once,
    check_same_records,
    read_witness,
    surviving_history,
)
from tests.chaos.nursery import Child, Nursery
from tests.chaos.world import NUM_EPOCHS, NUM_SAMPLES, World

Moment = Literal["time", "step", "save"]
"""When a kill comes: at any time since the start, soon after a step, or at a file operation of a checkpoint save."""

_ATTEMPT_TIMEOUT_S = 120.0
_SURVIVOR_TIMEOUT_S = 30.0
_START_PATIENCE_S = 1.5


class Result(NamedTuple):
    """What a finished run left behind."""

    losses: list[tuple[int, float]]
    """Of every step, as metrics.jsonl has them."""
    files: dict[str, str]
    """SHA-256 of every file of the result."""
    records: list[Record]
    num_trained: int
    """Samples, by the product's own ledger."""


@dataclass
class Run:
    """A run folder, and the processes that work on it."""

    world: World
    nursery: Nursery
    run_dir: Path
    num_ranks: int = 1
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    _store: TCPStore | None = field(default=None, init=False)

    @property
    def witness(self) -> Path:
        """File that the training processes report to."""
        return self.run_dir.with_suffix(".witness")

    @property
    def log(self) -> Path:
        """File with what the training processes printed."""
        return self.run_dir.with_suffix(".log")

    def start(self, **environment: str) -> list[Child]:
        """Start an attempt: one process per rank."""
        config = self.world.write_config(self.run_dir)
        settings = {"CHAOS_WITNESS": str(self.witness), **self.environment, **environment}
        if self.num_ranks == 1:
            return [self.nursery.start("train", [str(config), *self.overrides], self.log, settings)]
        # As under torchrun, the store in which ranks find each other outlives them.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        group = {
            "WORLD_SIZE": str(self.num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
        return [
            self.nursery.start(
                "train",
                [str(config), *self.overrides],
                self.log,
                {**settings, **group, "RANK": str(rank), "LOCAL_RANK": "0"},
            )
            for rank in range(self.num_ranks)
        ]

    def finish(self, **environment: str) -> Result:
        """Start an attempt and let it end.

        Raises:
            ViolationError: it did not end with exit code 0.
        """
        children = self.start(**environment)
        codes = [child.wait(_ATTEMPT_TIMEOUT_S) for child in children]
        if any(codes):
            raise ViolationError(f"{self.run_dir}: the attempt ended with {codes}:\n{children[0].output()}")
        return self.result()

    def has_written_all(self) -> bool:
        """Whether there is nothing left to do: a rank may be killed while it ends, after it was last needed."""
        return (self.run_dir / "model" / "model.safetensors").is_file()

    def result(self) -> Result:
        """Read what the finished run left behind."""
        return read_result(self.run_dir, self.witness, self.world)

    def num_steps_reported(self) -> int:
        """Count the lines of the witness: steps computed by any rank, repeats included."""
        return self.witness.read_bytes().count(b"\n") if self.witness.exists() else 0


def read_result(run_dir: Path, witness: Path, world: World) -> Result:
    """Read what a finished run left behind."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    files = sorted(path for path in (run_dir / "model").iterdir() if path.is_file())
    return Result(
        [(entry["step"], entry["metrics"]["train/loss"]) for entry in lines],
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        read_witness(witness, world),
        int(lines[-1]["metrics"]["data/samples_trained"]),
    )


class KillCount(NamedTuple):
    """What was done to a run."""

    moments: dict[Moment, int]
    """SIGKILLs by when they came."""
    ended_alone: int
    """Survivors of a killed rank that ended by themselves."""
    ended_by_launcher: int
    """Survivors that still waited for their peers to start, which torchrun ends."""


def kill_until_done(run: Run, rng: random.Random, moments: Sequence[Moment], calm_s: float, calm_ops: int) -> KillCount:
    """Start a run, kill it, start it again, until the kills are used up or an attempt reaches the end.

    Args:
        run: the run; on return it is finished.
        rng: decides the moments and the ranks.
        moments: one entry for each kill to try.
        calm_s: seconds an undisturbed attempt takes.
        calm_ops: file operations in the checkpoint saves of an undisturbed attempt.
    """
    count = KillCount(dict.fromkeys(("time", "step", "save"), 0), 0, 0)
    for moment in moments:
        killed, alone, by_launcher = _attempt_and_kill(run, rng, moment, calm_s, calm_ops)
        if not killed:
            return count
        count.moments[moment] += 1
        count = count._replace(
            ended_alone=count.ended_alone + alone, ended_by_launcher=count.ended_by_launcher + by_launcher
        )
    run.finish()
    return count


def check_like_calm(calm: Result, disturbed: Result) -> int:
    """Verify that a disturbed run equals the undisturbed one; returns how many step computations were compared.

    Raises:
        ViolationError: samples lost or repeated, or a bit that differs in batches, losses or weights.
    """
    history = surviving_history(disturbed.records)
    check_exactly_once(history, NUM_SAMPLES, NUM_EPOCHS)
    num_compared = check_same_records(calm.records, disturbed.records)
    if disturbed.losses != calm.losses:
        raise ViolationError(f"losses differ from the undisturbed run's:\n{calm.losses}\n{disturbed.losses}")
    if disturbed.num_trained != NUM_SAMPLES * NUM_EPOCHS:
        raise ViolationError(f"the run's ledger says {disturbed.num_trained} samples, {NUM_SAMPLES} x {NUM_EPOCHS}")
    different = [name for name in calm.files if calm.files[name] != disturbed.files.get(name)]
    if different:
        raise ViolationError(f"result files {different} differ from the undisturbed run's")
    return num_compared


def _attempt_and_kill(
    run: Run, rng: random.Random, moment: Moment, calm_s: float, calm_ops: int
) -> tuple[bool, int, int]:
    """Run one attempt with a kill; returns whether it hit, and how the survivors ended (alone, by the launcher)."""
    victim, before = rng.randrange(run.num_ranks), run.num_steps_reported()
    if moment == "save":  # rank 0 writes the most; a smaller number comes in every attempt
        children = run.start(CHAOS_KILL_AT=str(rng.randint(1, max(1, calm_ops // 3))))
        codes = _wait_for_one(children)
    else:
        children = run.start()
        if moment == "step":
            _wait_for_steps(run, children, before + rng.randint(1, 4))
            time.sleep(rng.uniform(0.0, 0.08))
        else:
            time.sleep(rng.uniform(0.0, 1.1 * calm_s))
        codes = [children[victim].kill()]
    if -9 not in codes:
        ended = [child.wait(_ATTEMPT_TIMEOUT_S) for child in children]
        if any(ended):
            raise ViolationError(f"{run.run_dir}: an attempt ended with {ended}:\n{children[0].output()}")
        return False, 0, 0
    return True, *_end_survivors(run, children, has_trained=run.num_steps_reported() > before)


def _wait_for_one(children: Sequence[Child]) -> list[int]:
    deadline = time.monotonic() + _ATTEMPT_TIMEOUT_S
    while all(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.003)
    return [child.exit_code for child in children if child.exit_code is not None]


def _wait_for_steps(run: Run, children: Sequence[Child], num_steps: int) -> None:
    while run.num_steps_reported() < num_steps and all(child.poll() is None for child in children):
        time.sleep(0.002)


def _end_survivors(run: Run, children: Sequence[Child], has_trained: bool) -> tuple[int, int]:
    """Wait for the ranks that were not killed; returns how many ended by themselves, and how many were ended.

    Before the first step a rank may still wait for its peers to start, which is torchrun's to end.

    Raises:
        ViolationError: a survivor ended as if nothing had happened, although the run was not finished.
        TimeoutError: one that had trained with its peers hangs.
    """
    alone = by_launcher = 0
    for child in children:
        if child.poll() == -9:
            continue
        try:
            code = child.wait(_SURVIVOR_TIMEOUT_S if has_trained else _START_PATIENCE_S)
        except TimeoutError:
            if has_trained:
                raise
            by_launcher += 1
            continue
        if code == 0 and not run.has_written_all():
            raise ViolationError(f"{run.run_dir}: a rank ended with 0 although its peer was killed")
        alone += 1
    return alone, by_launcher
