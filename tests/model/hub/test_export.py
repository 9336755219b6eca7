import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers import PreTrainedTokenizerFast as Tokenizer

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.hub.export import export_transformers
from model.hub.hf_classes import LLAVA
from model.hub.hf_import import import_transformers
from model.hub.hf_names import exported_name, imported_name
from model.hub.weights import LlavaModel, build_llava, load_llava, save_llava
from model.vision.vision_tower import SelectFeature
from tests.model.conftest import NUM_PATCHES, random_images
from tests.model.tiny import KINDS, TOWERS, VOCAB, save_tiny_backbone, save_tiny_tower, tiny_backbone_config

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
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
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


def selections(tower: str) -> list[SelectFeature]:
    """What the classes of transformers can leave out: one class token, or nothing."""
    return ["cls_patch"] if "registers" in tower or "dinov3" in tower else ["patch", "cls_patch"]


@pytest.mark.parametrize(("tower", "feature"), [(tower, feature) for tower in TOWERS for feature in selections(tower)])
def test_tower_selection_survives_export_and_import(
    tower: str, feature: SelectFeature, llama_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = save_tiny_tower(tower, tmp_path / "tower")
    layers: tuple[int | tuple[int, ...], ...] = (-1, -2, (-2, 1))
    for number, layer in enumerate(layers):
        model = build_llava(llama_path, path, select_layer=layer, select_feature=feature).train(False)
        images, folder = random_images(1), tmp_path / f"out{number}"
        with torch.no_grad():
            ours = model(torch.tensor([[1, X, 5]]), images=images).logits
            again = import_transformers(export(model, tokenizer, folder)).train(False)
            back = again(torch.tensor([[1, X, 5]]), images=images).logits
        num_features = ours.shape[1] - 2
        assert LlavaConfig.from_pretrained(folder).image_seq_length == num_features
        theirs = their_logits(folder, [[1, *[VOCAB] * num_features, 5]], images)
        assert torch.allclose(ours, theirs[..., :VOCAB], atol=1e-5, rtol=1e-5)
        assert torch.equal(ours, back[..., :VOCAB])
        second = export(again, Tokenizer.from_pretrained(folder), tmp_path / f"again{number}")
        assert (folder / "config.json").read_text() == (second / "config.json").read_text()
        assert all(torch.equal(tensor, read(second)[name]) for name, tensor in read(folder).items())


@pytest.mark.parametrize(("tower", "wide"), [("clip_vision_model", 21), ("dinov2", 35), ("internvl_vision", 35)])
@pytest.mark.parametrize("projector", ["ln_mlp2x_gelu", "mlp2x_gelu_ln"])
def test_projector_after_a_layer_norm_is_that_of_vip_llava(
    tower: str, wide: int, projector: str, llama_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = save_tiny_tower(tower, tmp_path / "tower")
    model = build_llava(llama_path, path, projector, select_layer=(-2, 1)).train(False)
    torch.nn.init.normal_(model.get_model().mm_projector[0].weight, mean=1.0)
    images = torch.randn(1, 3, wide, wide, generator=torch.Generator().manual_seed(1))
    size = {"size": {"shortest_edge": wide}, "crop_size": {"height": wide, "width": wide}}
    out = tmp_path / "out"
    export_transformers(model, tokenizer, out, image_processor=PROCESSOR | size)
    with torch.no_grad():
        ours = model(torch.tensor([[1, X, 5]]), images=images).logits
        back = import_transformers(out).train(False)(torch.tensor([[1, X, 5]]), images=images).logits
    assert json.loads((out / "config.json").read_text())["architectures"] == ["VipLlavaForConditionalGeneration"]
    theirs = their_logits(out, [[1, *[VOCAB] * (ours.shape[1] - 2), 5]], images)
    assert torch.allclose(ours, theirs[..., :VOCAB], atol=1e-5, rtol=1e-5)
    assert torch.equal(ours, back[..., :VOCAB])


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


@pytest.mark.parametrize(
    ("tower", "options", "reason"),
    [
        ("dinov2_with_registers", {}, "a class token and 3 registers.*'cls_patch'"),
        ("dinov3_vit", {"projector_type": "ln_mlp2x_gelu"}, "a class token and 2 registers.*'cls_patch'"),
        ("siglip_vision_model", {"projector_type": "ln_mlp2x_gelu"}, "leaves out the first token"),
        ("dinov2", {"projector_type": "ln_mlp2x_gelu", "select_feature": "cls_patch"}, "leaves out the first token"),
        ("internvl_vision", {"patch_merge": "spatial_unpad"}, "'internvl_vision' with tiles.*image_size"),
        ("clip_vision_model", {"projector_type": "ln_mlp2x_gelu", "patch_merge": "spatial_unpad"}, "on one square"),
    ],
)
def test_what_no_class_computes_is_refused_by_name(
    tower: str, options: dict[str, Any], reason: str, llama_path: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = build_llava(llama_path, save_tiny_tower(tower, tmp_path / "tower"), **options)
    model.config.image_aspect_ratio = "anyres" if "patch_merge" in options else "pad"
    with pytest.raises(ValueError, match=f"cannot be exported for transformers.*{reason}"):
        export(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_would_lose_a_patch_is_not_imported(llama_path: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = export(
        build_llava(llama_path, save_tiny_tower("siglip_vision_model", tmp_path)), tokenizer, tmp_path / "o"
    )
    values = json.loads((folder / "config.json").read_text()) | {"vision_feature_select_strategy": "default"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"leaves out the first feature.*'siglip_vision_model' has 0"):
        import_transformers(folder)


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
        ValueError, match="model_type 'llama'; expected llava, llava_next, llava_onevision, vipllava with a text_config"
    ):
        import_transformers(llama_path)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("level", ["", "vision_model."])
def test_every_spelling_of_transformers_is_read(prefix: str, level: str) -> None:
    def read(name: str) -> str:
        return imported_name(name, LLAVA)

    assert read(f"{prefix}vision_tower.{level}encoder.x") == "model.vision_tower.vision_tower.encoder.x"
    assert read(f"{prefix}multi_modal_projector.linear_1.bias") == "model.mm_projector.0.bias"
    assert read("language_model.model.norm.weight") == "model.norm.weight"
    assert read("model.language_model.norm.weight") == "model.norm.weight"
    assert read("lm_head.weight") == read("language_model.lm_head.weight") == "lm_head.weight"


def test_names_round_trip(llava: LlavaLlamaForCausalLM) -> None:
    for name in llava.state_dict():
        assert imported_name(exported_name(name, LLAVA, "clip_vision_model"), LLAVA) == name


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
