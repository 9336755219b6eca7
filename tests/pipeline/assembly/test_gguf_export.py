"""GGUF files hold the model: transformers' reader computes the same from one, the other is read tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model.hub.weights import build_llava
from pipeline.assembly.folder import load_model_folder, save_model_folder
from pipeline.assembly.gguf_export import LANGUAGE_FILE, PROJECTOR_FILE, export_gguf
from pipeline.config import DataConfig, ModelConfig
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER
from tests.jobs.conftest import RunCommand, run_command
from tests.pipeline.serving.conftest import model_folder

__all__ = ["model_folder", "run_command"]


@pytest.fixture(scope="module")
def files(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gguf") / "out"
    export_gguf(model_folder, target, "float32")
    return target


def test_language_model_gives_the_same_logits_through_another_reader(files: Path, model_folder: Path) -> None:
    own = load_model_folder(model_folder).eval()
    other = AutoModelForCausalLM.from_pretrained(files, gguf_file=LANGUAGE_FILE, dtype=torch.float32).eval()
    ids = torch.randint(3, 700, (2, 13), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.allclose(other(ids).logits, own(ids).logits, atol=1e-4)


def test_tower_and_projector_are_under_the_names_of_llama_cpp(files: Path, model_folder: Path) -> None:
    state = load_model_folder(model_folder).state_dict()
    reader = gguf.GGUFReader(files / PROJECTOR_FILE)
    found = {one.name: np.array(one.data).reshape(one.shape[::-1]) for one in reader.tensors}
    prefix = "model.vision_tower.vision_tower."
    expected = {
        "mm.0.weight": "model.mm_projector.0.weight",
        "mm.2.bias": "model.mm_projector.2.bias",
        "v.class_embd": prefix + "embeddings.class_embedding",
        "v.patch_embd.weight": prefix + "embeddings.patch_embedding.weight",
        "v.position_embd.weight": prefix + "embeddings.position_embedding.weight",
        "v.pre_ln.bias": prefix + "pre_layrnorm.bias",
        "v.blk.1.attn_q.weight": prefix + "encoder.layers.1.self_attn.q_proj.weight",
        "v.blk.0.attn_out.bias": prefix + "encoder.layers.0.self_attn.out_proj.bias",
        "v.blk.0.ffn_up.weight": prefix + "encoder.layers.0.mlp.fc1.weight",
        "v.blk.0.ffn_down.weight": prefix + "encoder.layers.0.mlp.fc2.weight",
        "v.blk.0.ln2.weight": prefix + "encoder.layers.0.layer_norm2.weight",
    }
    for name, own in expected.items():
        assert np.array_equal(found[name], state[own].numpy()), name
    assert not [name for name in found if "post_ln" in name], "llama.cpp would apply it to the features"
    num_blocks = int(reader.fields["clip.vision.block_count"].contents())
    assert {int(name.split(".")[2]) for name in found if name.startswith("v.blk.")} == set(range(num_blocks))
    assert reader.fields["clip.projector_type"].contents() == "mlp"
    assert reader.fields["clip.vision.image_size"].contents() == 96


def test_tokens_and_template_travel_with_the_language_model(files: Path, model_folder: Path) -> None:
    fields = gguf.GGUFReader(files / LANGUAGE_FILE).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(load_model_folder(model_folder).state_dict()["model.embed_tokens.weight"])
    assert tokens[1:3] == ["<s>", "</s>"]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[2] == gguf.TokenType.CONTROL
    assert types[tokens.index("<0x0A>")] == gguf.TokenType.BYTE
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert "USER" in fields["tokenizer.chat_template"].contents()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"mm_projector_type": "linear"}, "projector linear"), ({"mm_vision_select_layer": -1}, "features of layer -1")],
)
def test_model_that_llama_cpp_computes_otherwise_is_refused_by_name(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    parts = ModelConfig.model_validate({"language_model": str(LANGUAGE_MODEL), "vision_tower": str(TOWER)} | changes)
    model = build_llava(
        language_model=parts.language_model,
        vision_tower=str(parts.vision_tower),
        projector_type=parts.mm_projector_type,
        select_layer=parts.mm_vision_select_layer,
    )
    save_model_folder(model, model.state_dict(), parts, DataConfig(shards=("a.tar",), template="v1"), tmp_path / "m")
    with pytest.raises(ValueError, match=message):
        export_gguf(tmp_path / "m", tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


def test_file_that_holds_another_value_is_noticed(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_close = gguf.GGUFWriter.close

    def damage(writer: gguf.GGUFWriter) -> None:
        true_close(writer)
        path = tmp_path / "out" / LANGUAGE_FILE
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(gguf.GGUFWriter, "close", damage)
    with pytest.raises(OSError, match="was read back otherwise"):
        export_gguf(model_folder, tmp_path / "out", "bfloat16")


def test_command_says_what_llama_cpp_reads_otherwise(
    run_command: RunCommand, model_folder: Path, tmp_path: Path
) -> None:
    ended = run_command("export", str(model_folder), str(tmp_path / "out"), "--format", "gguf")
    assert ended.exit_code == 0
    assert "note: the tokenizer splits texts by rules of its own" in ended.output
    assert "tensors read back equal" in ended.output
