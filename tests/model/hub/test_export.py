import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers import PreTrainedTokenizerFast as Tokenizer

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.hub.export import export_transformers
from model.hub.hf_import import import_transformers
from model.hub.hf_names import exported_name, imported_name
from model.hub.weights import LlavaModel, build_llava, load_llava, save_llava
from model.vision.vision_tower import SelectFeature
from tests.model.conftest import NUM_PATCHES, random_images
from tests.model.tiny import KINDS, VOCAB, save_tiny_backbone, save_tiny_tower, tiny_backbone_config

X = IMAGE_TOKEN_INDEX
REFUSED_KINDS = {"mpt": "backbone 'mpt'", "phi": "head has a bias", "gemma2": "final_logit_softcapping 3.0"}
EXPORTED_KINDS = [kind for kind in KINDS if kind not in REFUSED_KINDS]
EXPORTED = [(kind, False) for kind in EXPORTED_KINDS] + [(kind, True) for kind in ("llama", "gemma", "smollm3")]
"""Backbones, and whether input and output embeddings are one tensor."""
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "resample": 3, "do_center_crop": True,
    "size": {"shortest_edge": 21}, "crop_size": {"height": 21, "width": 21},
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip


def export(model: LlavaModel, tokenizer: Tokenizer, folder: Path) -> Path:
    export_transformers(model, tokenizer, folder, image_processor=PROCESSOR, chat_template="{{ 1 }}")
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def their_logits(folder: Path, rows: list[list[int]], images: torch.Tensor) -> torch.Tensor:
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    other, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    image = other.config.image_token_id
    ids = torch.tensor(
        [[t for token in row for t in ([image] * NUM_PATCHES if token == X else [token])] for row in rows]
    )
    with torch.no_grad():
        logits: torch.Tensor = other.eval()(ids, pixel_values=images).logits
    return logits


