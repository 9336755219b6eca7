"""Rotary fields of published configs, old and new, written so that both generations of transformers read the same.

`tests/extras/test_transformers_4.py` opens exported folders in transformers 4.57 itself.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from model.hub.export import export_transformers
from model.hub.rope_fields import with_rope_of_4
from model.hub.weights import build_llava
from tests.model.hub.rope_cases import ROPES, save_backbone_with_rope


@pytest.mark.parametrize("name", ROPES)
def test_fields_of_4_are_those_that_the_base_was_published_with(name: str) -> None:
    kind, published = ROPES[name]
    config = CONFIG_MAPPING[kind].from_dict({"hidden_size": 32, "num_attention_heads": 4, **copy.deepcopy(published)})
    written = with_rope_of_4(config.to_dict())
    scaling = published.get("rope_scaling")
    assert {key: written[key] for key in published if key != "rope_scaling"} == {
        key: value for key, value in published.items() if key != "rope_scaling"
    }
    if scaling is None:
        assert written["rope_scaling"] is None
    else:
        assert scaling.items() <= written["rope_scaling"].items()
    again = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(written))
    assert without_type(again.rope_parameters) == without_type(config.rope_parameters)


def without_type(parameters: dict[str, Any]) -> dict[str, Any]:
    """Leave out the older name of `rope_type`, which is carried along."""
    return {key: value for key, value in parameters.items() if key != "type"}


def test_exported_folder_has_the_fields_of_both(tower_path: str, tokenizer: Any, tmp_path: Path) -> None:
    model = build_llava(save_backbone_with_rope("llama 3.1", tmp_path / "lm"), tower_path)
    processor = {"size": 21, "crop_size": 21, "resample": 3}
    export_transformers(model, tokenizer, tmp_path / "out", image_processor=processor)
    config = json.loads((tmp_path / "out/config.json").read_text())
    text = config["text_config"]
    assert (text["rope_theta"], text["rope_parameters"]["rope_theta"]) == (500000.0, 500000.0)
    assert text["rope_scaling"]["factor"] == text["rope_parameters"]["factor"] == 8.0
    assert config["torch_dtype"] == config["dtype"] == str(torch.float32).removeprefix("torch.")
