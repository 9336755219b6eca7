"""Every option has its row, and trains under Ray in bfloat16, with the losses of the local launcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.backbones.registry import BACKBONES
from pipeline.config import ExperimentConfig
from pipeline.config.resume import fields_with_policy
from pipeline.samples.prompt.templates import TEMPLATES
from tests.matrix.cells import defaults_with, run_cell
from tests.matrix.covering import all_pairs, covering_rows, excluded_pairs, pairs_of
from tests.matrix.options import LEFT_OUT, OPTIONS
from tests.matrix.parts import write_parts
from tests.matrix.services import serve_parts
from tests.model.tiny import TOWERS as SQUARE_TOWERS

MIX = OPTIONS["data.sources"][1]
CELLS: dict[str, dict[str, Any]] = {
    "cache, start and end, tables of two": defaults_with(
        data__feature_cache="{cache}", model__mm_use_im_start_end=True, model__mm_use_im_patch_token=True,
        training__lr_schedule="constant", training__weight_decay=0.1, checkpoint__every_steps=1,
        checkpoint__keep_last=1, data__image_aspect_ratio="crop", model__mm_projector_type="linear",
        data__shards="{videos}", data__template="chatml", model__vision_tower="{siglip_vision_model}",
    ),
    "LoRA, tiles with newlines, S2": defaults_with(
        lora__rank=2, lora__targets=["down_proj"], lora__dropout=0.0, data__image_aspect_ratio="anyres",
        data__image_grid_pinpoints="(1x1),...,(2x2)", model__mm_patch_merge_type="spatial_unpad",
        model__mm_vision_scales=[1, 2], training__gradient_checkpointing=True, tracking__enabled=True,
        tracking__uri="{server}", model__language_model="{qwen2}", data__template="qwen", data__shards="{images}",
        evaluation__shards=("{chat}",),
    ),
    "joined towers that learn": defaults_with(
        model__vision_tower=["{clip_vision_model}", "{siglip_vision_model}"], model__mm_vision_select_layer=[-1, -2],
        training__vision_tower_lr=1e-4, training__master_dtype="bfloat16", checkpoint__folder="{checkpoints}",
        model__mm_projector_type="mlp1x_res1x_gelu", data__check_images="header", model__language_model="{qwen3}",
        evaluation__shards=("{chat}",), evaluation__metrics=("perplexity",),
        data__template="tokenizer",
    ),
    "pretraining, mix, dynamic tiles, resampler": defaults_with(
        stage="pretrain", data__sources=MIX, data__mix_changes=OPTIONS["data.mix_changes"][1],
        data__image_aspect_ratio="dynamic_1_4", model__mm_projector_type="resampler4_1",
        training__gradient_checkpointing="selective", training__mm_projector_lr=2e-3, checkpoint__keep_best=0,
        data__drop_leading_answer=True, data__prepend_missing_placeholder=True, data__shards="{captions}",
        data__template="plain", model__language_model="{mistral}", model__vision_tower="{dinov2}",
    ),
    "pooled, capped tiles, float32": defaults_with(
        data__image_aspect_ratio="anyres_max_2", model__mm_patch_merge_type="spatial_unpad",
        model__mm_projector_type="pool2_mlp2x_gelu", training__precision="float32", model__attention="sdpa",
        data__on_bad_shard="quarantine", training__profile_steps=[0, 0], cluster__prefetch_steps=1,
        model__language_model="{gemma3_text}", data__template="gemma",
    ),
    "class tokens, checkpoints in a bucket": defaults_with(
        model__mm_vision_select_feature="cls_patch", model__mm_projector_type="ln_mlp2x_gelu", data__shards="{texts}",
        checkpoint__folder="{bucket}", model__language_model="{phi3}", data__template="phi",
        model__vision_tower="{internvl_vision}",
    ),
    "shuffled": defaults_with(
        model__mm_projector_type="shuffle2_linear", model__mm_patch_merge_type="spatial",
        model__language_model="{gemma}", data__template="llama_3",
    ),
    "two workers, sharded, offloaded, whole checkpoints": defaults_with(
        training__sharding="fsdp", training__cpu_offload=True, checkpoint__layout="whole", cluster__num_workers=2,
        training__fsdp_group_size=2, training__reduce_gradients="step", training__reduce_dtype="bfloat16",
    ),
}  # fmt: skip
"""Trained on Ray and without, to the same bits."""
NIGHTLY: dict[str, str] = {
    "data.template": "decided before the first worker",
    "model.language_model": "tests/model/test_pairs.py",
    "model.vision_tower": "tests/model/test_pairs.py",
    "model.mm_projector_type": "tests/model/vision/test_projector.py",
    "training.compile": "needs a compiler and a minute",
    "training.optimizer": "needs a package",
    "lora.quantize_base": "needs a package",
    "cluster.num_workers": "a range waits for machines; test_two_ray_workers in tests/integration",
}
"""Options of which some values are left to `make matrix`, and why."""


def test_every_option_of_the_config_has_a_row_or_a_reason_to_have_none() -> None:
    options = {path for path, _ in fields_with_policy(ExperimentConfig)}
    assert OPTIONS.keys() | LEFT_OUT.keys() == options
    assert not OPTIONS.keys() & LEFT_OUT.keys()


def test_every_value_of_every_row_is_trained_here_or_says_why_not() -> None:
    for name, values in OPTIONS.items():
        trained = {repr(cell[name]) for cell in CELLS.values()}
        left_out = {repr(value) for value in values} - trained
        assert not left_out or name in NIGHTLY, (name, left_out)
    assert NIGHTLY.keys() <= OPTIONS.keys()


def test_options_name_every_kind_of_part_and_template() -> None:
    # Towers of native resolution take one aspect ratio only: tests/integration/test_native_training.py.
    named = {*OPTIONS["model.language_model"], *map(str, OPTIONS["model.vision_tower"])}
    assert {f"{{{kind}}}" for kind in (*BACKBONES, *SQUARE_TOWERS)} <= named
    assert set(OPTIONS["data.template"]) == {*TEMPLATES, "tokenizer"}


def test_covering_rows_hold_every_pair_but_those_excluded_in_few_rows() -> None:
    options = {"a": "xyz", "b": "xyz", "c": (0, 1, 2), "d": (0, 1), "e": (False, True)}
    rules = [("a", "x", "b", ("x",)), ("d", 1, "e", (True,)), ("c", 2, "e", (False,))]
    excluded = excluded_pairs(options, rules)
    implied = {(("c", 2), ("d", 1))}  # each leaves `e` another value
    assert len(excluded) == 4
    assert implied < excluded
    wanted = all_pairs(options, [("b", "a")]) - excluded
    assert len(all_pairs(options)) - len(wanted) == 9 + 3  # of the rules, one is among those of `a` and `b`
    rows = covering_rows(options, wanted, excluded, seed=7, slow={"e"})
    found = set().union(*map(pairs_of, rows))
    assert wanted <= found
    assert not found & excluded
    assert len(rows) < 12
    assert rows == covering_rows(options, wanted, excluded, seed=7, slow={"e"})


def test_value_without_a_row_is_named() -> None:
    options = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
    rules = [("a", 0, "b", (0,)), ("a", 0, "b", (1,))]
    excluded = excluded_pairs(options, rules)
    assert {pair for pair in all_pairs(options) if ("a", 0) in pair} <= excluded


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("parts")
    with serve_parts(folder) as services:
        yield write_parts(folder) | services


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", CELLS)
def test_cell_trains_on_ray_to_the_bits_of_the_local_launcher(parts: dict[str, str], tmp_path: Path, name: str) -> None:
    local = run_cell(CELLS[name], tmp_path / "local", parts, "local")
    on_ray = run_cell(CELLS[name], tmp_path / "ray", parts, "ray")
    assert (local.kind, local.told) == ("trains", "")
    assert on_ray == local
