"""The joined MLP against its three layers apart; on a GPU its kernels against the same arithmetic on the CPU."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from model.llava import fp8_mlp
from model.llava.fp8_linear import Fp8Linear, quantize_layers
from model.llava.fp8_mlp import Fp8GatedMlp, join_gated_mlps
from tests.model.llava.test_fp8_linear import DEVICES, error


def layers_of(activation: str = "silu", *, learns: bool = False, bias: bool = False) -> nn.ModuleList:
    torch.manual_seed(1)
    config = LlamaConfig(hidden_size=64, intermediate_size=112, hidden_act=activation, mlp_bias=bias)
    layer = nn.ModuleDict({"mlp": LlamaMLP(config)}).bfloat16().requires_grad_(learns)
    return nn.ModuleList([layer])


def output_and_gradient(mlp: nn.Module, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs, upstream = (torch.randn(3, 7, 64, generator=generator).to(device).bfloat16() for _ in range(2))
    out = mlp(inputs.requires_grad_())
    return [out, *torch.autograd.grad(out, [inputs], upstream * 1e-6)]


@pytest.mark.parametrize("device", DEVICES)
def test_joined_mlp_equals_its_layers_apart(device: str) -> None:
    exact = layers_of()
    apart, joined = (layers_of().to(device) for _ in range(2))
    quantize_layers(apart)
    quantize_layers(joined)
    join_gated_mlps(joined)
    mlp = joined[0].get_submodule("mlp")
    assert isinstance(mlp, Fp8GatedMlp)
    results = [output_and_gradient(part, device) for part in (mlp, apart[0].get_submodule("mlp"))]
    wanted = output_and_gradient(exact[0].get_submodule("mlp").float().bfloat16())
    for got, other, reference in zip(*results, wanted, strict=True):
        assert error(got.cpu(), reference) < 1.1 * error(other.cpu(), reference) + 1e-3
        assert (got.dtype, got.shape) == (other.dtype, other.shape)


def test_only_frozen_silu_without_biases_is_joined() -> None:
    for layers in (layers_of("gelu"), layers_of(learns=True), layers_of(bias=True)):
        quantize_layers(layers)
        join_gated_mlps(layers)
        assert type(layers[0].get_submodule("mlp")) is LlamaMLP
    plain = layers_of()
    join_gated_mlps(plain)
    assert type(plain[0].get_submodule("mlp")) is LlamaMLP


def test_joined_mlp_keeps_gate_and_up_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of()
    quantize_layers(layers)
    join_gated_mlps(layers)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    inputs = torch.randn(5, 64).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layers[0].get_submodule("mlp")(inputs)
    activations = [tuple(tensor.shape) for tensor in kept if tensor.dtype == torch.bfloat16]
    assert activations == [(5, 112), (5, 112)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("width", [48, 112, 1040])
def test_operators_equal_plain_arithmetic(device: str, rows: int, width: int) -> None:
    torch.manual_seed(3)
    gate, up, upstream = (torch.randn(rows, width, device=device).bfloat16() for _ in range(3))
    upstream = upstream * 1e-8
    exact = [tensor.double().requires_grad_() for tensor in (gate, up)]
    inner = nn.functional.silu(exact[0]) * exact[1]
    wanted = [inner, *torch.autograd.grad(inner, exact, upstream.double())]
    values, scales = fp8_mlp._gate_to_fp8(gate, up)
    gate_values, gate_scales, up_values, up_scales = fp8_mlp._gate_gradients_to_fp8(upstream, gate, up)
    got = [(values, scales), (gate_values, gate_scales), (up_values, up_scales)]
    for (part, factors), reference in zip(got, wanted, strict=True):
        assert error(part.float() * factors, reference) < 0.035
        assert torch.equal(part.float().abs().amax(-1), torch.full((rows,), 448.0, device=device))


def test_operators_fulfil_torchs_contract() -> None:
    gate, up, upstream = (torch.randn(5, 48).bfloat16() for _ in range(3))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(fp8_mlp._gate_to_fp8, (gate, up), test_utils=checks)
    torch.library.opcheck(fp8_mlp._gate_gradients_to_fp8, (upstream, gate, up), test_utils=checks)


def test_compiled_mlp_is_one_graph_for_all_lengths() -> None:
    layers = layers_of()
    quantize_layers(layers)
    join_gated_mlps(layers)
    mlp = layers[0].get_submodule("mlp")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mlp, dynamic=True, fullgraph=True, backend=counter)
    for length in (5, 19, 2):
        inputs = torch.randn(1, length, 64).bfloat16()
        wanted = mlp(inputs)
        assert error(compiled(inputs), wanted) < 0.02
    assert counter.frame_count == 1
    torch.compiler.reset()
    assert all(isinstance(part, Fp8Linear) for part in mlp.children())
