from collections.abc import Callable

import pytest
import torch

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from tests.model.conftest import NUM_PATCHES, VISION_WIDTH, random_images

X = IMAGE_TOKEN_INDEX
IGNORE = IGNORE_INDEX
ROWS = [[1, X, 5, 6, 7], [7, 8, 9], [X, 3, X, 4, 5, 9, 2]]
LABELS = [[IGNORE, IGNORE, 5, IGNORE, 7], [7, 8, 9], [IGNORE, IGNORE, IGNORE, 4, IGNORE, 9, 2]]


def packed(model: LlavaLlamaForCausalLM) -> torch.Tensor:
    features = model.encode_vision(random_images(3)).flatten(0, 1)
    samples = [(torch.tensor(row), torch.tensor(labels)) for row, labels in zip(ROWS, LABELS, strict=True)]
    return model.packed_loss(pack_samples(samples, [NUM_PATCHES] * 3), features)


def padded(model: LlavaLlamaForCausalLM) -> torch.Tensor:
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ROWS])
    labels = torch.tensor([row + [IGNORE] * (width - len(row)) for row in LABELS])
    out = model(ids, attention_mask=mask, labels=labels, images=random_images(3), num_items_in_batch=1)
    loss: torch.Tensor = out.loss
    return loss


def gradients(model: LlavaLlamaForCausalLM, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_packed_loss_and_gradients_equal_padded_full_logits(
    make_llava: Callable[..., LlavaLlamaForCausalLM], kind: str, attention: str
) -> None:
    model = make_llava(kind, attention)
    wanted_loss, got_loss = padded(model), packed(model)
    assert got_loss.dtype == torch.float32
    assert torch.allclose(got_loss, wanted_loss, rtol=1e-6)
    wanted, got = gradients(model, wanted_loss), gradients(model, got_loss)
    assert sum("mm_projector" in name for name in got) == (2 if kind == "linear" else 4)
    for name, gradient in wanted.items():
        ours = got[name]
        assert gradient is not None
        assert ours is not None
        assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-5), name


def test_packed_loss_with_gradient_checkpointing_is_the_same(llava: LlavaLlamaForCausalLM) -> None:
    wanted = gradients(llava, packed(llava))
    llava.gradient_checkpointing_enable()  # type: ignore[no-untyped-call]
    llava.train()
    got = gradients(llava, packed(llava))
    for name, gradient in wanted.items():
        assert torch.equal(got[name], gradient), name  # type: ignore[arg-type]


@pytest.mark.parametrize("samples", [[], [([1, 2], [IGNORE, IGNORE])]])
def test_packed_loss_without_work_is_zero_and_reaches_every_parameter(
    llava: LlavaLlamaForCausalLM, samples: list[tuple[list[int], list[int]]]
) -> None:
    batch = pack_samples([(torch.tensor(ids), torch.tensor(labels)) for ids, labels in samples], [])
    loss = llava.packed_loss(batch, None)
    assert loss.item() == 0.0
    for name, gradient in gradients(llava, loss).items():
        assert gradient is not None, name
        assert not gradient.any(), name


def test_packed_loss_of_text_trains_the_language_model_and_touches_the_projector(llava: LlavaLlamaForCausalLM) -> None:
    batch = pack_samples([(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]))], [])
    got = gradients(llava, llava.packed_loss(batch, torch.zeros(0, VISION_WIDTH)))
    assert not got["model.mm_projector.0.weight"].any()  # type: ignore[union-attr]
    assert got["lm_head.weight"].any()  # type: ignore[union-attr]


def test_packed_loss_in_pretraining_gives_gradients_to_the_projector_only(llava: LlavaLlamaForCausalLM) -> None:
    llava.requires_grad_(False)
    llava.model.mm_projector.requires_grad_(True)
    got = gradients(llava, packed(llava))
    assert set(got) == {f"model.mm_projector.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert all(gradient is not None and gradient.any() for gradient in got.values())


def test_packed_loss_with_start_end_trains_their_rows_only(llava: LlavaLlamaForCausalLM) -> None:
    llava.config.tune_mm_mlp_adapter = llava.config.mm_use_im_start_end = True
    row = torch.tensor([1, 90, X, 91, 7])
    batch = pack_samples([(row, row)], [NUM_PATCHES])
    got = gradients(llava, llava.packed_loss(batch, llava.encode_vision(random_images(1))[0]))
    gradient = got["model.embed_tokens.weight"]
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [90, 91]


def test_packed_loss_under_autocast_mixes_float32_masters_and_bfloat16(llava: LlavaLlamaForCausalLM) -> None:
    wanted = packed(llava)
    with torch.autocast("cpu", torch.bfloat16):
        loss = packed(llava)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, wanted, rtol=5e-2)
    assert all(g is None or g.dtype == torch.float32 for g in gradients(llava, loss).values())


def test_packed_loss_with_features_of_another_count_refuses(llava: LlavaLlamaForCausalLM) -> None:
    batch = pack_samples([(torch.tensor([1, X]), torch.tensor([1, IGNORE]))], [NUM_PATCHES])
    with pytest.raises(ValueError, match=rf"expected image_features \[{NUM_PATCHES}, V\].*found \[7, {VISION_WIDTH}\]"):
        llava.packed_loss(batch, torch.zeros(7, VISION_WIDTH))
    with pytest.raises(ValueError, match=r"found \[0\]"):
        llava.packed_loss(batch, None)


def test_packed_loss_without_packed_attention_says_what_to_call(llava: LlavaLlamaForCausalLM) -> None:
    llava.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="enable_packed_attention"):
        llava.packed_loss(pack_samples([], []), None)
