"""Every backbone: packed loss equals padded logits, generation equals full forward passes, files round-trip."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model.backbones.registry import BACKBONES
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.hub.weights import LlavaModel, build_llava, load_llava, read_llava_config, save_llava, set_trainable
from model.llava.attention import AttentionKernel, enable_packed_attention
from model.llava.packed_decoder import sliding_windows_of
from tests.model.conftest import NUM_PATCHES, random_images
from tests.model.tiny import KINDS, save_tiny_backbone, tiny_backbone_config

X = IMAGE_TOKEN_INDEX
ROWS = [[1, X, 5, 6, 7], [7, 8, 9], [X, 3, X, 4, 5, 9, 2]]
LABELS = [[IGNORE_INDEX if token in (X, 6) else token for token in row] for row in ROWS]
NEW = 5


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(kind: str, tower_path: str, folder: Path, *, tied: bool = False) -> LlavaModel:
    model = build_llava(save_tiny_backbone(kind, folder / kind, tied=tied), tower_path)
    model.train(False)
    return model


def packed(model: LlavaModel) -> torch.Tensor:
    features = model.encode_vision(random_images(3)).flatten(0, 1)
    samples = [(torch.tensor(row), torch.tensor(labels)) for row, labels in zip(ROWS, LABELS, strict=True)]
    return model.packed_loss(pack_samples(samples, [NUM_PATCHES] * 3), features)


def padded(model: LlavaModel) -> torch.Tensor:
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ROWS])
    labels = torch.tensor([row + [IGNORE_INDEX] * (width - len(row)) for row in LABELS])
    out = model(ids, attention_mask=mask, labels=labels, images=random_images(3), num_items_in_batch=1)
    loss: torch.Tensor = out.loss
    return loss


def gradients(model: LlavaModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
def test_packed_loss_and_gradients_equal_padded(kind: str, tied: bool, tower_path: str, tmp_path: Path) -> None:
    model = build(kind, tower_path, tmp_path, tied=tied)
    set_trainable(model, "finetune")
    wanted_loss, got_loss = padded(model), packed(model)
    assert torch.allclose(got_loss, wanted_loss, rtol=1e-5)
    wanted, got = gradients(model, wanted_loss), gradients(model, got_loss)
    assert set(got) == {name for name, p in model.named_parameters() if "vision_tower" not in name}
    for name, gradient in wanted.items():
        assert torch.allclose(got[name], gradient, rtol=1e-3, atol=1e-4), name


def test_pretraining_reaches_the_projector_only(kind: str, tower_path: str, tmp_path: Path) -> None:
    model = build(kind, tower_path, tmp_path)
    set_trainable(model, "pretrain")
    got = gradients(model, packed(model))
    assert all("mm_projector" in name and gradient.any() for name, gradient in got.items())
    assert len(got) == 4


def test_generate_with_cache_equals_full_forward_per_token(kind: str, tower_path: str, tmp_path: Path) -> None:
    model = build(kind, tower_path, tmp_path)
    prompts, images = [[1, X, 5, 6, X], [7, X, 8]], random_images(3)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    ids = torch.tensor([prompts[0], [*prompts[1], 0, 0]])
    got: Any = model.generate(ids, images=images, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    assert got.tolist() == [greedy(model, prompts[0], images[:2]), greedy(model, prompts[1], images[2:])]


def greedy(model: LlavaModel, ids: list[int], images: torch.Tensor) -> list[int]:
    out: list[int] = []
    for _ in range(NEW):
        with torch.no_grad():
            out.append(int(model(torch.tensor([ids + out]), images=images).logits[0, -1].argmax()))
    return out


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_round_trip(kind: str, tied: bool, tower_path: str, tmp_path: Path) -> None:
    model = build(kind, tower_path, tmp_path, tied=tied)
    save_llava(model, tmp_path / "saved")
    for loaded in (load_llava(tmp_path / "saved"), AutoModelForCausalLM.from_pretrained(tmp_path / "saved")):
        assert type(loaded) is BACKBONES[kind].model_class
        ours, theirs = model.state_dict(), loaded.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        shared = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
        assert shared == tied
    assert type(AutoConfig.from_pretrained(tmp_path / "saved")) is BACKBONES[kind].config_class
    assert type(read_llava_config(tmp_path / "saved")) is BACKBONES[kind].config_class


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
@pytest.mark.parametrize("window", [5, 13, 100])
def test_packed_loss_honours_a_sliding_window(
    kernel: AttentionKernel, window: int, tower_path: str, tmp_path: Path
) -> None:
    model = build("mistral", tower_path, tmp_path)
    enable_packed_attention(model, kernel)
    with torch.no_grad():  # flex has no backward pass on a CPU
        unlimited = packed(model).item()
    model.config.sliding_window = window
    for layer in model.get_model().layers:
        layer.self_attn.config.sliding_window = window
    with torch.no_grad():
        loss, wanted = packed(model), padded(model)
    assert torch.allclose(loss, wanted, rtol=1e-5)
    assert (abs(loss.item() - unlimited) > 1e-3) == (window < 24)  # the longest sample has 23 fused tokens


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {}, (None,)),
        ("mistral", {"sliding_window": 7}, (7,)),
        ("qwen2", {}, (None,)),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5}, (None, 5)),
        ("gemma3_text", {}, (None, 11)),
        ("ministral", {}, (11,)),
        ("smollm3", {}, (None,)),
        ("mpt", {}, (None,)),
    ],
)
def test_sliding_windows_are_read_from_the_config(
    kind: str, changes: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    values = tiny_backbone_config(kind).to_dict()
    if "max_window_layers" in changes:
        del values["layer_types"]
    config = type(tiny_backbone_config(kind)).from_dict({**values, **changes})
    assert sliding_windows_of(config) == expected
