"""Linear layers of the decoder whose matrix products run in 8-bit floats (e4m3), with one scale for every row.

Weights are quantised once, by row for the product and by column for the gradient of the input, and kept; activations
and gradients are quantised as they come. A weight that learns keeps its own type too, is quantised again
before every optimizer step, and gets its gradient from a product of bfloat16. Embeddings, output head, projector and
adapters stay as they are. Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.

Shapes: M rows of activations, K input width, N output width.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

FP8: Final = torch.float8_e4m3fn
_WIDTH_STEP: Final = 16
"""Both widths must be multiples of it, which the matrix units ask for."""
MIN_CAPABILITY: Final = (9, 0)
"""CUDA compute capability of the first GPUs with such products by row: Hopper."""
_ADAPTERS: Final = "lora_"


class Quantized(NamedTuple):
    """A matrix as e4m3 with float32 scales: `values * scales` is the matrix."""

    values: Tensor
    """`[R, C]` e4m3."""
    scales: Tensor
    """`[R, 1]` float32."""


def quantize_rows(matrix: Tensor) -> Quantized:
    """Quantise every row of a matrix by its own largest element; rows that are all below 1e-30 become zeros."""
    largest = matrix.abs().amax(dim=-1, keepdim=True).float()
    # Numbers, not constants of the module: compiled for dynamic shapes, those would become inputs of the graph.
    scales = largest.clamp(min=1e-30) / 448.0  # the largest number of e4m3
    return Quantized((matrix.float() / scales).to(FP8), scales)


def multiply(left: Quantized, right: Quantized) -> Tensor:
    """Return `left @ right.T` `[M, N]` bfloat16 of `[M, K]` and `[N, K]`.

    A CPU computes in float32 with the quantised values: it shows what quantisation costs, not the speed.
    """
    if left.values.is_cuda:
        return torch._scaled_mm(
            left.values,
            right.values.t(),
            scale_a=left.scales,
            scale_b=right.scales.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    product = left.values.float() @ right.values.float().T
    return (product * left.scales * right.scales.T).bfloat16()


class Fp8Linear(nn.Module):
    """Takes the place of a linear layer; same names of weight and bias where they learn."""

    by_row: Tensor
    by_row_scales: Tensor
    by_column: Tensor
    by_column_scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise a layer; a frozen weight is let go."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.learns = linear.weight.requires_grad
        self.bias: nn.Parameter | None = linear.bias
        if self.learns:
            self.weight = linear.weight
        for name, tensor in zip(_BUFFERS, _quantize_both(linear.weight.detach()), strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The quantised weight: values and scales by row, then by column."""
        return self.by_row, self.by_row_scales, self.by_column, self.by_column_scales

    @torch.no_grad()
    def refresh(self, *, compiled: bool = False) -> None:
        """Quantise the weight again after it has changed."""
        quantize = _compiled_quantize_both() if compiled else _quantize_both
        for name, tensor in zip(_BUFFERS, quantize(self.weight.detach()), strict=True):
            self.get_buffer(name).copy_(tensor)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs @ weight.T + bias`, bfloat16; float8 products in both directions."""
        if self.learns:
            out: Tensor = _LearningProduct.apply(inputs, self.weight, *self.weights)  # type: ignore[no-untyped-call]
        else:
            out = _FrozenProduct.apply(inputs, *self.weights)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def extra_repr(self) -> str:
        """Describe the layer as `nn.Linear` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, learns={self.learns}"


_BUFFERS: Final = ("by_row", "by_row_scales", "by_column", "by_column_scales")


def _quantize_both(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_column = quantize_rows(weight.T)
    return (*quantize_rows(weight), by_column.values.contiguous(), by_column.scales.contiguous())


@lru_cache(maxsize=1)
def _compiled_quantize_both() -> Any:
    return torch.compile(_quantize_both, dynamic=False)


class _FrozenProduct(torch.autograd.Function):
    """Keeps nothing of the activations for backward: only their gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, by_row: Tensor, by_row_scales: Tensor, by_column: Tensor, by_column_scales: Tensor
    ) -> Tensor:
        ctx.save_for_backward(by_column, by_column_scales)
        ctx.dtype = inputs.dtype
        return _along_rows(inputs, Quantized(by_row, by_row_scales))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        by_column = Quantized(*ctx.saved_tensors)
        return _along_rows(grad_outputs[0], by_column).to(ctx.dtype), None, None, None, None


class _LearningProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        by_row: Tensor,
        by_row_scales: Tensor,
        by_column: Tensor,
        by_column_scales: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(inputs, by_column, by_column_scales)
        ctx.weight_dtype = weight.dtype
        return _along_rows(inputs, Quantized(by_row, by_row_scales))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *by_column = ctx.saved_tensors
        (upstream,) = grad_outputs
        rows, upstream_rows = inputs.reshape(-1, inputs.shape[-1]), upstream.reshape(-1, upstream.shape[-1])
        weight_grad = (upstream_rows.T.to(torch.bfloat16) @ rows.to(torch.bfloat16)).to(ctx.weight_dtype)
        inputs_grad = _along_rows(upstream, Quantized(*by_column)).to(inputs.dtype)
        return inputs_grad, weight_grad, None, None, None, None


def _along_rows(inputs: Tensor, weight: Quantized) -> Tensor:
    out = multiply(quantize_rows(inputs.reshape(-1, inputs.shape[-1])), weight)
    return out.view(*inputs.shape[:-1], out.shape[-1])


def check_widths(layers: nn.ModuleList) -> None:
    """Refuse decoder layers with a linear layer that FP8 products do not take; weights are not looked at.

    Raises:
        ValueError: a width is not a multiple of 16; names the layer.
    """
    for place in list(_linear_places(layers)):
        wide = place.layer
        if wide.in_features % _WIDTH_STEP or wide.out_features % _WIDTH_STEP:
            raise ValueError(
                f"training.linear_precision=fp8 needs widths in multiples of {_WIDTH_STEP}, decoder layer {place.path} "
                f"is {wide.in_features} x {wide.out_features}; set training.linear_precision=null"
            )


def quantize_layers(layers: nn.ModuleList) -> None:
    """Put FP8 layers in the place of all linear layers of decoder layers, adapters excepted; on their device.

    Raises:
        ValueError: the GPU has no such units, or a width does not fit; names the layer.
    """
    device = next(layers.parameters()).device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        raise ValueError(f"FP8 products by row need a Hopper GPU or newer, found {torch.cuda.get_device_name(device)}")
    check_widths(layers)
    for place in list(_linear_places(layers)):
        setattr(place.parent, place.name, Fp8Linear(place.layer))


class _Place(NamedTuple):
    parent: nn.Module
    name: str
    path: str
    layer: nn.Linear


def _linear_places(layers: nn.ModuleList) -> Iterator[_Place]:
    for parent_name, parent in layers.named_modules():
        for name, child in parent.named_children():
            path = f"{parent_name}.{name}"
            if type(child) is nn.Linear and _ADAPTERS not in path:
                yield _Place(parent, name, path, child)


def fp8_layers(model: nn.Module) -> Iterator[Fp8Linear]:
    """Yield the FP8 layers of a model."""
    return (module for module in model.modules() if isinstance(module, Fp8Linear))


def linear_layers(module: nn.Module) -> Iterator[nn.Linear | Fp8Linear]:
    """Yield the linear layers of a module, in whichever precision they compute."""
    for part in module.modules():
        if isinstance(part, nn.Linear | Fp8Linear):
            yield part


def refresh_learning_layers(model: nn.Module, *, compiled: bool) -> None:
    """Quantise the weights that learn again; to be called before the first forward pass after an update."""
    for layer in fp8_layers(model):
        if layer.learns:
            layer.refresh(compiled=compiled)


def learns(layer: nn.Linear | Fp8Linear) -> bool:
    """Whether the weight of a layer is trained."""
    return layer.learns if isinstance(layer, Fp8Linear) else layer.weight.requires_grad
