"""Tokens around images through both stages: their rows learn, travel with the projector, stay in the model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.generate import answer, build_conversation
from model.fusion.constants import IMAGE_TOKEN_INDEX
from pipeline.assembly.facts import load_tokenizer
from pipeline.assembly.folder import open_model
from pipeline.config import load_config
from pipeline.launch.run import run_training
from tests.integration.conftest import WriteConfig
from tests.integration.runs import weights
from tests.integration.test_pairs_training import TINY, save_language_model
from tests.model.tiny import save_tiny_tower

TOKENS = ("model.mm_use_im_start_end=true", "model.mm_use_im_patch_token=true", "training.weight_decay=0.1")


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    save_language_model("llama", tmp_path / "lm")
    save_tiny_tower("clip_vision_model", tmp_path / "tower")
    return [*TINY, *TOKENS, f"model.language_model={tmp_path / 'lm'}", f"model.vision_tower={tmp_path / 'tower'}"]


def test_rows_learn_alone_in_pretraining_and_go_on_into_finetuning(
    write_config: WriteConfig, parts: list[str], tmp_path: Path
) -> None:
    size = len(load_tokenizer(str(tmp_path / "lm")))
    run_training(load_config(write_config("pre"), parts))
    rows = weights(tmp_path / "pre")["model.embed_tokens.weight"]
    assert rows.shape[0] == 2
    before = load_file(tmp_path / "lm" / "model.safetensors")["model.embed_tokens.weight"]
    start = torch.cat([before, before.mean(dim=0, keepdim=True)]).mean(dim=0)
    assert (rows - start).abs().max() > 1e-4
    table = load_file(next((tmp_path / "pre" / "checkpoints").glob("*/model.safetensors")))["model.embed_tokens.weight"]
    assert torch.equal(table[:size], before)  # neither gradient nor decay
    assert torch.equal(table[size + 1 :], rows)

    opened = open_model(tmp_path / "pre")
    assert torch.equal(opened.model.state_dict()["model.embed_tokens.weight"][size + 1 :], rows)
    overrides = [*parts, f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}", "training.learning_rate=1e-9"]
    folder = run_training(load_config(write_config("fine", "finetune"), overrides)).output
    finetuned = weights(tmp_path / "fine")
    assert torch.allclose(finetuned["model.embed_tokens.weight"][size + 1 :], rows, atol=1e-6)
    assert finetuned["lm_head.weight"].shape[0] == size + 3
    config = json.loads((folder / "config.json").read_text())
    assert config["im_start_end_ids"] == [size + 1, size + 2]
    assert load_tokenizer(str(folder)).convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"]) == [
        size, size + 1, size + 2,
    ]  # fmt: skip

    whole = open_model(tmp_path / "fine")
    ids = whole.encoder.encode_prompt(build_conversation("<image>What?", 1)).tolist()
    place = ids.index(IMAGE_TOKEN_INDEX)
    assert ids[place - 1 : place + 2] == [size + 1, IMAGE_TOKEN_INDEX, size + 2]
    answer(whole, load_tokenizer(str(folder)), build_conversation("What?", 0), [], 3)


def test_adapters_keep_the_rows_beside_the_projector(
    write_config: WriteConfig, parts: list[str], tmp_path: Path
) -> None:
    run_training(load_config(write_config("pre"), parts))
    rows = weights(tmp_path / "pre")["model.embed_tokens.weight"]
    overrides = [*parts, "lora.rank=2", f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}"]
    run_training(load_config(write_config("fine", "finetune"), overrides))
    assert torch.equal(open_model(tmp_path / "fine").model.state_dict()["model.embed_tokens.weight"][-2:], rows)


def test_tied_tables_are_refused_before_training(write_config: WriteConfig, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "lm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match="ties them into one tensor"):
        run_training(load_config(write_config("pre"), parts))
