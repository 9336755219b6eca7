"""Which samples are held out of training: a share chosen by a keyed hash, or those that a file names.

The hash is of what the index knows of a sample's first picture, or of its text where it has none. So the choice does
not depend on order, shards or the rest of the data, and samples about one picture are all held out, or all trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline.config import ConfigError
from pipeline.index.index import ShardIndex

_KEY = np.uint64(0x6865_6C64_5F6F_7574)
"""Of the hash; another one would hold out other samples."""


def held_out_rows(index: ShardIndex, held_out: float | str) -> npt.NDArray[np.bool_]:
    """Return which rows are held out, bool [rows of the index].

    Args:
        index: of all data of a run.
        held_out: `data.held_out`: a share above 0 and below 1, or a file with the key of a sample per line.

    Raises:
        ConfigError: the file is missing, or names keys that the data does not have.
    """
    if isinstance(held_out, str):
        return _named(index, Path(held_out))
    pictures = index.samples["image_hashes"].combine_chunks()
    has_picture = pc.list_value_length(pictures).to_numpy(zero_copy_only=False) > 0
    groups = index.samples["text_hash"].to_numpy().astype(np.uint64)
    firsts = pictures.offsets.to_numpy()[:-1][has_picture]
    groups[has_picture] = pictures.values.to_numpy()[firsts]
    return mixed(groups) < np.uint64(held_out * 2.0**64)


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return numbers spread evenly over 64 bits, each depending on one value and the key (SplitMix64's finisher)."""
    with np.errstate(over="ignore"):
        state = values ^ _KEY
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))


def _named(index: ShardIndex, path: Path) -> npt.NDArray[np.bool_]:
    if not path.is_file():
        raise ConfigError(
            f"data.held_out {path}: no such file; give a file with a key per line, or a share such as 0.01"
        )
    wanted = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    keys = index.samples["key"].to_pylist()
    if missing := sorted(wanted - set(keys)):
        raise ConfigError(
            f"data.held_out {path}: {len(missing)} of {len(wanted)} keys are not in the data, such as {missing[0]!r}; "
            "name keys of data.shards"
        )
    return np.array([key in wanted for key in keys], np.bool_)
