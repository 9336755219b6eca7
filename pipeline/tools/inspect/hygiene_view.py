"""What is odd in a data set, as pictures: copies, overlap, outliers, other languages, broken texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tools.inspect.histograms import Bar, Histogram, histogram
from pipeline.tools.inspect.sample_view import Inspected, SampleView, view_sample

_SHOWN = 8
_MAX_LANGUAGES = 20
WIDE = 4.0
"""Longest side of a picture divided by its shortest, from which it is shown as an outlier."""


class OddGroup(NamedTuple):
    """Samples that have something in common which may be a defect."""

    title: str
    condition: str
    """What leaves them out in `data.where`."""
    num_samples: int
    samples: tuple[SampleView, ...]
    """The first or most extreme ones; copies follow what they are copies of."""


class HygienePage(NamedTuple):
    """All of it."""

    num_samples: int
    groups: tuple[OddGroup, ...]
    histograms: tuple[Histogram, ...]


def view_hygiene(data: Inspected, table: pa.Table) -> HygienePage:
    """Return what to look at.

    Args:
        data: the samples.
        table: of `pipeline.index.hygiene.table.hygiene_table`.

    Raises:
        OSError: storage failed.
    """
    good = data.tokens["reason"].to_numpy(zero_copy_only=False) == ""
    groups = [
        OddGroup(title, condition, len(rows), tuple(view_sample(data, row) for row in shown))
        for title, condition, rows, shown in _odd(table, good)
        if len(rows)
    ]
    return HygienePage(int(good.sum()), tuple(groups), tuple(_histograms(table, good)))


def _odd(
    table: pa.Table, good: npt.NDArray[np.bool_]
) -> Sequence[tuple[str, str, npt.NDArray[np.int64], Sequence[int]]]:
    """Return (title, condition, rows, rows to show) of each kind."""

    def where(mask: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        return np.flatnonzero(np.asarray(pc.fill_null(mask, False).to_numpy(), bool) & good)

    def lowest(rows: npt.NDArray[np.int64], name: str, *, reverse: bool = False) -> list[int]:
        values = table[name].to_numpy()[rows]
        order = np.argsort(-values if reverse else values, kind="stable")
        return [int(row) for row in rows[order[:_SHOWN]]]

    copies = where(table["is_duplicate"])
    first = table["duplicate_of"].to_numpy()
    pairs = [row for copy in copies[: _SHOWN // 2].tolist() for row in (int(first[copy]), copy)]
    known = table.filter(pa.array(good))["language"]
    counts = pc.value_counts(known).to_pylist()
    usual = max((one for one in counts if one["values"]), key=lambda one: one["counts"], default={"values": ""})[
        "values"
    ]
    foreign = where(pc.and_(pc.not_equal(table["language"], usual), pc.not_equal(table["language"], "")))
    wide, small = where(pc.greater(table["aspect"], WIDE)), where(pc.less(table["short_side"], 64))
    shared = where(pc.not_equal(table["overlap"], "none"))
    broken, echo = where(table["broken_text"]), where(table["repeats_question"])
    short, long = where(pc.less(table["answer_chars"], 3)), where(pc.greater(table["answer_chars"], 2000))
    return [
        ("Copies of an earlier sample, each after it", "not is_duplicate", copies, pairs),
        ("Also in data.against", "overlap == none", shared, shared[:_SHOWN].tolist()),
        (
            f"Longer than {WIDE:g} times their width or height",
            f"aspect <= {WIDE:g}",
            wide,
            lowest(wide, "aspect", reverse=True),
        ),
        ("Pictures below 64 pixels", "short_side >= 64", small, lowest(small, "short_side")),
        ("Answers below 3 characters", "answer_chars >= 3", short, lowest(short, "answer_chars")),
        ("Answers above 2000 characters", "answer_chars <= 2000", long, lowest(long, "answer_chars", reverse=True)),
        (f"Languages other than {usual}", f"language in {usual}", foreign, foreign[:_SHOWN].tolist()),
        ("Broken characters", "not broken_text", broken, broken[:_SHOWN].tolist()),
        ("Answers that repeat their question", "not repeats_question", echo, echo[:_SHOWN].tolist()),
    ]


def _histograms(table: pa.Table, good: npt.NDArray[np.bool_]) -> list[Histogram]:
    kept = table.filter(pa.array(good))
    if not kept.num_rows:
        return []
    found = [
        histogram("Characters of the answers", kept["answer_chars"].to_numpy()),
        histogram("Other samples with the same picture", kept["image_copies"].to_numpy()),
    ]
    sides = pc.drop_null(kept["short_side"]).to_numpy()
    if sides.size:
        aspects = pc.drop_null(kept["aspect"]).to_numpy()
        found += [
            histogram("Shortest side of the pictures, pixels", sides.astype(np.int64)),
            histogram("Longest side in percent of the shortest", np.rint(100 * aspects).astype(np.int64)),
        ]
    languages = sorted(pc.value_counts(kept["language"]).to_pylist(), key=lambda one: -one["counts"])[:_MAX_LANGUAGES]
    bars = tuple(Bar(one["values"] or "not known", one["counts"]) for one in languages)
    return [*found, Histogram("Language, guessed", bars, f"{bars[0].label} most often")]
