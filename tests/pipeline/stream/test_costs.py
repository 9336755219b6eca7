"""What a sample takes: its tiles are those that the encoder cuts, of images in every role and of films."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from model.fusion.resolution import read_resolution
from pipeline.config import CostConfig, DataConfig
from pipeline.index.dataset import index_data
from pipeline.index.read import read_sample
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec
from pipeline.samples.sampling import FrameSampling
from pipeline.stream.costs import num_tiles, sample_costs
from tests.pipeline.index.test_duplicates import encoded, photo, sample
from tests.pipeline.samples.films import film
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer
from tests.pipeline.shards.archives import write_tar


@pytest.mark.parametrize("aspect", ["pad", "anyres", "anyres_max_4", "dynamic_1_6"])
def test_tiles_and_costs_are_those_of_the_encoded_sample(tmp_path: Path, aspect: str) -> None:
    merge = "spatial_unpad" if aspect == "anyres_max_4" else "flat"
    resolution = read_resolution(aspect, None, merge, tile_size=21, tile_features=9, tile_grid=3)
    spec = ImageSpec(21, (0.5,) * 3, (0.2,) * 3)
    encoder = SampleEncoder(build_tokenizer("first"), "v1", spec, resolution, None, sampling=FrameSampling(2.0, 5))
    files = [
        *sample("a", "One.", encoded(photo(1, 40, 90))),
        *sample("b", "Two.", encoded(photo(2, 90, 40)), encoded(photo(3))),
        *sample("c", "None."),
        *sample("d", "Bad.", b"no picture"),
        ("e.mp4", film(29, 7)),
        ("e.txt", b"A film."),
    ]
    config = DataConfig(shards=(write_tar(tmp_path / "a.tar", files),))
    data = index_data(config, tmp_path / "index", encoder, Console(file=io.StringIO()))
    rows = [encoder.encode(read_sample(data.index, row)) for row in (0, 1, 2, 4)]
    tiles = [sum(len(image.pixels) for image in one.images) for one in rows]
    assert num_tiles(data, encoder).tolist() == [tiles[0], tiles[1], 0, 0, tiles[3]]
    cost = CostConfig(token_ns=7, token_pair_ns=0.5, tile_ns=1000, megapixel_ns=1e6)
    found = sample_costs(cost, data, encoder)
    assert found is not None
    lengths = [one.text.num_tokens for one in rows]
    bare = [7 * length + 0.5 * length**2 + 1000 * number for length, number in zip(lengths, tiles, strict=True)]
    pixels = [40 * 90, 90 * 40 + 61 * 83, 0, 64 * 48 * 29]
    wanted = [round(one + area) for one, area in zip(bare, pixels, strict=True)]
    assert found[[0, 1, 2, 4]].tolist() == pytest.approx(wanted, abs=1)
    assert sample_costs(CostConfig(), data, encoder) is None
