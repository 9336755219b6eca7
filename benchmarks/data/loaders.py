"""Samples per second of whole data paths: ours on Ray Data and without Ray, webdataset, mosaicml-streaming, Ray's own.

Everybody reads the same samples from local disk, uses two worker processes and the same transform (ours: decode, pad,
resize, tokenize, mask), and hands over batches of the same size. Only ours reads in a shuffled order, verifies each
file's CRC-32 and checks what arrives against the plan.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import webdataset
from torch.utils.data import DataLoader

from benchmarks.data.data_rate import encode_jpeg, train_tokenizer
from benchmarks.data.written_inputs import numbered_jpeg
from benchmarks.step.shapes import IMAGE_MEAN, IMAGE_STD
from model.fusion.resolution import Resolution
from pipeline.index.build import build_index
from pipeline.index.lengths import build_token_columns
from pipeline.plan.epochs import EpochOrder
from pipeline.plan.plan import Plan, check_lengths
from pipeline.plan.sources import Sources
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec
from pipeline.samples.schema import parse_sample
from pipeline.shards.writer import write_shards
from pipeline.stream.marks import WorkMarks
from pipeline.stream.rank_step import BatchSource, iterate_locally, verify
from pipeline.stream.ray_stream import build_dataset
from pipeline.stream.transport import from_row

_WORKERS = 2
_BATCH = 32
_PICTURES = 16
_SHARD_SAMPLES = 256
_PREFETCH = 2
_SIZE = 336


class Transform:
    """Members of a sample to token ids, labels and pixels; the same for every contender."""

    def __init__(self, encoder: SampleEncoder) -> None:
        self._encoder = encoder

    def __call__(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Encode one sample."""
        torch.set_num_threads(1)
        content = {name: bytes(members[name]) for name in ("jpg", "txt")}
        encoded = self._encoder.encode(parse_sample("k", content))
        return {"ids": encoded.input_ids, "labels": encoded.labels, "pixels": encoded.images[0].pixels[0]}

    def row(self, members: dict[str, Any]) -> dict[str, Any]:
        """Encode a row of Ray's reader, whose columns are named like the files."""
        return self({name: members[name] for name in ("jpg", "txt")})


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Put samples end to end and their pixels on top of each other."""
    return {
        "ids": torch.from_numpy(np.concatenate([sample["ids"] for sample in samples])),
        "labels": torch.from_numpy(np.concatenate([sample["labels"] for sample in samples])),
        "pixels": torch.from_numpy(np.stack([sample["pixels"] for sample in samples])),
    }


def measure_loaders(folder: Path, num_samples: int, num_rounds: int) -> dict[str, Any]:
    """Measure all loaders that are installed, in turn.

    Args:
        folder: empty; for shards and index.
        num_samples: samples of one measurement, a multiple of 32.
        num_rounds: measurements of each.

    Returns:
        Samples per second after the first batch (median and all rounds), and ours as a share of the best other.
    """
    shards = write_caption_shards(folder, num_samples)
    source = build_source(shards, folder, num_rounds)
    transform = Transform(source.encoder)
    contenders: dict[str, Callable[[int], Iterator[int]]] = {
        "ours, Ray Data": lambda idx: _ours_on_ray(source, idx, folder),
        "ours, without Ray": lambda idx: _ours_locally(source, idx),
        "webdataset": lambda _: _webdataset(shards, transform),
        "ray.data.read_webdataset": lambda _: _read_webdataset(shards, transform),
    }
    if importlib.util.find_spec("streaming"):
        _write_mds(folder / "mds", shards)
        contenders["mosaicml-streaming"] = lambda _: _streaming(folder / "mds", transform)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(num_rounds):
        for name, start in contenders.items():
            rates[name].append(_rate(start(number), num_samples))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(rate for name, rate in medians.items() if not name.startswith("ours"))
    return {
        "samples": f"{num_samples} of 640 x 480 JPEG with caption, batches of {_BATCH}, {_WORKERS} workers",
        "samples/s": medians,
        "rounds": rates,
        "ours on Ray Data as a share of the best other": medians["ours, Ray Data"] / best,
        "ours without Ray as a share of the best other": medians["ours, without Ray"] / best,
    }


def write_caption_shards(folder: Path, num_samples: int) -> list[str]:
    """Write captioned JPEGs, each another file, so that none is decoded for two."""
    pictures = [encode_jpeg(seed) for seed in range(_PICTURES)]
    samples: Iterator[Mapping[str, str | bytes]] = (
        {
            "__key__": f"{number:06d}",
            "jpg": numbered_jpeg(pictures[number % _PICTURES], number),
            "txt": f"caption number {number} of many",
        }
        for number in range(num_samples)
    )
    return write_shards(samples, folder / "shards" / "train-%05d.tar", max_samples=_SHARD_SAMPLES)


def build_source(shards: list[str], folder: Path, num_epochs: int) -> BatchSource:
    """Index the shards and plan as many epochs as there are rounds."""
    spec = ImageSpec(_SIZE, IMAGE_MEAN, IMAGE_STD)
    resolution = Resolution("pad", _SIZE, tile_features=576, tile_grid=24)
    encoder = SampleEncoder(train_tokenizer(), "plain", spec, resolution, 2048)
    index = build_index(shards, folder / "index")
    num_tokens = build_token_columns(index, encoder, cache_dir=folder / "index")["num_tokens"].to_numpy()
    budget = _BATCH * int(num_tokens.max())
    usable = check_lengths(num_tokens, budget)
    plan = Plan(
        num_tokens=num_tokens,
        usable=usable,
        order=EpochOrder(len(usable), 0, _BATCH, num_epochs),
        sources=Sources((), (len(num_tokens),)),
        data_fingerprint="benchmark",
        seed=0,
        max_steps=None,
        micro_batch_tokens=budget,
    )
    return BatchSource(plan, index, encoder)


def _rate(batches: Iterator[int], num_samples: int) -> float:
    """Return samples per second from the first batch to the last."""
    first = next(batches)
    started = time.perf_counter()
    counted = sum(batches)
    elapsed = time.perf_counter() - started
    if first + counted != num_samples:
        raise RuntimeError(f"{first + counted} samples came, {num_samples} were written")
    return counted / elapsed


def _ours_on_ray(source: BatchSource, epoch: int, folder: Path) -> Iterator[int]:
    steps = _steps_per_epoch(source)
    dataset = build_dataset(
        ray.put(source),
        start_step=epoch * steps,
        end_step=(epoch + 1) * steps,
        num_ranks=1,
        data_workers=_WORKERS,
        refused={},
        marks=WorkMarks(folder / "marks"),
    )
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCH)
    rows = (batch.slice(idx, 1) for batch in batches for idx in range(batch.num_rows))
    for step, row in enumerate(rows, start=epoch * steps):
        yield len(verify(from_row(row), source.plan.split(step, 1)[0]).sample_ids)


def _ours_locally(source: BatchSource, epoch: int) -> Iterator[int]:
    steps = _steps_per_epoch(source)
    stream = iterate_locally(
        source,
        start_step=epoch * steps,
        rank=0,
        num_ranks=1,
        num_workers=_WORKERS,
        prefetch_steps=_PREFETCH,
        pin=False,
    )
    for _, rank_step in zip(range(steps), stream, strict=False):
        yield len(rank_step.sample_ids)


def _steps_per_epoch(source: BatchSource) -> int:
    return len(source.plan.num_tokens) // _BATCH


def _webdataset(shards: list[str], transform: Transform) -> Iterator[int]:
    dataset = webdataset.WebDataset(shards, shardshuffle=False).map(transform).batched(_BATCH, collation_fn=collate)
    yield from _lengths(DataLoader(dataset, batch_size=None, num_workers=_WORKERS, prefetch_factor=_PREFETCH))


def _read_webdataset(shards: list[str], transform: Transform) -> Iterator[int]:
    dataset = ray.data.read_webdataset(shards, decoder=None).map(transform.row, concurrency=_WORKERS)
    for batch in dataset.iter_batches(batch_size=_BATCH, prefetch_batches=_PREFETCH):
        yield len(batch["pixels"])


def _write_mds(folder: Path, shards: list[str]) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "txt": "bytes"}) as writer:
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            writer.write({name: sample[name] for name in ("jpg", "txt")})


def _streaming(folder: Path, transform: Transform) -> Iterator[int]:
    from streaming import StreamingDataset

    class Encoded(StreamingDataset):  # type: ignore[misc]  # installed for this comparison only, so untyped here
        """Samples of the folder, encoded."""

        def __getitem__(self, at: Any) -> Any:
            return transform(super().__getitem__(at))

    dataset = Encoded(local=str(folder), shuffle=False, batch_size=_BATCH)
    yield from _lengths(
        DataLoader(dataset, _BATCH, num_workers=_WORKERS, prefetch_factor=_PREFETCH, collate_fn=collate)
    )


def _lengths(loader: Any) -> Iterator[int]:
    for batch in loader:
        yield len(batch["pixels"])
