"""Global batches as the model gets them: the same ordered lists on any number of ranks, and after any change of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from tokenizers import Tokenizer

from model.fusion.constants import IMAGE_TOKEN_INDEX
from pipeline.launch.prepare import prepare_source
from pipeline.stream.rank_step import BatchSource, RankStep, iterate_locally
from tests.chaos.ledger import ViolationError
from tests.chaos.world import World, number_of

NUM_RANKS = (1, 2, 3, 4, 6, 8)
_WHOLE_STEP_TOKENS = 100_000

GlobalBatch = list[int]
"""Sample numbers of an optimizer step, in order."""


class ResumeCheck(NamedTuple):
    """One run that changed its number of ranks."""

    before: int
    after: int
    at_step: int


class Batches:
    """Reads rank-steps through the loader, as training does, and puts the ranks' shares together again."""

    def __init__(self, world: World, folder: Path) -> None:
        self.source = prepare_source(world.config(folder / "batches"), console=Console(quiet=True))
        self._tokenizer = Tokenizer.from_file(str(world.folder / "language_model" / "tokenizer.json"))
        # One micro-batch on one rank holds a step in its own order: what every other cut must add up to.
        whole = replace(self.source, plan=replace(self.source.plan, micro_batch_tokens=_WHOLE_STEP_TOKENS))
        self.reference: list[GlobalBatch] = [self._numbers(step)[0] for step in _rank_steps(whole, 0, 1, 0)]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return len(self.reference)

    def read(self, num_ranks: int, first_step: int, end_step: int) -> list[GlobalBatch]:
        """Return the global batches of steps as `num_ranks` ranks get them.

        Raises:
            ViolationError: a micro-batch holds samples of another step, or in another order than the step has.
        """
        ranks = [_rank_steps(self.source, first_step, num_ranks, rank) for rank in range(num_ranks)]
        batches = []
        for step, shares in enumerate(zip(*ranks, strict=True), start=first_step):
            if step == end_step:
                break
            batches.append(self._join(step, [batch for share in shares for batch in self._numbers(share)]))
        return batches

    def check(self, batches: Sequence[GlobalBatch], first_step: int, what: str) -> None:
        """Compare ordered lists with the reference.

        Raises:
            ViolationError: names the first step that differs.
        """
        for step, found in enumerate(batches, start=first_step):
            if found != self.reference[step]:
                raise ViolationError(f"{what}, step {step}: samples {found}, expected {self.reference[step]}")

    def check_resume(self, rng: random.Random) -> ResumeCheck:
        """Stop a run on some number of ranks at some step, continue it on another, and compare all of it."""
        before, after = rng.sample(NUM_RANKS, 2)
        at_step = rng.randrange(1, self.total_steps)
        read = self.read(before, 0, at_step) + self.read(after, at_step, self.total_steps)
        if len(read) != self.total_steps:
            raise ViolationError(
                f"{before} -> {after} ranks at step {at_step}: {len(read)} steps, not {self.total_steps}"
            )
        self.check(read, 0, f"{before} -> {after} ranks at step {at_step}")
        return ResumeCheck(before, after, at_step)

    def _join(self, step: int, micro_batches: Sequence[Sequence[int]]) -> GlobalBatch:
        """Put the micro-batches of all ranks into the step's order; each must already be in that order itself."""
        order = {number: idx for idx, number in enumerate(self.reference[step])}
        for batch in micro_batches:
            if [number for number in self.reference[step] if number in batch] != list(batch):
                raise ViolationError(f"step {step}: micro-batch {list(batch)} is not part of {self.reference[step]}")
        return sorted((number for batch in micro_batches for number in batch), key=order.__getitem__)

    def _numbers(self, rank_step: RankStep) -> list[list[int]]:
        """Return the sample numbers of each micro-batch, read from the tokens."""
        texts = rank_step.input_ids.split(rank_step.text_lengths.tolist())
        numbers = [
            number_of(self._tokenizer.decode([idx for idx in text.tolist() if idx != IMAGE_TOKEN_INDEX]))
            for text in texts
        ]
        remaining = iter(numbers)
        return [[next(remaining) for _ in range(size)] for size in rank_step.batch_sizes.tolist()]


def _rank_steps(source: BatchSource, first_step: int, num_ranks: int, rank: int) -> list[RankStep]:
    return list(
        iterate_locally(
            source, start_step=first_step, rank=rank, num_ranks=num_ranks, num_workers=0, prefetch_steps=1, pin=False
        )
    )
