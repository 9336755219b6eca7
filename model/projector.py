"""Projectors from vision features to language-model embeddings, built by name.

Parameter names follow published LLaVA checkpoints (`mm_projector.0.weight`, `.2.weight`, ...); loading is in `weights`.
Source: LLaVA `multimodal_projector/builder.py`, re-written with anchored matching.

Shapes: N images or slots, P features per image, V vision width, D language-model width.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

from torch import Tensor, nn


class ProjectorConfig(Protocol):
    """What a projector needs to know; satisfied by every LLaVA model config."""

    mm_projector_type: str
    mm_hidden_size: int
    hidden_size: int


class IdentityMap(nn.Module):
    """Hand the features through unchanged (`V == D`)."""

    def forward(self, features: Tensor) -> Tensor:
        """Return `features` [..., V]."""
        return features


def _build_linear(config: ProjectorConfig, _match: re.Match[str]) -> nn.Module:
    return nn.Linear(config.mm_hidden_size, config.hidden_size)


def _build_mlp_gelu(config: ProjectorConfig, match: re.Match[str]) -> nn.Module:
    depth = int(match["depth"])
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(1, depth):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)


def _build_identity(config: ProjectorConfig, _match: re.Match[str]) -> nn.Module:
    if config.mm_hidden_size != config.hidden_size:
        raise ValueError(
            f"mm_projector_type 'identity' needs equal widths, but the tower has {config.mm_hidden_size} and the "
            f"language model {config.hidden_size}; use 'linear' or 'mlp2x_gelu'"
        )
    return IdentityMap()


_BUILDERS: Final[dict[str, Callable[[ProjectorConfig, re.Match[str]], nn.Module]]] = {
    r"linear": _build_linear,
    r"mlp(?P<depth>[1-9]\d*)x_gelu": _build_mlp_gelu,
    r"identity": _build_identity,
}
"""Full-match pattern of `mm_projector_type` -> builder. A new projector is one function and one line here."""

_KNOWN: Final = "linear, mlpNx_gelu (N >= 1, e.g. mlp2x_gelu), identity"


def build_vision_projector(config: ProjectorConfig) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names, with fresh random weights.

    Raises:
        ValueError: the type is unknown, or `identity` is asked for between different widths.
    """
    for pattern, build in _BUILDERS.items():
        if match := re.fullmatch(pattern, config.mm_projector_type):
            return build(config, match)
    raise ValueError(f"unknown mm_projector_type {config.mm_projector_type!r}; known: {_KNOWN}")
