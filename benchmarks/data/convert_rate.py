"""Rows per second of `convert` on one core, and of `datasets` with `webdataset` writing the same samples.

    pip install datasets
    python -m benchmarks.data.convert_rate 'SHARDS/*.tar' FOLDER

The input is a Parquet file that `datasets` writes from captioned shards. The other side reads it row by row, with its
pictures as bytes, and hands them to `TarWriter`; it checks nothing. `convert` checks every picture as the index will,
by decoding it or by its header. Both sides run in turn in one process, three times; the median counts.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from pipeline.index.build import build_index
from pipeline.index.read import read_sample
from pipeline.index.scan import Checks
from pipeline.shards.listing import expand_shards
from pipeline.tools.convert.formats import open_source
from pipeline.tools.convert.run import convert
from pipeline.tools.convert.shard_plan import ShardLimits

_ROUNDS = 3


def write_table(shards: list[str], folder: Path) -> tuple[Path, int]:
    """Write the pictures and captions of shards as `datasets` publishes them; returns the file and its rows."""
    from datasets import Dataset, Features, Image, Value

    rows: list[dict[str, Any]] = []
    index = build_index(shards, folder / "index")
    for row in range(index.num_samples):
        sample = read_sample(index, row)
        picture = {"bytes": sample.images[0], "path": f"{row}.png"}
        rows.append({"image": picture, "text": sample.conversation.turns[-1].text})
    path = folder / "train-00000-of-00001.parquet"
    Dataset.from_list(rows, features=Features({"image": Image(), "text": Value("string")})).to_parquet(str(path))
    return path, len(rows)


def by_datasets(path: Path, out: Path) -> None:
    """Write the shard with the two libraries."""
    from datasets import Image, load_dataset

    rows = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(out / "cache"))
    rows = rows.cast_column("image", Image(decode=False))
    with TarWriter(str(out / "train-000000.tar")) as writer:
        for number, row in enumerate(rows):
            writer.write({"__key__": f"{number:09d}", "png": row["image"]["bytes"], "txt": row["text"].encode()})


def by_convert(path: Path, out: Path, checks: Checks) -> None:
    """Write the shard with `convert`, in this process."""
    convert(open_source([str(path)]), out, limits=ShardLimits(1_000_000, 10**12), checks=checks)


def contents(path: Path) -> list[bytes]:
    """Return what the members of a shard hold, in order, whatever their keys are."""
    with tarfile.open(path) as archive:
        found = [archive.extractfile(member) for member in archive]
        return [file.read() for file in found if file is not None]


def main(pattern: str, folder: Path) -> None:
    """Print rows per second of each side."""
    folder.mkdir(parents=True, exist_ok=True)
    path, num_rows = write_table(expand_shards([pattern]), folder)
    sides: dict[str, Callable[[Path], None]] = {
        "datasets + webdataset": lambda out: by_datasets(path, out),
        "convert, every picture decoded": lambda out: by_convert(path, out, Checks()),
        "convert, headers checked": lambda out: by_convert(path, out, Checks(images="header")),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_ROUNDS):
        for name, write in sides.items():
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            started = time.perf_counter()
            write(out)
            times[name].append(time.perf_counter() - started)
            shutil.copy(out / "train-000000.tar", folder / f"{len(name)}.tar")
    same = len({tuple(sorted(contents(folder / f"{len(name)}.tar"))) for name in sides}) == 1
    rates = {name: round(num_rows / statistics.median(one)) for name, one in times.items()}
    print(json.dumps({"rows": num_rows, "same contents": same, "rows per second": rates}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
