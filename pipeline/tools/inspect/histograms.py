"""Distributions over a data set, binned for charts: lengths, image sizes, images per sample."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.index.index import ShardIndex

_MAX_BARS = 40
_SHOWN_SHARE = 0.995


class Bar(NamedTuple):
    """One bin."""

    label: str
    """The values in it: `12` or `12 to 15`, or `400 and more`."""
    num_values: int


class Histogram(NamedTuple):
    """A distribution and its summary."""

    title: str
    bars: tuple[Bar, ...]
    summary: str
    """Smallest, median, 95th percentile and largest value."""


def data_histograms(index: ShardIndex, tokens: pa.Table) -> list[Histogram]:
    """Describe the usable samples of a data set; without any, nothing."""
    lengths = tokens["num_tokens"].to_numpy()
    usable = np.flatnonzero(lengths > 0)
    if not usable.size:
        return []
    samples = index.samples.take(pa.array(usable)) if usable.size < index.num_samples else index.samples
    widths, heights = (_flatten(samples[name]) for name in ("image_widths", "image_heights"))
    found = [
        histogram("Fused length, tokens", lengths[usable]),
        histogram("Supervised tokens", tokens["num_supervised_tokens"].to_numpy()[usable]),
        histogram("Images per sample", samples["num_images"].to_numpy()),
    ]
    if widths.size:
        found += [
            histogram("Longer side of an image, pixels", np.maximum(widths, heights)),
            histogram("Width of an image in percent of its height", np.rint(100 * widths / heights).astype(np.int64)),
        ]
    return found


def histogram(title: str, values: npt.NDArray[np.integer]) -> Histogram:
    """Bin whole numbers: a bar per value if they are few, else equal ranges and one bar for the longest tail."""
    low, high = int(values.min()), int(values.max())
    shown = high if high - low < _MAX_BARS else int(np.quantile(values, _SHOWN_SHARE, method="higher"))
    width = max(1, -(-(shown - low + 1) // _MAX_BARS))
    num_bins = (shown - low) // width + 1
    counts = np.bincount(np.minimum((values.astype(np.int64) - low) // width, num_bins), minlength=num_bins + 1)
    starts = [low + number * width for number in range(num_bins)]
    bars = [
        Bar(str(start) if width == 1 else f"{start} to {start + width - 1}", int(count))
        for start, count in zip(starts, counts[:num_bins], strict=True)
    ]
    if counts[num_bins]:
        bars.append(Bar(f"{low + num_bins * width} and more", int(counts[num_bins])))
    median, most = np.quantile(values, [0.5, 0.95], method="nearest").tolist()
    return Histogram(title, tuple(bars), f"smallest {low}, median {median}, 95 % up to {most}, largest {high}")


def count_reasons(tokens: pa.Table) -> dict[str, int]:
    """Count rejected samples by reason, most frequent first."""
    counted = pc.value_counts(tokens["reason"]).to_pylist()
    rejected = [(entry["values"], entry["counts"]) for entry in counted if entry["values"]]
    return dict(sorted(rejected, key=lambda pair: (-pair[1], pair[0])))


def _flatten(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(pc.list_flatten(column).to_numpy(), dtype=np.int64)
