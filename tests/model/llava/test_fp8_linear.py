"""FP8 layers on the CPU, which multiplies the quantised values in float32; on a GPU with its own units."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaConfig, LlamaModel

from model.llava.fp8_linear import (
    FP8,
    Fp8Linear,
    fp8_layers,
    linear_layers,
    multiply,
    quantize_layers,
    quantize_rows,
    refresh_learning_layers,
)

ROUNDING = 2**-4
"""Largest relative error of a number in e4m3: half of the last of three bits."""
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e9])
def test_rows_keep_their_values_whatever_their_size(dtype: torch.dtype, size: float) -> None:
    torch.manual_seed(1)
    rows = (torch.randn(7, 48) * torch.logspace(-3, 3, 7)[:, None] * size).to(dtype)
    values, scales = quantize_rows(rows)
    assert (values.dtype, scales.shape) == (FP8, (7, 1))
    restored = values.float() * scales
    smallest = rows.float().abs().amax(-1, keepdim=True) * 2**-15  # below it numbers have fewer bits
    assert bool(((restored - rows.float()).abs() <= ROUNDING * rows.float().abs() + smallest).all())
    assert torch.equal(restored.abs().amax(-1), restored.abs().amax(-1).clamp(max=rows.float().abs().amax() * 1.01))


def test_rows_of_zeros_stay_zeros_and_nan_stays_nan() -> None:
    rows = torch.zeros(3, 16)
    rows[1], rows[2, 5] = 1e-38, float("nan")
    values, scales = quantize_rows(rows)
    assert torch.equal(values[:2].float(), torch.zeros(2, 16))
    assert bool(torch.isfinite(scales[:2]).all())
    assert bool((values.float() * scales)[2].isnan().any())


@pytest.mark.parametrize("device", DEVICES)
def test_products_are_those_of_the_quantised_values(device: str) -> None:
    torch.manual_seed(2)
    left, right = (quantize_rows(torch.randn(n, 160, device=device)) for n in (37, 48))
    wanted = (left.values.double() * left.scales) @ (right.values.double() * right.scales).T
    assert error(multiply(left, right), wanted) < 3e-3  # bfloat16 of the result


def layer_of(*, learns: bool, bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Linear, Fp8Linear]:
    torch.manual_seed(3)
    linear = nn.Linear(64, 48, bias=bias, dtype=dtype).requires_grad_(learns)
    return linear, Fp8Linear(linear)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("device", DEVICES)
def test_output_and_gradients_are_near_float32(learns: bool, bias: bool, dtype: torch.dtype, device: str) -> None:
    linear, layer = (part.to(device) for part in layer_of(learns=learns, bias=bias, dtype=dtype))
    inputs = torch.randn(2, 19, 64, device=device, dtype=dtype, requires_grad=True)
    upstream = torch.randn(2, 19, 48, device=device) * 1e-7  # as small as those of a mean over many tokens
    out = layer(inputs)
    assert (out.dtype, out.shape) == (torch.bfloat16, (2, 19, 48))
    trained = [layer.weight] if learns else []
    got = torch.autograd.grad(out, [inputs, *trained], upstream.to(out.dtype))
    exact = nn.Linear(64, 48, bias=bias, device=device).requires_grad_(learns)
    exact.load_state_dict({name: tensor.float() for name, tensor in linear.state_dict().items()})
    exact_inputs = inputs.detach().float().requires_grad_()
    wanted_out = exact(exact_inputs)
    wanted = torch.autograd.grad(wanted_out, [exact_inputs, *([exact.weight] if learns else [])], upstream)
    assert error(out, wanted_out) < 0.05
    assert error(got[0], wanted[0]) < 0.05
    assert got[0].dtype == inputs.dtype
    if learns:
        assert error(got[1], wanted[1]) < 5e-3  # its product runs in bfloat16
        assert got[1].dtype == linear.weight.dtype


def test_frozen_layer_holds_two_bytes_per_weight_and_keeps_no_activations() -> None:
    _, layer = layer_of(learns=False)
    assert list(layer.parameters()) == []
    assert list(layer.state_dict()) == []
    held = sum(tensor.nbytes for tensor in layer.buffers())
    assert held == 2 * 64 * 48 + 4 * (64 + 48)
    kept: list[torch.dtype] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.dtype)
        return tensor

    inputs = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(inputs)
    assert sorted(map(str, kept)) == ["torch.float32", "torch.float8_e4m3fn"]  # the weight by column, its scales


def test_learning_layer_follows_its_weight_when_refreshed() -> None:
    linear, layer = layer_of(learns=True, bias=True)
    assert layer.state_dict().keys() == linear.state_dict().keys()
    inputs = torch.randn(5, 64, dtype=torch.bfloat16)
    before = layer(inputs)
    with torch.no_grad():
        layer.weight.mul_(3.0)
    assert torch.equal(layer(inputs), before)
    refresh_learning_layers(nn.Sequential(layer), compiled=False)
    assert layer.bias is not None
    assert error(layer(inputs) - layer.bias, 3 * (before - layer.bias)) < 0.03


@pytest.fixture
def decoder() -> LlamaModel:
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: LlamaModel = LlamaModel(config).bfloat16()
    return model.requires_grad_(False)


def hidden_and_gradient(model: LlamaModel, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    embeds = torch.randn(1, length, 64, generator=generator).bfloat16().requires_grad_()
    hidden = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    upstream = torch.randn(hidden.shape, generator=generator).bfloat16()
    return [hidden, *torch.autograd.grad(hidden, [embeds], upstream)]


def test_all_linear_layers_of_a_decoder_are_replaced_and_nothing_else(decoder: LlamaModel) -> None:
    exact = hidden_and_gradient(decoder, 29)
    names = {name for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
    quantize_layers(decoder.layers)
    assert {name for name, part in decoder.named_modules() if isinstance(part, Fp8Linear)} == names
    assert len(list(fp8_layers(decoder))) == len(list(linear_layers(decoder))) == 7 * 3
    for got, wanted in zip(hidden_and_gradient(decoder, 29), exact, strict=True):
        assert 1e-4 < error(got, wanted) < 0.1


def test_adapters_stay_as_they_are(decoder: LlamaModel) -> None:
    import peft  # an extra, which the development environment has

    peft.inject_adapter_in_model(peft.LoraConfig(r=16, target_modules=["q_proj", "up_proj"]), decoder)
    quantize_layers(decoder.layers)
    left = {name.rpartition("_proj.")[2] for name, part in decoder.named_modules() if type(part) is nn.Linear}
    assert left == {"lora_A.default", "lora_B.default"}
    assert len(list(fp8_layers(decoder))) == 7 * 3


def test_width_that_does_not_fit_is_named() -> None:
    layers = nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(64, 64), "o_proj": nn.Linear(64, 40)})])
    with pytest.raises(ValueError, match=r"multiples of 16, decoder layer 0\.o_proj is 64 x 40; set .*null"):
        quantize_layers(layers)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("learns", [False, True])
def test_compiled_layers_agree_and_are_built_once(
    learns: bool, decoder: LlamaModel, fresh_compiler: Callable[[], Any]
) -> None:
    decoder.requires_grad_(learns)
    quantize_layers(decoder.layers)
    lengths = (29, 3, 17, 40)
    wanted = [hidden_and_gradient(decoder, length) for length in lengths]
    counter = CompileCounterWithBackend("aot_eager")
    for layer in decoder.layers:
        layer.compile(dynamic=True, fullgraph=True, backend=counter)
    for length, plain in zip(lengths, wanted, strict=True):
        for a, b in zip(hidden_and_gradient(decoder, length), plain, strict=True):
            assert error(a, b) < 0.05  # another order of roundings
    assert counter.frame_count <= 2
