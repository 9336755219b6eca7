"""Which samples of an index are copies of an earlier one, share a picture with others, or also occur in another index.

Two pictures are near when their perceptual hashes differ in few bits and the mean colours of all fields in few levels.
Pictures that are near, also over others between them, are one group. Two samples are copies when their texts have one
hash and their pictures, in order, are of the same groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.index.hygiene.near import Hashes, Places, closeness_for, near_pairs
from pipeline.index.index import usable_rows
from pipeline.samples.image_hash import PRINT_BYTES

MAX_COLOUR_LEVELS: Final = 12
"""Largest difference of the mean colour of a field between near pictures, of 255."""
OVERLAPS: Final = ("none", "text", "image", "both")
"""What a sample has in common with another index, by number."""
_CHUNK = 1_000_000

Colours = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Prints:
    """The pictures of an index, one after the other."""

    sample: Places
    """int64 `[P]`, which sample shows it."""
    place: Places
    """int64 `[P]`, which of its pictures it is."""
    hash: Hashes
    """uint64 `[P]`; 0 for a picture of one colour, which is near equal ones only."""
    colours: Colours
    """uint8 `[P, 48]`."""

    @classmethod
    def of(cls, samples: pa.Table) -> Prints:
        """Return the pictures of an index table; of an index without decoded pictures, none."""
        hashes, counts = _flat(samples["image_hashes"])
        colours, _ = _flat(samples["image_colours"])
        packed = np.frombuffer(b"".join(colours.to_pylist()) if len(colours) < _CHUNK else _joined(colours), np.uint8)
        sample = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(sample)) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = hashes.to_numpy(zero_copy_only=False).astype(np.uint64)
        prints = cls(sample, place, numbers, packed.reshape(-1, PRINT_BYTES))
        return prints.where(prints.hash.astype(bool) | prints.colours.any(axis=1))

    def where(self, mask: npt.NDArray[np.bool_]) -> Prints:
        """Return those for which a mask `[P]` is true."""
        return Prints(self.sample[mask], self.place[mask], self.hash[mask], self.colours[mask])

    def then(self, other: Prints, first_sample: int) -> Prints:
        """Return the pictures of both, the samples of the other numbered from `first_sample`."""
        return Prints(
            np.concatenate([self.sample, other.sample + first_sample]),
            np.concatenate([self.place, other.place]),
            np.concatenate([self.hash, other.hash]),
            np.concatenate([self.colours, other.colours]),
        )


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, Places]:
    """Return the values of all lists of a column, and how many each list has."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    return lists.flatten(), np.diff(lists.offsets.to_numpy())


def _joined(colours: pa.Array) -> memoryview:
    """Return the bytes of many values without a Python object for each."""
    buffer = colours.buffers()[1]
    return memoryview(buffer)[colours.offset * PRINT_BYTES : (colours.offset + len(colours)) * PRINT_BYTES]


def group_pictures(prints: Prints) -> Places:
    """Return a number per picture, int64 `[P]`, the same for all that are near each other."""
    _, first, inverse = np.unique(_identity(prints), return_index=True, return_inverse=True)
    hashes, colours = prints.hash[first], prints.colours[first]
    lefts, rights = near_pairs(hashes, closeness_for(len(hashes)))
    near = _of_like_colours(colours, lefts, rights) & (hashes[lefts] != 0) & (hashes[rights] != 0)
    groups = _components(len(first), lefts[near], rights[near])
    return groups[inverse]


def duplicate_of(samples: pa.Table, prints: Prints, groups: Places) -> Places:
    """Return for each sample an earlier one with the same text and pictures, int64 `[N]`; -1 for none."""
    keys = _mixed(samples["text_hash"].to_numpy().copy(), samples["num_images"].to_numpy().astype(np.uint64))
    for place in range(int(prints.place.max(initial=-1)) + 1):
        here = prints.place == place
        shown = prints.sample[here]
        keys[shown] = _mixed(keys[shown], groups[here].astype(np.uint64))
    known = _with_all_pictures(samples, prints) & usable_rows(samples)
    rows = np.flatnonzero(known)
    _, first, inverse = np.unique(keys[rows], return_index=True, return_inverse=True)
    earlier = np.full(samples.num_rows, -1, np.int64)
    earlier[rows] = np.where(rows[first][inverse] < rows, rows[first][inverse], -1)
    return earlier


def image_copies(samples: pa.Table, prints: Prints, groups: Places) -> npt.NDArray[np.int32]:
    """Return how often the most frequent picture of each sample occurs in other samples, int32 `[N]`."""
    pairs = np.unique(np.stack([groups, prints.sample], axis=1), axis=0)
    sizes = np.bincount(pairs[:, 0]) if len(pairs) else np.zeros(1, np.int64)
    copies = np.zeros(samples.num_rows, np.int32)
    np.maximum.at(copies, prints.sample, (sizes[groups] - 1).astype(np.int32))
    return copies


def overlap_with(samples: pa.Table, prints: Prints, other: pa.Table) -> npt.NDArray[np.int8]:
    """Return what each sample has in common with another index, int8 `[N]`: a place of `OVERLAPS`."""
    theirs = Prints.of(other)
    groups = group_pictures(prints.then(theirs, samples.num_rows))
    ours = groups[: len(prints.hash)]
    shared = np.isin(ours, groups[len(prints.hash) :])
    by_image = np.zeros(samples.num_rows, bool)
    by_image[prints.sample[shared]] = True
    texts = other["text_hash"].to_numpy()[usable_rows(other)]
    by_text = np.isin(samples["text_hash"].to_numpy(), texts) & usable_rows(samples)
    return by_text.astype(np.int8) + 2 * by_image.astype(np.int8)


def _with_all_pictures(samples: pa.Table, prints: Prints) -> npt.NDArray[np.bool_]:
    """Return which samples have a print of every picture; where only headers were read, none with pictures."""
    found = np.bincount(prints.sample, minlength=samples.num_rows)
    return np.asarray(found == samples["num_images"].to_numpy())


def _identity(prints: Prints) -> Hashes:
    """Return 64 bits that are equal for equal prints only."""
    words = np.ascontiguousarray(prints.colours).view(np.uint64)
    mixed = prints.hash
    for column in range(words.shape[1] if len(words) else 0):
        mixed = _mixed(mixed, words[:, column])
    return mixed


def _mixed(one: Hashes, other: Hashes) -> Hashes:
    """Combine two numbers to one (finaliser of SplitMix64, Steele, Lea and Flood, OOPSLA 2014)."""
    values = (one ^ (other + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _of_like_colours(colours: Colours, lefts: Places, rights: Places) -> npt.NDArray[np.bool_]:
    """Return for which pairs no mean colour differs by more than `MAX_COLOUR_LEVELS`, bool `[K]`."""
    alike = np.zeros(len(lefts), bool)
    for start in range(0, len(lefts), _CHUNK):
        part = slice(start, start + _CHUNK)
        gap = np.abs(colours[lefts[part]].astype(np.int16) - colours[rights[part]].astype(np.int16))
        alike[part] = gap.max(axis=1) <= MAX_COLOUR_LEVELS
    return alike


def _components(number: int, lefts: Places, rights: Places) -> Places:
    """Return the smallest member of each node's component, int64 `[number]`."""
    labels = np.arange(number)
    while True:
        before = labels.copy()
        np.minimum.at(labels, lefts, labels[rights])
        np.minimum.at(labels, rights, labels[lefts])
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels
