"""Examples for the demo's language model in which a grid of words takes the position of a later image.

Each cell of a scene becomes one position that holds several words at once: colour, shape and two for the region, or
`empty` and the region. A projector can later put patch features in their place. The text around the grids is laid out
and masked by the product's own templates.

Shapes: R examples, T tokens, N grids per example, C = GRID * GRID cells, 4 words per cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.fusion.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.samples.prompt.conversation import render
from pipeline.samples.prompt.templates import get_template
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from pipeline.samples.prompt.tokenization import encode_text
from pipeline.samples.schema import conversation_from_turns
from pipeline.tools.demo.samples import Split, caption_sample, conversation_sample
from pipeline.tools.demo.scenes import COLORS, GRID, SHAPES, Scene, region_words

WORDS_PER_CELL = 4
NO_WORD = -1
EMPTY = "empty"
ExampleKind: TypeAlias = Literal["caption", "conversation"]


class WordedBatch(NamedTuple):
    """Examples with the same number of grids, padded on the right."""

    input_ids: Tensor
    """int32 [R, T]; IMAGE_TOKEN_INDEX once per cell, 0 in the padding."""
    labels: Tensor
    """int32 [R, T]; label t belongs to token t."""
    cells: Tensor
    """int32 [R, N, C, 4] word ids; NO_WORD where a cell holds fewer words."""

    def rows(self, index: Tensor) -> WordedBatch:
        """Select examples."""
        return WordedBatch(self.input_ids[index], self.labels[index], self.cells[index])

    def to(self, device: torch.device) -> WordedBatch:
        """Move to a device."""
        return WordedBatch(*(tensor.to(device) for tensor in self))


class _Example(NamedTuple):
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    cells: NDArray[np.int32]


class ExampleWriter:
    """Turns sample numbers into examples; picklable, so that it can work in many processes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: ExampleKind, split: Split) -> None:
        self._text_tokenizer = TextTokenizer(tokenizer)
        self._word_ids = find_word_ids(tokenizer)
        self._kind, self._split = kind, split

    def __call__(self, index: int) -> _Example:
        """Write one example."""
        if self._kind == "caption":
            sample = caption_sample(self._split, index)
            scenes: Sequence[Scene] = (sample.scene,)
            turns = [{"from": "human", "value": DEFAULT_IMAGE_TOKEN}, {"from": "gpt", "value": sample.caption}]
            template = "plain"
        else:
            conversation = conversation_sample(self._split, index)
            scenes, turns, template = conversation.scenes, conversation.conversations(), "v1"
        spans = render(conversation_from_turns(turns), get_template(template))
        text = encode_text(spans, self._text_tokenizer, max_length=None, features_per_image=GRID * GRID)
        is_image = text.input_ids == IMAGE_TOKEN_INDEX
        repeats = np.where(is_image, GRID * GRID, 1)
        cells = [cell_words(self._word_ids, scene) for scene in scenes]
        return _Example(
            np.repeat(text.input_ids, repeats).astype(np.int32),
            np.repeat(text.labels, repeats).astype(np.int32),
            np.array(cells, np.int32).reshape(len(cells), GRID * GRID, WORDS_PER_CELL),
        )


def cell_words(word_ids: Mapping[str, int], scene: Scene) -> NDArray[np.int32]:
    """Return the word ids of every cell: int32 [C, 4]."""
    contents = {(thing.row, thing.column): (thing.color, thing.shape) for thing in scene.things}
    words = np.full((GRID, GRID, WORDS_PER_CELL), NO_WORD, np.int32)
    for row, column in product(range(GRID), repeat=2):
        texts = (*contents.get((row, column), (EMPTY,)), *region_words(row, column))
        words[row, column, : len(texts)] = [word_ids[text] for text in texts]
    return words.reshape(GRID * GRID, WORDS_PER_CELL)


def find_word_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the ids that the words of a cell have inside a sentence.

    Raises:
        ValueError: the vocabulary lacks a single token for one of them.
    """
    places = [word for cell in product(range(GRID), repeat=2) for word in region_words(*cell)]
    words = sorted({*COLORS, *SHAPES, EMPTY, *places})
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    missing = [word for word in words if f"\u2581{word}" not in vocabulary]
    if missing:
        raise ValueError(
            f"the demo's vocabulary has no single token for {', '.join(missing)}; "
            "enlarge it in benchmarks.demo_parts.vocabulary"
        )
    return {word: vocabulary[f"\u2581{word}"] for word in words}


def write_examples(writer: ExampleWriter, indices: Sequence[int], num_processes: int) -> list[WordedBatch]:
    """Write examples in parallel and collate those with equal numbers of grids."""
    with ProcessPoolExecutor(num_processes) as pool:
        examples = list(pool.map(writer, indices, chunksize=64))
    by_grids: dict[int, list[_Example]] = {}
    for example in examples:
        by_grids.setdefault(len(example.cells), []).append(example)
    return [_collate(group) for _, group in sorted(by_grids.items())]


def _collate(examples: Sequence[_Example]) -> WordedBatch:
    length = max(len(example.input_ids) for example in examples)
    input_ids = np.zeros((len(examples), length), np.int32)
    labels = np.full((len(examples), length), IGNORE_INDEX, np.int32)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = example.input_ids
        labels[row, : len(example.labels)] = example.labels
    cells = np.stack([example.cells for example in examples])
    return WordedBatch(torch.from_numpy(input_ids), torch.from_numpy(labels), torch.from_numpy(cells))
