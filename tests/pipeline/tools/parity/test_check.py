"""An exported folder asked by transformers in a process of its own: equal, or refused with what differs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from jobs.cli import app
from model.hub.weights import build_llava
from pipeline.assembly.export import export_model
from pipeline.assembly.folder import save_model_folder
from pipeline.assembly.parts import describe_images
from pipeline.config import ConfigError, DataConfig, ModelConfig
from pipeline.tools.parity.ask import Asked
from pipeline.tools.parity.check import ParityError, verify_export
from pipeline.tools.parity.compare import compare
from pipeline.tools.parity.questions import choose_questions
from tests.model.tiny import save_tiny_backbone, save_tiny_tower
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

SIGLIP = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "image_processor_type": "SiglipImageProcessor", "resample": 2, "size": {"height": 21, "width": 21},
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "crop": {"image_aspect_ratio": "crop"},
    "anyres": {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[21, 42], [42, 21], [42, 42]]},
    "anyres_max_2": {"image_aspect_ratio": "anyres_max_2", "image_grid_pinpoints": [[21, 42], [42, 21], [42, 42]]},
}


def model_folder(folder: Path, way: str) -> Path:
    """Write a model folder as finetuning does, with SigLIP 2's image processor, which is not CLIP's in any step."""
    language_model = save_tiny_backbone("qwen2", folder / "lm", tied=False)
    tokenizer = build_tokenizer("chatml")
    tokenizer.save_pretrained(language_model)
    tower = save_tiny_tower("siglip_vision_model", folder / "tower")
    (Path(tower) / "preprocessor_config.json").write_text(json.dumps(SIGLIP))
    merge: Any = "flat" if way == "crop" else "spatial_unpad"
    parts = ModelConfig(language_model=language_model, vision_tower=tower, mm_patch_merge_type=merge)
    data = DataConfig(shards=("x.tar",), template="qwen", max_length=512, **WAYS[way])
    model = build_llava(language_model, tower, patch_merge=merge)
    model.resize_token_embeddings(len(tokenizer))
    describe_images(model, data.image_aspect_ratio, data.image_grid_pinpoints)
    model.get_model().mm_projector.requires_grad_(False)
    for parameter in model.get_model().mm_projector.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.config.save_pretrained(language_model)  # the rows that the tokenizer needs
    save_model_folder(model, model.state_dict(), parts, data, folder / "model")
    return folder / "model"


@pytest.mark.parametrize("way", ["anyres", "anyres_max_2"])  # `crop` is exported by the command below
def test_export_is_equal_in_transformers_for_no_one_and_several_images(way: str, tmp_path: Path) -> None:
    source, target = model_folder(tmp_path, way), tmp_path / "exported"
    export_model(source, target, torch.bfloat16)
    parity = verify_export(target, source)
    assert parity.is_equal
    assert {one.image_tokens[0] > 0 for one in parity.comparisons} == {True, False}
    assert all(one.ids_equal and one.answers_equal and one.logits < 1e-4 for one in parity.comparisons)
    written = json.loads((target / "parity.json").read_text())
    assert (written["verdict"], written["against"]) == ("equal", str(source.resolve()))
    assert [entry["name"] for entry in written["questions"]] == [one.name for one in choose_questions(source)]


def test_command_exports_checks_and_refuses_what_was_changed_afterwards(tmp_path: Path) -> None:
    source, target = model_folder(tmp_path, "crop"), tmp_path / "exported"
    done = CliRunner().invoke(app, ["export", str(source), str(target)])
    assert done.exit_code == 0, done.output
    assert "equal ids, image tokens and answers" in done.output
    file = target / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 3}))
    weights = target / "model.safetensors"
    state = load_file(weights)
    state["language_model.model.norm.weight"] = state["language_model.model.norm.weight"] * 1.1
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ParityError, match=r"grey levels apart.*logits up to") as error:
        verify_export(target)  # against what parity.json names
    assert "no image: logits" in str(error.value)
    assert json.loads((target / "parity.json").read_text())["verdict"] == "differs"


def test_folder_that_transformers_cannot_open_is_refused_with_its_reason(tmp_path: Path) -> None:
    source, target = model_folder(tmp_path, "crop"), tmp_path / "exported"
    export_model(source, target)
    (target / "processor_config.json").write_text(json.dumps({"processor_class": "NoSuchProcessor"}))
    (target / "preprocessor_config.json").unlink()
    with pytest.raises(ParityError, match="cannot be opened and asked by transformers"):
        verify_export(target, source)


def test_folder_with_nothing_to_compare_with_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder written by `ray-llava export`"):
        verify_export(tmp_path)
    (tmp_path / "config.json").write_text('{"image_token_index": 3, "dtype": "float32"}')
    with pytest.raises(ConfigError, match=r"no parity\.json.*--against"):
        verify_export(tmp_path)
    (tmp_path / "parity.json").write_text('{"against": "/nowhere/run"}')
    with pytest.raises(ConfigError, match=r"/nowhere/run is not there.*--against"):
        verify_export(tmp_path)


def asked(**changes: Any) -> Asked:
    question = choose_questions("/nowhere")[1]
    tiles = [torch.zeros(1, 3, 7, 7)]
    values: dict[str, Any] = {"ids": [5, 9, 9, 7], "tiles": tiles, "logits": torch.ones(4, 11), "answer_ids": [3, 2]}
    return Asked(question, answer="x", **(values | changes))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        (
            {"ids": torch.tensor([5, 9, 9, 8])},
            r"other ids: 4 of them, expected 4; from place 3 on \[8\], expected \[7\]",
        ),
        ({"ids": torch.tensor([5, 9, 7])}, "1 image tokens, expected 2"),
        ({"pixels": torch.full((1, 3, 7, 7), 0.02)}, r"pixels up to 5\.1 grey levels apart, 100\.0%"),
        ({"pixels": torch.zeros(1, 3, 8, 8)}, "pixels up to inf grey levels apart"),
        ({"pixels": None}, "pixels up to inf grey levels apart"),
        ({"logits": torch.full((4, 16), 1.01)}, r"logits up to 0\.01 apart"),
        ({"logits": torch.full((4, 16), float("nan"))}, "logits up to nan apart"),
        ({"answer": torch.tensor([3, 4])}, r"another answer: tokens \[3, 4\], expected \[3, 2\]"),
    ],
)
def test_every_difference_is_told(change: dict[str, Any], problem: str | None) -> None:
    theirs: dict[str, Any] = {
        "ids": torch.tensor([5, 9, 9, 7]), "pixels": torch.zeros(1, 3, 7, 7), "logits": torch.ones(4, 16),
        "answer": torch.tensor([3, 2]),
    }  # fmt: skip
    found = compare(asked(), theirs | change, image_id=9, std=torch.ones(3), limit=1e-3)
    if problem is None:
        assert found.problems == ()
    else:
        assert any(re.search(problem, one) for one in found.problems), found.problems
