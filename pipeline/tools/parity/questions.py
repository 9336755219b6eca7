"""What an exported folder is asked: a few samples of the run's own data, and made-up ones of the kinds that lack."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage

from pipeline.config import DataConfig, load_config
from pipeline.errors import DataError
from pipeline.index import files as index_files
from pipeline.index.build import load_index
from pipeline.index.dataset import index_folder
from pipeline.index.read import read_sample
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from pipeline.samples.schema import Sample

_MAX_READ = 300
"""Samples of each source that are looked at for every kind."""
_WANTED = {"no image": 1, "one image": 2, "several images": 1}


class ParityQuestion(NamedTuple):
    """A conversation that ends with the user's turn, and its images."""

    name: str
    """Where it is from, and its kind."""
    conversation: Conversation
    images: tuple[bytes, ...]
    """Encoded files in reading order."""


def choose_questions(source: str | Path) -> list[ParityQuestion]:
    """Return the questions for a run's folder, or for a model folder, which has no data of its own."""
    config = Path(source) / "config.yaml"
    chosen: dict[str, list[ParityQuestion]] = {kind: [] for kind in _WANTED}
    for sample in _samples(Path(source), load_config(config).data) if config.is_file() else ():
        kind = _kind_of(len(sample.images))
        question = _question_of(sample, kind)
        if question is not None and len(chosen[kind]) < _WANTED[kind]:
            chosen[kind].append(question)
        if all(len(chosen[kind]) >= number for kind, number in _WANTED.items()):
            break
    made_up = {"no image": _made_up(), "one image": _made_up((61, 97)), "several images": _made_up((97, 31), (29, 83))}
    return [question for kind in _WANTED for question in chosen[kind] or [made_up[kind]]] + [_made_up((160, 40))]


def _samples(run_dir: Path, data: DataConfig) -> Iterator[Sample]:
    """Read the first samples of each source of a run, as far as its index is there."""
    for name in data.shards_by_source:
        folder = index_folder(data, str(run_dir), name)
        if not index_files.exists(folder):
            continue
        index = load_index(folder)
        for row in index.usable.nonzero()[0][:_MAX_READ]:
            try:
                yield read_sample(index, int(row))
            except (DataError, OSError):  # the data may be gone since the run; made-up questions take its place
                break


def _question_of(sample: Sample, kind: str) -> ParityQuestion | None:
    """Return a sample up to its first answer; None when that shows only some of its images."""
    turns = sample.conversation.turns
    first = next((idx for idx, turn in enumerate(turns) if turn.role == "assistant"), 0)
    asked = Conversation(turns[:first])
    if not first or asked.num_images != len(sample.images) or sample.is_video or sample.is_film:
        return None
    return ParityQuestion(f"{sample.key}, {kind}", asked, tuple(sample.images))


def _kind_of(num_images: int) -> str:
    return "no image" if num_images == 0 else "one image" if num_images == 1 else "several images"


def _made_up(*sizes: tuple[int, int]) -> ParityQuestion:
    """Make a question about pictures of some sizes (height, width)."""
    pictures = tuple(_picture(height, width) for height, width in sizes)
    parts = (*(Image() for _ in sizes), "\n" if sizes else "", "What is shown?" if sizes else "What colour is grass?")
    turn = Turn("user", tuple(part for part in parts if part != ""))
    shapes = ", ".join(f"{width} x {height}" for height, width in sizes)
    name = f"made up, {_kind_of(len(sizes))}{f' of {shapes}' if sizes else ''}"
    return ParityQuestion(name, Conversation((turn,)), pictures)


def _picture(height: int, width: int) -> bytes:
    """Return a picture that varies over some pixels, as photographs do, as a PNG."""
    coarse = np.random.default_rng(height * width).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(coarse).resize((width, height), PillowImage.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
