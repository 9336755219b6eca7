"""Fusion alone, forward and backward, against the loop over placeholders that published LLaVA code runs.

Both sides get the same ids, embedding table and ready image features; rows are of one length, so neither pads.
`python -m benchmarks.step.fusion` prints its results as lines of JSON.

Shapes: B rows, T text length with placeholders, N images, P features per image, S fused length, D width.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.embedding import FusionSettings, fuse_inputs

NUM_TURNS = 3


class FusionCase(NamedTuple):
    """Sizes of a comparison."""

    num_rows: int = 16
    text_length: int = 512
    images_per_row: int = 4
    features_per_image: int = 576
    width: int = 1024
    vocab_size: int = 32000
    trains_table: bool = False
    """Whether the embedding table learns, as in finetuning; in projector pretraining only features do."""


class Inputs(NamedTuple):
    """What both sides are given."""

    ids: Tensor
    table: nn.Embedding
    features: Tensor
    """[N, P, D]."""


Fuse = Callable[[Inputs], Tensor]
"""Returns fused embeddings [B, S, D]."""


def make_inputs(case: FusionCase, seed: int = 0) -> Inputs:
    """Draw ids with placeholders at random places, an embedding table and features."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(case.vocab_size, (case.num_rows, case.text_length), generator=generator)
    for row in ids:
        row[torch.randperm(case.text_length, generator=generator)[: case.images_per_row]] = IMAGE_TOKEN_INDEX
    table = nn.Embedding(case.vocab_size, case.width)
    table.weight.requires_grad_(case.trains_table)
    num_images = case.num_rows * case.images_per_row
    features = torch.randn(num_images, case.features_per_image, case.width, generator=generator, requires_grad=True)
    return Inputs(ids, table, features)


def fuse_at_once(inputs: Inputs) -> Tensor:
    """Fuse as the model's own forward pass does, planning included."""
    slots = [inputs.features.shape[1]] * inputs.features.shape[0]
    settings = FusionSettings("right", None, train_wrapping_only=False)
    rows = inputs.features.flatten(0, 1)
    return fuse_inputs(inputs.table, inputs.ids, None, None, rows, slots, settings).inputs_embeds


def fuse_by_segment(inputs: Inputs) -> Tensor:
    """Fuse as LLaVA first did: every piece of text between two images is embedded by a call of its own."""
    image, rows = 0, []
    for ids in inputs.ids:
        pieces = []
        while len(places := torch.where(ids == IMAGE_TOKEN_INDEX)[0]):
            pieces += [inputs.table(ids[: places[0]]), inputs.features[image]]
            ids, image = ids[places[0] + 1 :], image + 1
        rows.append(torch.cat([*pieces, inputs.table(ids)]))
    return torch.stack(rows)


def fuse_by_row(inputs: Inputs) -> Tensor:
    """Fuse as later LLaVA versions do: the text of a row is embedded at once, then cut up, joined, padded, stacked.

    Each image's features are indexed out of those of all, whose backward pass fills a gradient of all of them with
    zeros for every image.
    """
    return _fuse_rows(inputs, inputs.features)


def fuse_by_row_kindly(inputs: Inputs) -> Tensor:
    """Do the same with the features taken apart once, which that code does for images given as a list."""
    return _fuse_rows(inputs, inputs.features.unbind())


def _fuse_rows(inputs: Inputs, features: Tensor | tuple[Tensor, ...]) -> Tensor:
    image, rows = 0, []
    for ids in inputs.ids:
        is_image = ids == IMAGE_TOKEN_INDEX
        ends = [-1, *torch.where(is_image)[0].tolist(), len(ids)]
        first, *others = inputs.table(ids[~is_image]).split([b - a - 1 for a, b in itertools.pairwise(ends)])
        pieces = [first]
        for segment in others:
            pieces += [features[image], segment]
            image += 1
        rows.append(torch.cat(pieces))
    length = max(len(row) for row in rows)
    return torch.stack([torch.cat([row, row.new_zeros(length - len(row), row.shape[1])]) for row in rows])


SIDES: dict[str, Fuse] = {
    "at once": fuse_at_once,
    "loop over segments": fuse_by_segment,
    "loop over rows": fuse_by_row,
    "loop over rows, features apart": fuse_by_row_kindly,
}


def compare(case: FusionCase, num_turns: int = NUM_TURNS) -> dict[str, Any]:
    """Time all sides in turn and check that values and gradients are equal.

    Returns:
        Median times of forward and backward in seconds, and how many times longer each loop takes.

    Raises:
        ValueError: a side computes something else.
    """
    inputs = make_inputs(case)
    wanted = {name: _run(fuse, inputs)[1] for name, fuse in SIDES.items()}  # also warms up
    for name, tensors in wanted.items():
        if not all(map(torch.equal, tensors, wanted["at once"])):
            raise ValueError(f"{name}: embeddings or gradients differ from those of fusing at once")
    del wanted
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(num_turns):
        for name, fuse in SIDES.items():
            times[name].append(_run(fuse, inputs)[0])
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        **case._asdict(),
        "median_s": {name: round(taken, 4) for name, taken in medians.items()},
        "times_longer": {name: round(taken / medians["at once"], 2) for name, taken in medians.items()},
    }


def _run(fuse: Fuse, inputs: Inputs) -> tuple[float, tuple[Tensor, ...]]:
    """Run forward and backward; returns seconds, and the embeddings and gradients."""
    inputs.features.grad = inputs.table.weight.grad = None
    started = time.perf_counter()
    embeds = fuse(inputs)
    embeds.backward(embeds.detach())
    elapsed = time.perf_counter() - started
    tensors = (embeds.detach(), inputs.features.grad, inputs.table.weight.grad)
    return elapsed, tuple(tensor for tensor in tensors if tensor is not None)


def main() -> None:
    """Compare with a frozen and with a learning embedding table, one line of JSON each."""
    machine = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(machine))
    for trains_table in (False, True):
        print(json.dumps(compare(FusionCase(trains_table=trains_table))), flush=True)


if __name__ == "__main__":
    main()
