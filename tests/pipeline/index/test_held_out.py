"""Held-out samples: the same for any order of shards, a picture at a time, never planned, part of the fingerprint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.config import ConfigError, DataConfig, TrainingConfig
from pipeline.index.build import build_index
from pipeline.index.dataset import IndexedData, index_data
from pipeline.index.held_out import held_out_rows, mixed
from pipeline.plan.plan import Plan
from pipeline.samples.sampling import FrameSampling
from pipeline.stream.prepare import plan_run
from tests.pipeline.index.test_duplicates import encoded, photo, sample
from tests.pipeline.samples.test_film import encoder as film_encoder
from tests.pipeline.shards.archives import write_tar

TRAINING = TrainingConfig(global_batch_size=3, micro_batch_tokens=4096, learning_rate=0.1)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[str, ...]:
    """Two shards; every picture is shown by two samples."""
    return tuple(
        write_tar(
            tmp_path / f"{shard}.tar",
            [
                file
                for idx in range(17)
                for file in sample(f"{shard}{idx}", f"Text {shard} {idx}.", encoded(photo(idx)))
            ],
        )
        for shard in "ab"
    )


def planned(tmp_path: Path, shards: tuple[str, ...], held_out: float | str | None) -> tuple[IndexedData, Plan]:
    config = DataConfig(shards=shards, held_out=held_out)
    data = index_data(config, tmp_path / "index", film_encoder(FrameSampling()), Console(quiet=True))
    return data, plan_run(config, TRAINING, 3, data, film_encoder(FrameSampling()))


def test_held_out_samples_are_never_planned_and_belong_to_the_fingerprint(
    tmp_path: Path, shards: tuple[str, ...]
) -> None:
    data, whole = planned(tmp_path, shards, None)
    held_out = held_out_rows(data.index, 0.3)
    assert 0 < held_out.sum() < 34
    _, plan = planned(tmp_path, shards, 0.3)
    seen = {int(row) for step in range(plan.total_steps) for row in plan.samples(step)}
    assert seen == set(np.flatnonzero(~held_out).tolist())
    _, other = planned(tmp_path, shards, 0.6)
    assert len({one.data_fingerprint for one in (whole, plan, other)}) == 3
    assert whole.data_fingerprint == f"{data.index.fingerprint}:{film_encoder(FrameSampling()).fingerprint}"


def test_choice_goes_by_picture_and_not_by_place(tmp_path: Path, shards: tuple[str, ...]) -> None:
    index = build_index(shards, tmp_path / "one")
    turned = build_index(shards[::-1], tmp_path / "two")
    chosen = held_out_rows(index, 0.4)
    assert chosen[:17].tolist() == chosen[17:].tolist()
    assert held_out_rows(turned, 0.4).tolist() == [*chosen[17:], *chosen[:17]]
    smaller = held_out_rows(index, 0.2)
    assert not (smaller & ~chosen).any()


def test_share_is_kept() -> None:
    numbers = mixed(np.arange(20_000, dtype=np.uint64))
    assert abs(float((numbers < np.uint64(0.05 * 2.0**64)).mean()) - 0.05) < 0.01


def test_a_file_names_keys(tmp_path: Path, shards: tuple[str, ...]) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("a3\n\nb16\n")
    data, plan = planned(tmp_path, shards, str(path))
    assert plan.num_samples == 32
    assert held_out_rows(data.index, str(path)).nonzero()[0].tolist() == [3, 33]
    path.write_text("a3\nc1\n")
    with pytest.raises(ConfigError, match=r"1 of 2 keys are not in the data, such as 'c1'"):
        held_out_rows(data.index, str(path))
    with pytest.raises(ConfigError, match="no such file"):
        held_out_rows(data.index, str(tmp_path / "gone.txt"))
