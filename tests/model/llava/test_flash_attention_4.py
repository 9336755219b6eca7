"""The wrapper with a stand-in for the package on the CPU; on a GPU that has it, the real kernels."""

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.varlen import varlen_attn
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel, PreTrainedModel

from model.fusion.packed import PackedBatch, pack_samples
from model.llava import attention, attention_kernels, flash_attention_4
from model.llava.attention import Heads, choose_kernel, enable_packed_attention, no_mask, segments_of

LENGTHS = (7, 1, 13, 2)
CUDA = torch.device("cuda")
BF16 = torch.bfloat16


def visible(cu_seqlens: Tensor, total: int, left: int | None) -> Tensor:
    """bool [S, S], true where a token sees another."""
    steps = torch.arange(total, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:].contiguous(), steps.int(), right=True)
    distance = steps[:, None] - steps
    mask: Tensor = (document[:, None] == document) & (distance >= 0)
    return mask if left is None else mask & (distance <= left)


def dense(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, left: int | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of [S, heads, E] with a full mask in float32, and its log-sum-exp [A, S]."""
    mask = visible(cu_seqlens, q.shape[0], left)
    q, k, v = (x.transpose(0, 1).float() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for x in (k, v))
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1), scores.logsumexp(-1)


class Package:
    """What the wrapper needs of flash_attn.cute.interface, with its argument names and results."""

    def __init__(self) -> None:
        self.windows: list[int | None] = []

    def _flash_attn_fwd(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
        window_size_left: int | None,
        return_lse: bool,
    ) -> tuple[Any, ...]:
        assert (causal, return_lse) == (True, True)
        assert cu_seqlens_q is cu_seqlens_k
        assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
        self.windows.append(window_size_left)
        out, lse = dense(q, k, v, cu_seqlens_q, window_size_left, softmax_scale)
        return out.to(q.dtype).contiguous(), lse.contiguous(), None, None, None

    def _flash_attn_bwd(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        dout: Tensor,
        lse: Tensor,
        *,
        softmax_scale: float,
        causal: bool,
        window_size_left: int | None,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        deterministic: bool,
    ) -> tuple[Tensor, ...]:
        assert (causal, deterministic) == (True, False)
        assert cu_seqlens_q is cu_seqlens_k
        assert max_seqlen_q == max_seqlen_k
        group = q.shape[1] // k.shape[1]
        mask = visible(cu_seqlens_q, q.shape[0], window_size_left)
        q, k, v, out, dout = (x.transpose(0, 1) for x in (q, k, v, out, dout))
        k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
        p = (q @ k.transpose(1, 2) * softmax_scale - lse[..., None]).masked_fill(~mask, -torch.inf).exp()
        scores_grad = p * (dout @ v.transpose(1, 2) - (dout * out).sum(-1, keepdim=True)) * softmax_scale
        by_head = [scores_grad @ k, scores_grad.transpose(1, 2) @ q, p.transpose(1, 2) @ dout]
        by_head[1:] = [x.unflatten(0, (-1, group)).sum(1) for x in by_head[1:]]
        return tuple(x.transpose(0, 1).contiguous() for x in by_head)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    stand_in = Package()
    monkeypatch.setattr(flash_attention_4, "_package", lambda: stand_in)
    monkeypatch.setattr(attention, "is_installed", lambda: True)
    monkeypatch.setattr(attention, "missing_for", lambda *_: None)
    yield stand_in
    torch.compiler.reset()


def run(model: PreTrainedModel, kernel: Any, batch: PackedBatch) -> list[Tensor]:
    """Hidden states and the gradients of all weights."""
    enable_packed_attention(model, kernel)
    hidden: Tensor = model(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=no_mask(torch.device("cpu")),
        segments=segments_of(batch, kernel, heads=Heads.of(model.config)),
        use_cache=False,
    ).last_hidden_state
    return [hidden, *torch.autograd.grad((hidden**3).sum(), list(model.parameters()))]


def batch_of(lengths: tuple[int, ...]) -> PackedBatch:
    rows = [torch.randint(0, 97, (length,)) for length in lengths]
    return pack_samples([(row, row) for row in rows], [])


def grouped_llama(llama_config: LlamaConfig) -> LlamaModel:
    torch.manual_seed(3)
    values = {**llama_config.to_dict(), "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaModel(LlamaConfig.from_dict(values))


def windowed_mistral(window: int) -> MistralModel:
    torch.manual_seed(4)
    return MistralModel(
        MistralConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=window,
        )
    )


def test_grouped_heads_and_single_tokens_equal_sdpa(llama_config: LlamaConfig, package: Package) -> None:
    model, batch = grouped_llama(llama_config), batch_of(LENGTHS)
    for got, wanted in zip(run(model, "flash_attention_4", batch), run(model, "sdpa", batch), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert package.windows


@pytest.mark.parametrize(("window", "given"), [(3, 2), (12, 11), (13, None), (50, None)])
def test_sliding_windows_equal_sdpa(window: int, given: int | None, package: Package) -> None:
    model, batch = windowed_mistral(window), batch_of(LENGTHS)
    for got, wanted in zip(run(model, "flash_attention_4", batch), run(model, "sdpa", batch), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert set(package.windows) == {given}  # none where every sample fits


def test_compiled_layers_stay_whole_and_are_built_once(llama_config: LlamaConfig, package: Package) -> None:
    model = grouped_llama(llama_config)
    enable_packed_attention(model, "flash_attention_4")
    batches = [batch_of(lengths) for lengths in (LENGTHS, (5, 17, 3), (29,), (1, 2, 4, 8, 16))]
    wanted = [run(model, "flash_attention_4", batch) for batch in batches]
    counter = CompileCounterWithBackend("aot_eager")
    for layer in model.layers:
        layer.compile(dynamic=True, fullgraph=True, backend=counter)
    for batch, plain in zip(batches, wanted, strict=True):
        for a, b in zip(run(model, "flash_attention_4", batch), plain, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
        assert counter.frame_count <= 2  # the first layer's input is the embedding's result, the others' a layer's


def test_operators_fulfil_torchs_contract(package: Package) -> None:
    total, bounds = sum(LENGTHS), torch.tensor((0, *LENGTHS)).cumsum(0).int()
    q, k, v = (torch.randn(total, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    torch.library.opcheck(flash_attention_4._forward, (q, k, v, bounds, max(LENGTHS), -1, 0.3))
    torch.library.opcheck(flash_attention_4._forward, (q, k, v, bounds, max(LENGTHS), 4, 0.3))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Settings of a machine that the choice of a kernel looks at."""
    here = SimpleNamespace(capability=(9, 0), installed=True, error=0.002)

    def trial(*_: object) -> float:
        if isinstance(here.error, Exception):
            raise here.error
        return float(here.error)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: here.capability)
    monkeypatch.setattr(flash_attention_4, "is_installed", lambda: here.installed)
    monkeypatch.setattr(flash_attention_4, "_trial_error", trial)
    for cached in (flash_attention_4.missing_for, attention._log_fallback):
        cached.cache_clear()
    yield here
    flash_attention_4.missing_for.cache_clear()


