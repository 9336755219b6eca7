"""A resampler: a fixed number of learnt queries read any number of features of an image.

Source: the perceiver resampler of Alayrac et al., "Flamingo", NeurIPS 2022, appendix A.1.1; own implementation.

Shapes: N images or tiles, P features each, Q queries, V vision width, D language-model width, A heads of 64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEAD_WIDTH = 64


class Resampler(nn.Module):
    """Q features of width D per image, by cross attention of queries to the image's features."""

    def __init__(self, num_queries: int, num_layers: int, vision_width: int, width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, vision_width) * vision_width**-0.5)
        self.layers = nn.ModuleList(ResamplerLayer(vision_width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(vision_width)
        self.out = nn.Linear(vision_width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Resample features [N, P, V] to [N, Q, D].

        Raises:
            ValueError: features of single images cannot be told apart.
        """
        if features.ndim != 3:
            raise ValueError(f"a resampler reads features image by image [N, P, V], found {list(features.shape)}")
        latents = self.queries.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        out: Tensor = self.out(self.norm(latents))
        return out


class ResamplerLayer(nn.Module):
    """Cross attention to the features and the queries themselves, then two linear layers, each added to its input."""

    def __init__(self, width: int):
        super().__init__()
        inner = max(1, width // _HEAD_WIDTH) * _HEAD_WIDTH
        self.norm_features = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Update latents [N, Q, V] from features [N, P, V]."""
        queries = self.norm_latents(latents)
        keys = torch.cat([self.norm_features(features), queries], dim=1)
        q, k, v = (
            rows.unflatten(-1, (-1, _HEAD_WIDTH)).transpose(1, 2)
            for rows in (self.q_proj(queries), self.k_proj(keys), self.v_proj(keys))
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        latents = latents + self.o_proj(attended)
        out: Tensor = latents + self.mlp(latents)
        return out
