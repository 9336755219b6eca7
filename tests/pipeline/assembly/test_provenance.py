"""A projector file knows the parts it was trained between, by their content; others are refused unless accepted."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.files.adapter import read_adapter, write_projector
from pipeline.assembly.provenance import check_provenance, provenance_metadata
from pipeline.config import ConfigError, ModelConfig
from tests.integration.conftest import WEIGHTS

TRAINED = ModelConfig(language_model=str(WEIGHTS / "language_model"), vision_tower=str(WEIGHTS / "tower"))
TENSORS = {"mm_projector.0.weight": torch.arange(21.0).view(7, 3)}


@pytest.fixture
def projector(tmp_path: Path) -> str:
    return str(write_projector(TENSORS, tmp_path / "p.safetensors", metadata=provenance_metadata(TRAINED)))


def using(projector: str, **fields: Any) -> ModelConfig:
    return TRAINED.model_copy(update={"pretrain_mm_mlp_adapter": projector, **fields})


def changed_copy(part: str, folder: Path) -> str:
    """Copy a part with one of its weights changed."""
    shutil.copytree(part, folder)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return str(folder)


def test_same_parts_are_accepted_wherever_they_lie(projector: str, tmp_path: Path) -> None:
    check_provenance(using(projector))
    moved = shutil.copytree(TRAINED.language_model, tmp_path / "elsewhere")
    check_provenance(using(projector, language_model=str(moved)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer -2, now -1"),
        ({"mm_vision_select_layer": (-2, -1)}, r"mm_vision_select_layer -2, now \[-2, -1\]"),
        ({"mm_projector_type": "pool2_mlp2x_gelu"}, "mm_projector_type mlp2x_gelu, now pool2_mlp2x_gelu"),
        ({"mm_vision_scales": (1, 2)}, r"mm_vision_scales 1, now \[1, 2\]"),
    ],
)
def test_other_use_of_the_same_tower_is_refused_with_both_values(
    projector: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"was trained on other parts: .*{said}.*model.accept_projector=true"):
        check_provenance(using(projector, **fields))


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_part_of_the_same_shapes_with_another_weight_is_refused_unless_accepted(
    projector: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    other = changed_copy(TRAINED.model_dump()[part], tmp_path / "other")
    with pytest.raises(ConfigError, match=rf"{part} .*\(\w{{12}}\), now {other} \(\w{{12}}\)"):
        check_provenance(using(projector, **{part: other}))
    check_provenance(using(projector, **{part: other}, accept_projector=True))
    assert "used all the same (model.accept_projector)" in caplog.text


def test_file_that_does_not_say_is_accepted_with_a_line_that_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(TENSORS, tmp_path / "bare.safetensors")
    with caplog.at_level(logging.INFO):
        check_provenance(using(str(tmp_path / "bare.safetensors"), mm_vision_select_layer=-1))
    assert "does not say what it was trained on" in caplog.text


def test_no_turned_bit_of_a_projector_file_is_read_unnoticed(projector: str) -> None:
    whole = Path(projector).read_bytes()
    for at in range(0, len(whole), 11):
        harmed = bytearray(whole)
        harmed[at] ^= 1 << at % 8
        Path(projector).write_bytes(harmed)
        try:
            found = read_adapter(projector)
        except ValueError:
            continue
        assert all(torch.equal(found[f"model.{name}"], tensor) for name, tensor in TENSORS.items()), at
    Path(projector).write_bytes(whole[:-1] + b"\7")
    with pytest.raises(ValueError, match="its tensors are not those that were written"):
        read_adapter(projector)
