"""Linear attention (gated delta rule) on packed rows: its state and its convolution start again with every sample.

transformers computes one sequence after the other in any case, so a loop over the samples costs no arithmetic.

Shapes: B rows, T tokens of a row, S tokens of all samples, D language-model width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.llava.attention_kernels import Segments


# Not traced: the lengths are Python numbers, and a compiled layer would be compiled again for every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def by_sample(
    attend: Callable[..., Tensor], hidden_states: Tensor, *, segments: Segments | None = None, **kwargs: Any
) -> Tensor:
    """Apply `attend` to each sample of a packed row [1, S, D], or to [B, T, D] as it is when there are no segments."""
    if segments is None:
        return attend(hidden_states, **kwargs)
    parts = hidden_states.split(list(segments.seqlens), dim=1)
    return torch.cat([attend(part, **kwargs) for part in parts], dim=1)
