"""Reading the witness: which steps the final weights descend from, and the proof that no sample is missing or twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from tests.chaos.world import World, number_of


class ViolationError(AssertionError):
    """What a run promises did not hold; the message says what was expected and found."""


class Record(NamedTuple):
    """What one rank computed in one optimizer step."""

    group: str
    rank: int
    world_size: int
    step: int
    micro_batches: tuple[tuple[int, ...], ...]
    """Sample numbers, read from the tokens that went through the model."""
    pixels: int
    """CRC-32."""
    numbers: tuple[str, ...]
    """Loss and gradient norm, exact."""
    time_s: float

    @property
    def content(self) -> tuple[object, ...]:
        """Everything that must be equal whenever this step is computed on as many ranks."""
        return self.micro_batches, self.pixels, self.numbers


Step = tuple[Record, ...]
"""One optimizer step: the records of its ranks in order."""


def read_witness(path: Path, world: World) -> list[Record]:
    """Read all records in the order written."""
    tokenizer = _tokenizer(world.folder / "language_model" / "tokenizer.json")
    records = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        micro_batches = tuple(
            tuple(number_of(tokenizer.decode(tokens)) for tokens in batch) for batch in entry.pop("samples")
        )
        records.append(Record(**{**entry, "numbers": tuple(entry["numbers"]), "micro_batches": micro_batches}))
    return records


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def surviving_history(records: Sequence[Record]) -> list[Step]:
    """Return the steps that the newest weights descend from.

    Every worker group continues from a checkpoint: its first step takes the place of that step and all later ones.

    Raises:
        ViolationError: a group begins behind the steps done, or its steps are not consecutive.
    """
    history: list[Step] = []
    for group in dict.fromkeys(record.group for record in records):
        own = [record for record in records if record.group == group]
        ranks = [[record for record in own if record.rank == rank] for rank in range(own[0].world_size)]
        first = own[0].step
        for rank, steps in enumerate(ranks):
            found = [record.step for record in steps]
            if found != list(range(first, first + len(found))):
                raise ViolationError(f"group {group}, rank {rank}: trained steps {found}, expected consecutive ones")
        if first > len(history):
            raise ViolationError(
                f"group {group} began at step {first}, but only {len(history)} steps were done: skipped"
            )
        history[first:] = list(zip(*ranks, strict=False))  # a step that some rank did not finish changed no checkpoint
    return history


def check_exactly_once(history: Iterable[Step], num_samples: int, num_epochs: int) -> int:
    """Verify that every sample was trained exactly once in every epoch; returns the number of samples trained.

    Raises:
        ViolationError: names the samples lost, and those trained twice.
    """
    trained = [number for step in history for number in step_samples(step)]
    if len(trained) != num_samples * num_epochs:
        raise ViolationError(f"{len(trained)} samples trained, expected {num_samples} in each of {num_epochs} epochs")
    for epoch in range(num_epochs):
        found = trained[epoch * num_samples : (epoch + 1) * num_samples]
        lost = sorted(set(range(num_samples)) - set(found))
        twice = sorted({number for number in found if found.count(number) > 1})
        if lost or twice:
            raise ViolationError(f"epoch {epoch}: samples {lost} were not trained, samples {twice} more than once")
    return len(trained)


def step_samples(step: Step) -> list[int]:
    """Return the numbers of the samples of a step, rank after rank."""
    return [number for record in step for batch in record.micro_batches for number in batch]


def check_same_records(calm: Sequence[Record], disturbed: Iterable[Record]) -> int:
    """Verify that every computation of a step, repeated ones too, equals the undisturbed one to the last bit.

    Returns:
        The number of computations compared.

    Raises:
        ViolationError: names the first step that differs, with both records.
    """
    expected = {(record.step, record.rank): record for record in calm}
    num_compared = 0
    for record in disturbed:
        reference = expected.get((record.step, record.rank))
        if reference is None or reference.content != record.content:
            raise ViolationError(f"step {record.step} differs from the undisturbed run:\n{reference}\n{record}")
        num_compared += 1
    return num_compared
