"""Index, plan, encoder, packing and model count the same features for images of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from model.fusion.feature_layout import layout_of
from model.fusion.resolution import ImageView, read_resolution
from model.hub.weights import LlavaModel, build_llava
from pipeline.index.build import build_index
from pipeline.index.index import ShardIndex
from pipeline.index.lengths import build_token_columns
from pipeline.index.read import read_sample
from pipeline.plan.plan import Plan, build_plan
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec
from pipeline.stream.rank_step import BatchSource, RankStep, build_rank_step
from pipeline.stream.transport import from_row, to_row
from pipeline.training.batches import prepare
from tests.model.tiny import save_tiny_tower, tiny_backbone_config
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer
from tests.pipeline.shards.archives import png, write_tar

CPU = torch.device("cpu")
TILE, GRID = 21, 3
MODES = [
    ("pad", "flat"), ("crop", "spatial_unpad"), ("anyres", "flat"), ("anyres", "spatial"), ("anyres", "spatial_unpad"),
    ("anyres_max_1", "spatial_unpad"), ("anyres_max_2", "spatial"), ("dynamic_1_5", "flat"),
    ("dynamic_2_6", "spatial_unpad"),
]  # fmt: skip
Sizes = list[tuple[int, int]]


def make_encoder(aspect_ratio: str, merge: str) -> SampleEncoder:
    resolution = read_resolution(
        aspect_ratio, None, merge, tile_size=TILE, tile_features=GRID**2, tile_grid=GRID
    )  # fmt: skip
    return SampleEncoder(build_tokenizer("first"), "v1", ImageSpec(TILE, (0.5,) * 3, (0.2,) * 3), resolution, None)


def sample_files(key: str, sizes: Sizes) -> list[tuple[str, bytes]]:
    """One instruction sample with an image of a colour of its own per size (height, width)."""
    turns = [{"from": "human", "value": "<image>" * len(sizes) + "\nWhat?"}, {"from": "gpt", "value": "It is red."}]
    images = [(f"{key}.{k}.png", png(width, height, 11 + 31 * k)) for k, (height, width) in enumerate(sizes)]
    tree = {"conversations": turns, "image": [f"{k}.png" for k in range(len(sizes))]}
    return [(f"{key}.json", json.dumps(tree).encode()), *images]


def make_source(samples: list[Sizes], encoder: SampleEncoder, folder: Path) -> tuple[BatchSource, Plan]:
    folder.mkdir()
    files = [file for k, sizes in enumerate(samples) for file in sample_files(f"s{k}", sizes)]
    index: ShardIndex = build_index([write_tar(folder / "s.tar", files)], folder / "index")
    tokens = build_token_columns(index, encoder, cache_dir=folder)
    assert set(tokens["reason"].to_pylist()) == {""}
    lengths = tokens["num_tokens"].to_numpy()
    plan = build_plan(
        lengths, data_fingerprint="x", seed=5, global_batch_size=len(samples), num_epochs=1, max_steps=None,
        micro_batch_tokens=int(lengths.max()) + 7,
    )  # fmt: skip
    return BatchSource(plan, index, encoder), plan


def rank_step_of(source: BatchSource, plan: Plan) -> RankStep:
    return from_row(to_row(build_rank_step(source, plan.split(0, 1)[0])))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlavaModel:
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(3)
    config = tiny_backbone_config("llama")
    config.vocab_size = len(build_tokenizer("first"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "lm")
    llava = build_llava(
        str(folder / "lm"), save_tiny_tower("clip_vision_model", folder / "tower"),
        patch_merge="spatial_unpad", attention="sdpa",
    )  # fmt: skip
    llava.train(False)
    return llava


sides = st.one_of(st.integers(2, 30), st.integers(2, 180))
size = st.tuples(sides, sides).filter(lambda pair: max(pair) <= 100 * min(pair))


@pytest.mark.parametrize(("aspect_ratio", "merge"), MODES)
@given(st.lists(st.lists(size, max_size=3), min_size=1, max_size=4))
@settings(max_examples=7, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_stage_counts_the_same_features(
    aspect_ratio: str, merge: str, tmp_path_factory: pytest.TempPathFactory, samples: list[Sizes]
) -> None:
    encoder = make_encoder(aspect_ratio, merge)
    source, plan = make_source(samples, encoder, tmp_path_factory.mktemp("data") / "d")
    rank_step = rank_step_of(source, plan)
    prepared = prepare(rank_step, encoder.resolution, CPU)
    planned = [plan.num_tokens[idx] for batch in plan.split(0, 1)[0].micro_batches for idx in batch]
    assert [length for batch in prepared.micro_batches for length in batch.packed.seqlens] == planned
    for row, sizes in enumerate(samples):
        encoded = encoder.encode(read_sample(source.index, row))
        assert encoded.text.num_tokens == plan.num_tokens[row]
        roles = encoder.resolution.roles(len(sizes), is_video=False)
        views = [ImageView(*pair, role) for pair, role in zip(sizes, roles, strict=True)]
        assert [image.view for image in encoded.images] == views
        layouts = [layout_of(encoder.resolution, view) for view in views]
        assert [len(image.pixels) for image in encoded.images] == [layout.num_tiles for layout in layouts]
        text = len(encoded.input_ids) - len(views)
        assert plan.num_tokens[row] == text + sum(layout.num_features for layout in layouts)


@pytest.mark.parametrize("aspect_ratio", ["anyres", "anyres_max_1", "dynamic_1_5"])
def test_packed_step_equals_padded_forward_of_each_sample(aspect_ratio: str, model: LlavaModel, tmp_path: Path) -> None:
    samples: list[Sizes] = [[(50, 70)], [(21, 21), (90, 13)], [], [(13, 90)], [(50, 70)]]
    encoder = make_encoder(aspect_ratio, "spatial_unpad")
    model.config.image_aspect_ratio = aspect_ratio
    source, plan = make_source(samples, encoder, tmp_path / "d")
    rank_step = rank_step_of(source, plan)
    assert (len(rank_step.views), len(rank_step.image_ids)) == (4, 5)  # the first and the last are one file
    step = prepare(rank_step, encoder.resolution, CPU)
    tower: Any = model.get_vision_tower()
    pixels = step.pixels.movedim(-1, 1).float() / 255
    parameters = [model.get_model().image_newline, model.get_model().mm_projector[0].weight]

    features = tower(pixels).detach()
    model.zero_grad()
    packed = sum(model.packed_loss(batch.packed, features.index_select(0, batch.tiles)) for batch in step.micro_batches)
    packed.backward()  # type: ignore[union-attr]
    packed_grads = [parameter.grad.clone() for parameter in parameters]

    model.zero_grad()
    total: Any = 0.0
    for row in range(len(samples)):
        encoded = encoder.encode(read_sample(source.index, row))
        total = (
            total
            + model(
                torch.from_numpy(encoded.input_ids)[None],
                labels=torch.from_numpy(encoded.labels)[None],
                images=[torch.from_numpy(image.pixels).movedim(-1, 1).float() / 255 for image in encoded.images]
                or None,
                image_sizes=[image.view for image in encoded.images] or None,
                num_items_in_batch=1,
            ).loss
        )
    total.backward()
    assert torch.allclose(packed.detach(), total.detach(), rtol=1e-5)  # type: ignore[union-attr]
    for found, parameter in zip(packed_grads, parameters, strict=True):
        # rounding of the sums, which depends on the number of threads, is relative to their largest terms
        assert torch.allclose(found, parameter.grad, rtol=1e-4, atol=1e-6 * float(parameter.grad.abs().max()))
