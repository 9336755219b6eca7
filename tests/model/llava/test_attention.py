from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from model.fusion.packed import pack_samples
from model.llava import attention
from model.llava.attention import (
    AttentionKernel,
    Heads,
    check_training_kernel,
    choose_kernel,
    enable_packed_attention,
    no_mask,
    packed_kernel,
    segments_of,
)

LENGTHS = (5, 1, 11, 3)


@pytest.fixture
def body(llama_config: LlamaConfig) -> LlamaModel:
    torch.manual_seed(6)
    model = LlamaModel(llama_config)
    model.eval()
    return model


def run_packed(model: LlamaModel, ids: list[torch.Tensor], kernel: AttentionKernel) -> list[torch.Tensor]:
    enable_packed_attention(model, kernel)
    batch = pack_samples([(row, row) for row in ids], [])
    hidden = model(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=no_mask(torch.device("cpu")),
        segments=segments_of(batch, kernel),
        use_cache=False,
    ).last_hidden_state[0]
    return list(hidden.split(list(batch.seqlens)))


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "flex"])
def test_packed_samples_equal_samples_run_alone(body: LlamaModel, kernel: AttentionKernel) -> None:
    generator = torch.Generator().manual_seed(8)
    ids = [torch.randint(0, 97, (length,), generator=generator) for length in LENGTHS]
    with torch.no_grad():
        alone = [body(row[None]).last_hidden_state[0] for row in ids]
        packed = run_packed(body, ids, kernel)
    for ours, theirs in zip(packed, alone, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_packed_gradients_equal_samples_run_alone(body: LlamaModel) -> None:
    ids = [torch.arange(2, 7), torch.arange(3, 6)]
    weight = body.get_parameter("layers.0.self_attn.k_proj.weight")
    alone = [body(row[None]).last_hidden_state for row in ids]
    (wanted,) = torch.autograd.grad([(part**3).sum() for part in alone], [weight])
    (got,) = torch.autograd.grad([(part**3).sum() for part in run_packed(body, ids, "sdpa")], [weight])
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_without_segments_padding_works_as_before(body: LlamaModel) -> None:
    ids = torch.tensor([[0, 0, 4, 5, 6], [7, 8, 9, 10, 11]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        wanted = body(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        enable_packed_attention(body, "auto")
        got = body(ids, attention_mask=mask, position_ids=positions).last_hidden_state
    assert torch.allclose(got[mask.bool()], wanted[mask.bool()], atol=1e-6)


def test_dropout_in_a_packed_call_is_refused(llama_config: LlamaConfig) -> None:
    config = LlamaConfig.from_dict({**llama_config.to_dict(), "attention_dropout": 0.5})
    with pytest.raises(ValueError, match=r"attention_dropout is 0\.5; set it to 0"):
        run_packed(LlamaModel(config).train(), [torch.tensor([1, 2])], "sdpa")


def test_kernel_is_reported_and_unknown_one_refused(llama_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(llama_config)
    assert packed_kernel(model.config) is None
    enable_packed_attention(model, "sdpa")
    assert packed_kernel(model.config) == "sdpa"
    with pytest.raises(ValueError, match="'eager' is unknown; known: auto, sdpa"):
        enable_packed_attention(model, "eager")  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_4", "varlen", "flex"])
def test_every_name_is_accepted_by_transformers(
    kernel: AttentionKernel, llama_config: LlamaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "has_flash_attn", lambda: True)
    monkeypatch.setattr(attention, "is_installed", lambda: True)
    model = LlamaForCausalLM(llama_config)
    enable_packed_attention(model, kernel)
    assert packed_kernel(model.config) == kernel


def test_kernel_that_is_not_installed_is_refused(llama_config: LlamaConfig) -> None:
    with pytest.raises(ValueError, match="needs the flash-attn package"):
        enable_packed_attention(LlamaForCausalLM(llama_config), "flash_attention_2")


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("kernel", "on_cuda", "dtype", "reason"),
    [
        ("auto", False, FULL, None),
        ("sdpa", False, HALF, None),
        ("sdpa", True, FULL, None),
        ("flex", True, FULL, None),
        ("flex", False, FULL, "'flex' trains on CUDA devices only"),
        *(
            (kernel, on_cuda, dtype, None if on_cuda and dtype != FULL else f"{kernel!r} needs CUDA devices and half")
            for kernel in ("varlen", "flash_attention_2", "flash_attention_4")
            for on_cuda in (False, True)
            for dtype in (HALF, torch.float16, FULL)
        ),
    ],
)
def test_kernels_that_train_on_a_device_in_a_type(
    llama_config: LlamaConfig, kernel: AttentionKernel, on_cuda: bool, dtype: torch.dtype, reason: str | None
) -> None:
    model = LlamaForCausalLM(llama_config)
    if reason is None:
        check_training_kernel(model, kernel, on_cuda=on_cuda, dtype=dtype)
        return
    with pytest.raises(ValueError, match=reason):
        check_training_kernel(model, kernel, on_cuda=on_cuda, dtype=dtype)


def test_refusal_to_train_names_what_the_run_has(llama_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(llama_config)
    with pytest.raises(ValueError, match="the run has CUDA and float32; use 'auto'"):
        check_training_kernel(model, "varlen", on_cuda=True, dtype=FULL)
    with pytest.raises(ValueError, match="the run has the CPU and bfloat16"):
        check_training_kernel(model, "varlen", on_cuda=False, dtype=HALF)


def test_dropout_is_refused_before_training(llama_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(LlamaConfig.from_dict({**llama_config.to_dict(), "attention_dropout": 0.25}))
    with pytest.raises(ValueError, match=r"attention_dropout is 0\.25"):
        check_training_kernel(model, "sdpa", on_cuda=False, dtype=FULL)


def test_auto_on_a_gpu_takes_the_first_kernel_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves run on a GPU only; which one is taken does not depend on one."""
    gpu, heads = torch.device("cuda"), Heads(64, 4)
    found: list[str] = []
    for missing, varlen, flash in (
        (None, True, True),
        ("old", True, True),
        ("old", False, True),
        ("old", False, False),
    ):
        monkeypatch.setattr(attention, "missing_for", lambda *_, missing=missing: missing)
        monkeypatch.setattr(attention, "has_varlen", lambda varlen=varlen: varlen)
        monkeypatch.setattr(attention, "has_flash_attn", lambda flash=flash: flash)
        found.append(choose_kernel("auto", gpu, HALF, heads))
    assert found == ["flash_attention_4", "varlen", "flash_attention_2", "sdpa"]
    assert choose_kernel("auto", gpu, FULL, heads) == "sdpa"
    assert choose_kernel("auto", gpu, HALF, heads, is_plain=False) == "flex"
    assert choose_kernel("auto", torch.device("cpu"), HALF, heads, is_plain=False) == "sdpa"
    assert choose_kernel("varlen", gpu, HALF, heads, is_plain=False) == "varlen"
    with pytest.raises(ValueError, match="'flash_attention_4' does not run here: old"):
        choose_kernel("flash_attention_4", gpu, HALF, heads)


@pytest.mark.parametrize(
    ("kernel", "asks", "names"),
    [
        ("varlen", "has_varlen", "torch 2.11 or newer"),
        ("flash_attention_2", "has_flash_attn", "flash-attn package"),
        ("flash_attention_4", "is_installed", r"ray-llava\[flash4\]"),
    ],
)
def test_kernel_is_accepted_only_where_its_package_is(
    llama_config: LlamaConfig, monkeypatch: pytest.MonkeyPatch, kernel: AttentionKernel, asks: str, names: str
) -> None:
    model = LlamaForCausalLM(llama_config)
    monkeypatch.setattr(attention, asks, lambda: False)
    with pytest.raises(ValueError, match=names):
        enable_packed_attention(model, kernel)
    monkeypatch.setattr(attention, asks, lambda: True)
    enable_packed_attention(model, kernel)
    assert packed_kernel(model.config) == kernel


def test_heads_of_configs_with_and_without_sizes_of_their_own() -> None:
    plain = SimpleNamespace(num_attention_heads=6, hidden_size=48)
    assert Heads.of(plain) == (8, 1)
    assert Heads.of(SimpleNamespace(**vars(plain), num_key_value_heads=2, head_dim=16)) == (16, 3)
    assert Heads.of(SimpleNamespace(**vars(plain), num_key_value_heads=None, head_dim=None)) == (8, 1)


def test_auto_is_sdpa_where_no_accelerator_computes_in_half_precision() -> None:
    assert choose_kernel("auto", torch.device("cpu"), torch.bfloat16) == "sdpa"
    assert choose_kernel("auto", torch.device("cuda"), torch.float32) == "sdpa"


def test_kernel_is_auto_unless_another_is_named(llama_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(llama_config)
    enable_packed_attention(model)
    assert packed_kernel(model.config) == "auto"
