"""Every option has its row, and trains under Ray in bfloat16, with the losses of the local launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ExperimentConfig
from pipeline.config.resume import fields_with_policy
from tests.matrix.cells import defaults_with, run_cell
from tests.matrix.covering import all_pairs, covering_rows, excluded_pairs, pairs_of
from tests.matrix.options import EXCLUDED, LEFT_OUT, OPTIONS
from tests.matrix.parts import write_parts

MIX = OPTIONS["data.sources"][1]
CELLS: dict[str, dict[str, Any]] = {
    "cache, start and end, tables of two": defaults_with(
        data__feature_cache="{cache}", model__mm_use_im_start_end=True, model__mm_use_im_patch_token=True,
        training__lr_schedule="constant", training__weight_decay=0.1, checkpoint__every_steps=1,
        checkpoint__keep_last=1, data__image_aspect_ratio="crop", model__mm_projector_type="linear",
    ),
    "LoRA, tiles with newlines, S2": defaults_with(
        lora__rank=2, lora__targets=["q_proj", "down_proj"], lora__dropout=0.0, data__image_aspect_ratio="anyres",
        data__image_grid_pinpoints="(1x1),...,(2x2)", model__mm_patch_merge_type="spatial_unpad",
        model__mm_vision_scales=[1, 2], training__gradient_checkpointing=True, tracking__enabled=True,
    ),
    "joined towers that learn": defaults_with(
        model__vision_tower=["{tower}", "{siglip}"], model__mm_vision_select_layer=[-1, -2],
        training__vision_tower_lr=1e-4, training__master_dtype="bfloat16", checkpoint__folder="{checkpoints}",
        model__mm_projector_type="mlp1x_res1x_gelu", data__check_images="header",
    ),
    "pretraining, mix, dynamic tiles, resampler": defaults_with(
        stage="pretrain", data__sources=MIX, data__mix_changes=OPTIONS["data.mix_changes"][1],
        data__image_aspect_ratio="dynamic_1_4", model__mm_projector_type="resampler4_1",
        training__gradient_checkpointing="selective", training__mm_projector_lr=2e-3, checkpoint__keep_best=0,
        data__drop_leading_answer=True, data__prepend_missing_placeholder=True,
    ),
    "pooled, capped tiles, float32": defaults_with(
        data__image_aspect_ratio="anyres_max_2", model__mm_patch_merge_type="spatial_unpad",
        model__mm_projector_type="pool2_mlp2x_gelu", training__precision="float32", model__attention="sdpa",
        data__on_bad_shard="quarantine", training__profile_steps=[0, 0], cluster__prefetch_steps=1,
    ),
    "class tokens, spatial": defaults_with(
        model__mm_vision_select_feature="cls_patch", model__mm_projector_type="ln_mlp2x_gelu",
    ),
    "shuffled": defaults_with(model__mm_projector_type="shuffle2_linear", model__mm_patch_merge_type="spatial"),
}  # fmt: skip
"""Trained on Ray and without, to the same bits."""
ON_TWO_WORKERS: dict[str, dict[str, Any]] = {
    "sharded, offloaded, whole checkpoints": defaults_with(
        training__sharding="fsdp",
        training__cpu_offload=True,
        checkpoint__layout="whole",
        cluster__num_workers=2,
        training__fsdp_group_size=2,
        training__reduce_gradients="step",
        training__reduce_dtype="bfloat16",
    ),
}
"""Trained on Ray, to the losses of one worker but for rounding."""
ALONE: dict[tuple[str, str], str] = {
    ("training.compile", "True"): "needs a compiler and a minute; `make matrix`",
    (
        "cluster.num_workers",
        "[1, 2]",
    ): "waits for machines; `make matrix`, and test_two_ray_workers in tests/integration",
}


def test_every_option_of_the_config_has_a_row_or_a_reason_to_have_none() -> None:
    options = {path for path, _ in fields_with_policy(ExperimentConfig)}
    assert OPTIONS.keys() | LEFT_OUT.keys() == options
    assert not OPTIONS.keys() & LEFT_OUT.keys()


def test_every_value_of_every_row_is_trained_here_or_says_why_not() -> None:
    cells = [*CELLS.values(), *ON_TWO_WORKERS.values()]
    trained = {(name, repr(cell[name])) for cell in cells for name in OPTIONS}
    wanted = {(name, repr(value)) for name, values in OPTIONS.items() for value in values}
    assert wanted - trained == set(ALONE)


def test_covering_rows_hold_every_pair_but_those_excluded_in_few_rows() -> None:
    excluded = excluded_pairs(OPTIONS, EXCLUDED)
    rows = covering_rows(OPTIONS, excluded, seed=7)
    assert set().union(*map(pairs_of, rows)) == all_pairs(OPTIONS) - excluded
    assert len(rows) < 90
    assert rows == covering_rows(OPTIONS, excluded, seed=7)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", CELLS)
def test_cell_trains_on_ray_to_the_bits_of_the_local_launcher(parts: dict[str, str], tmp_path: Path, name: str) -> None:
    local = run_cell(CELLS[name], tmp_path / "local", parts, "local")
    on_ray = run_cell(CELLS[name], tmp_path / "ray", parts, "ray")
    assert (local.kind, local.told) == ("trains", "")
    assert on_ray == local


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", ON_TWO_WORKERS)
def test_cell_of_two_workers_trains_on_ray(parts: dict[str, str], tmp_path: Path, name: str) -> None:
    on_ray = run_cell(ON_TWO_WORKERS[name], tmp_path / "ray", parts, "ray")
    assert (on_ray.kind, on_ray.told) == ("trains", "")
    one = run_cell({**ON_TWO_WORKERS[name], "cluster.num_workers": 1}, tmp_path / "local", parts, "local")
    assert [loss for _, loss in on_ray.losses] == pytest.approx([loss for _, loss in one.losses], rel=1e-2)