def test_weights_of_the_exported_folder_may_be_read_like_its_other_files(
    llava: LlavaModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = export(llava, tokenizer, tmp_path / "hf")
    assert len({(folder / name).stat().st_mode for name in ("model.safetensors", "config.json")}) == 1


@pytest.mark.parametrize(("kind", "tied"), EXPORTED)
def test_logits_equal_those_of_the_exported_folder(
    kind: str, tied: bool, tower_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = build_llava(save_tiny_backbone(kind, tmp_path / "lm", tied=tied), tower_path)
    model.train(False)
    images, rows = random_images(4), [[1, X, 5, X, 7], [X, 4, 9, X, 2]]
    with torch.no_grad():
        ours = model(torch.tensor(rows), images=images).logits
    theirs = their_logits(export(model, tokenizer, tmp_path / "out"), rows, images)
    assert theirs.shape[-1] == 128  # 97 words and <image>, up to a multiple of 64
    assert torch.allclose(ours, theirs[..., :VOCAB], atol=1e-5, rtol=1e-5)
    assert (theirs[..., VOCAB:] < theirs.max(dim=-1, keepdim=True).values).all()


@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize("layer", [-1, -2, (-2, 1)])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_tower_selection_survives_export_and_import(
    tower: str, layer: int, feature: SelectFeature, llama_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = build_llava(
        llama_path, save_tiny_tower(tower, tmp_path / "tower"), select_layer=layer, select_feature=feature
    ).train(False)
    images = random_images(1)
    with torch.no_grad():
        ours = model(torch.tensor([[1, X, 5]]), images=images).logits
        folder = export(model, tokenizer, tmp_path / "out")
        again = import_transformers(folder).train(False)(torch.tensor([[1, X, 5]]), images=images).logits
    num_features = ours.shape[1] - 2
    config = LlavaConfig.from_pretrained(folder)
    assert config.image_seq_length == num_features
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        theirs = theirs.eval()(torch.tensor([[1, *[VOCAB] * num_features, 5]]), pixel_values=images).logits
    assert torch.allclose(ours, theirs[..., :VOCAB], atol=1e-5, rtol=1e-5)
    assert torch.allclose(ours, again[..., :VOCAB], atol=1e-6)


def test_written_names_and_settings_are_those_that_vllm_reads(
    llava: LlavaLlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = export(llava, tokenizer, tmp_path)
    names = read(folder)
    assert {name.split(".")[0] for name in names} == {"language_model", "multi_modal_projector", "vision_tower"}
    for name in (
        "language_model.model.layers.1.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_2.bias",
        "vision_tower.vision_model.embeddings.class_embedding",
    ):
        assert name in names
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["model_type"] == "llama"
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert not [key for key in config["text_config"] if key.startswith(("mm_", "tune_", "use_mm"))]
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert (config["image_seq_length"], config["image_token_index"]) == (NUM_PATCHES, VOCAB)
    processor = json.loads((folder / "processor_config.json").read_text())
    assert (processor["num_additional_image_tokens"], processor["patch_size"]) == (1, 7)
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_pad"] is True
    assert len(tokenizer) == VOCAB  # the caller's tokenizer is left alone


def test_processor_repeats_the_image_token_once_per_feature(
    llava: LlavaLlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from PIL import Image

    processor: Any = AutoProcessor.from_pretrained(export(llava, tokenizer, tmp_path), backend="pil")
    inputs = processor(text="w5 <image> w7", images=Image.new("RGB", (30, 17)), return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[5, *[VOCAB] * NUM_PATCHES, 7]]
    assert inputs["pixel_values"].shape == (1, 3, 21, 21)


@pytest.mark.parametrize(("kind", "tied"), EXPORTED)
def test_import_and_export_again_is_bitwise(
    kind: str, tied: bool, tower_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first = export(
        build_llava(save_tiny_backbone(kind, tmp_path / "lm", tied=tied), tower_path), tokenizer, tmp_path / "1"
    )
    imported = import_transformers(first)
    second = export(imported, Tokenizer.from_pretrained(first), tmp_path / "2")
    before, after = read(first), read(second)
    assert list(before) == list(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    assert imported.config.mm_image_mean == PROCESSOR["image_mean"]


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_import_of_what_transformers_saves_gives_equal_logits(
    strategy: Literal["default", "full"], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    vision = CLIPVisionConfig(
        hidden_size=22, intermediate_size=26, num_hidden_layers=3, num_attention_heads=2, image_size=21, patch_size=7
    )
    config = LlavaConfig(
        vision_config=vision, text_config=tiny_backbone_config("llama"), image_token_index=90,
        image_seq_length=9, vision_feature_select_strategy=strategy,
    )  # fmt: skip
    theirs: Any = LlavaForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    model = import_transformers(tmp_path).train(False)
    images, features = random_images(1), NUM_PATCHES + (strategy == "full")
    with torch.no_grad():
        wanted = theirs(torch.tensor([[1, *[90] * features, 5]]), pixel_values=images).logits
        got = model(torch.tensor([[1, X, 5]]), images=images).logits
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp3x_gelu"])
def test_projector_that_the_class_lacks_is_refused(
    kind: str, llama_path: str, tower_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"projector type '{kind}'.*two linear layers"):
        export(build_llava(llama_path, tower_path, kind), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tower", ["dinov2", "internvl_vision"])
def test_other_towers_are_refused(tower: str, llama_path: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"vision tower '{tower}'"):
        export(build_llava(llama_path, save_tiny_tower(tower, tmp_path / "tower")), tokenizer, tmp_path / "out")


@pytest.mark.parametrize("kind", REFUSED_KINDS)
def test_what_those_classes_do_not_compute_is_refused(
    kind: str, tower_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = build_llava(save_tiny_backbone(kind, tmp_path / "lm"), tower_path)
    with pytest.raises(ValueError, match=REFUSED_KINDS[kind]):
        export(model, tokenizer, tmp_path / "out")


def test_import_of_a_language_model_with_caps_is_refused(
    llava: LlavaLlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = export(llava, tokenizer, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"model_type": "gemma2", "final_logit_softcapping": 30.0}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"final_logit_softcapping 30\.0, which .* leaves out"):
        import_transformers(folder)


def test_import_names_missing_tensors_and_foreign_ones(
    llava: LlavaLlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder = export(llava, tokenizer, tmp_path)
    state = read(folder)
    del state["multi_modal_projector.linear_2.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing model\.mm_projector\.2\.bias"):
        import_transformers(folder)
    save_file({**state, "image_oldline": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="tensor image_oldline has no place"):
        import_transformers(folder)


def test_import_of_another_kind_points_to_load(llama_path: str) -> None:
    with pytest.raises(
        ValueError, match="model_type 'llama'; expected llava, llava_next, llava_onevision with a text_config"
    ):
        import_transformers(llama_path)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("level", ["", "vision_model."])
def test_every_spelling_of_transformers_is_read(prefix: str, level: str) -> None:
    assert imported_name(f"{prefix}vision_tower.{level}encoder.x") == "model.vision_tower.vision_tower.encoder.x"
    assert imported_name(f"{prefix}multi_modal_projector.linear_1.bias") == "model.mm_projector.0.bias"
    assert imported_name("language_model.model.norm.weight") == "model.norm.weight"
    assert imported_name("model.language_model.norm.weight") == "model.norm.weight"
    assert imported_name("lm_head.weight") == imported_name("language_model.lm_head.weight") == "lm_head.weight"


def test_names_round_trip(llava: LlavaLlamaForCausalLM) -> None:
    for name in llava.state_dict():
        assert imported_name(exported_name(name)) == name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma"])
def test_head_of_its_own_is_exported_whatever_the_flag_says(
    kind: str, tower_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = save_tiny_backbone(kind, tmp_path / "lm")
    file = Path(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    model = build_llava(folder, tower_path).train(False)
    assert model.config.tie_word_embeddings is False
    rows = [[1, 5, 7, 2]]
    with torch.no_grad():
        ours = model(torch.tensor(rows)).logits
    out = export(model, tokenizer, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["text_config"]["tie_word_embeddings"] is False
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(out)
    with torch.no_grad():
        theirs = loaded.eval()(torch.tensor(rows)).logits
    assert torch.allclose(theirs[..., :VOCAB], ours, atol=1e-5)
    save_llava(model, tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load_llava(tmp_path / "again").train(False)(torch.tensor(rows)).logits, ours)


def test_tensors_that_the_model_does_not_know_are_refused(llama_path: str, tower_path: str, tmp_path: Path) -> None:
    save_tiny_backbone("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    extra = {"model.layers.2.mlp.up_proj.weight": torch.zeros(58, 32)}  # a layer that the config does not count
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected model\.layers\.2\.mlp\.up_proj\.weight"):
        build_llava(str(tmp_path), tower_path)