def test_auto_takes_flash_attention_4_on_hopper(hopper: SimpleNamespace) -> None:
    assert choose_kernel("auto", CUDA, BF16, Heads(128, 4)) == "flash_attention_4"
    assert choose_kernel("auto", torch.device("cpu"), BF16, Heads(128, 4)) == "sdpa"
    assert choose_kernel("auto", CUDA, torch.float32, Heads(128, 4)) == "sdpa"


@pytest.mark.parametrize(
    ("changes", "heads", "reason"),
    [
        ({"capability": (8, 0)}, Heads(128, 1), "compute capability 8"),
        ({"installed": False}, Heads(128, 1), r"pip install 'ray-llava\[flash4\]'"),
        ({"error": RuntimeError("no such symbol")}, Heads(128, 1), "RuntimeError: no such symbol"),
        ({"error": 0.4}, Heads(128, 1), "differs from plain attention by 0.400"),
        ({"error": float("inf")}, Heads(128, 1), "differs from plain attention"),
        ({}, Heads(256, 1), "heads of at most 128"),
        ({}, Heads(100, 1), "in steps of 8"),
    ],
)
def test_auto_falls_back_with_one_line_in_the_log(
    changes: dict[str, Any],
    heads: Heads,
    reason: str,
    hopper: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vars(hopper).update(changes)
    with caplog.at_level(logging.WARNING):
        chosen = {choose_kernel("auto", CUDA, BF16, heads) for _ in range(3)}
    assert chosen == {"varlen"}
    (line,) = caplog.messages
    assert line.startswith("packed attention runs through varlen, not FlashAttention-4: ")
    assert re.search(reason, line)
    with pytest.raises(ValueError, match=reason):
        choose_kernel("flash_attention_4", CUDA, BF16, heads)


def test_name_that_is_not_installed_is_refused(llama_config: LlamaConfig) -> None:
    with pytest.raises(ValueError, match=r"install ray-llava\[flash4\]"):
        enable_packed_attention(LlamaModel(llama_config), "flash_attention_4")


@pytest.mark.parametrize(
    ("files", "has_2", "has_4"),
    [
        (["flash_attn/cute/interface.py"], False, True),
        (["flash_attn/__init__.py"], True, False),
        (["flash_attn/__init__.py", "flash_attn/cute/interface.py"], True, True),
        ([], False, False),
    ],
)
def test_packages_of_one_namespace_are_told_apart(
    files: list[str], has_2: bool, has_4: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for cached in (attention_kernels.has_flash_attn, flash_attention_4.is_installed):
        cached.cache_clear()
    try:
        assert attention_kernels.has_flash_attn() is has_2
        assert flash_attention_4.is_installed() is has_4
    finally:
        monkeypatch.undo()
        for cached in (attention_kernels.has_flash_attn, flash_attention_4.is_installed):
            cached.cache_clear()


REAL = pytest.mark.skipif(
    not (torch.cuda.is_available() and flash_attention_4.is_installed()), reason="needs a GPU and flash-attn-4"
)


@REAL
@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3, 64, 200])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 128), (12, 2, 128), (8, 2, 64), (5, 5, 32)])
@pytest.mark.parametrize("lengths", [(67, 1, 211, 31, 5, 127, 1), (1, 1, 1), (1531, 1, 640)])
def test_kernels_equal_dense_float32(
    window: int | None, heads: int, groups: int, width: int, lengths: tuple[int, ...]
) -> None:
    total, bounds = sum(lengths), torch.tensor((0, *lengths)).cumsum(0).int().cuda()
    leaves = [
        torch.randn(total, n, width, device=CUDA, dtype=BF16, requires_grad=True) for n in (heads, groups, groups)
    ]
    q, k, v = leaves
    upstream, scale = torch.randn(total, heads, width, device=CUDA, dtype=BF16), width**-0.5
    wanted, _ = dense(q, k, v, bounds, None if window is None else window - 1, scale)
    wanted_grads = torch.autograd.grad(wanted, leaves, upstream.float())
    assert flash_attention_4.missing_for(CUDA, BF16, width, heads // groups) is None
    got = flash_attention_4.flash_attention_4(q, k, v, bounds, max(lengths), window, scale)
    got_grads = torch.autograd.grad(got, leaves, upstream)
    left = -1 if window is None else window - 1
    fa2: Any = varlen_attn(q, k, v, bounds, bounds, max(lengths), max(lengths), window_size=(left, 0), scale=scale)
    fa2_grads = torch.autograd.grad(fa2, leaves, upstream)
    for a, b, c in zip((got, *got_grads), (wanted, *wanted_grads), (fa2, *fa2_grads), strict=True):
        mine, theirs = (float((x.float() - b.float()).norm()) for x in (a, c))
        assert mine <= 1.25 * theirs + 2e-3 * float(b.float().norm()) + 1e-5  # a gradient that is zero but for rounding
