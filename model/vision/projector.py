"""Projectors from vision features to language-model embeddings, built by name.

Parameter names follow published LLaVA checkpoints (`mm_projector.0.weight`, `.2.weight`, ...); loading is in `weights`.
Sources: LLaVA and LLaVA-NeXT `multimodal_projector/builder.py`, InternVL `mlp1`; own code, anchored matching.

Shapes: N images or slots, P features per image, V vision width, D language-model width.
"""

import re
from collections.abc import Callable
from typing import Final, Protocol

from torch import Tensor, nn

from model.vision.feature_merge import split_projector_type
from model.vision.resampler import Resampler


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


class ResidualBlock(nn.Module):
    """LayerNorm, then two linear layers around a GELU, added to the normalised input."""

    def __init__(self, width: int):
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.proj = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Transform `features` [..., D]."""
        normalised = self.pre_norm(features)
        out: Tensor = normalised + self.proj(normalised)
        return out


def _build_linear(config: ProjectorConfig, _match: re.Match[str]) -> nn.Module:
    return nn.Linear(config.mm_hidden_size, config.hidden_size)


def _build_ln_linear(config: ProjectorConfig, match: re.Match[str]) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(config.mm_hidden_size), _build_linear(config, match))


def _build_mlp_gelu(config: ProjectorConfig, match: re.Match[str]) -> nn.Module:
    layers: list[nn.Module] = [nn.LayerNorm(config.mm_hidden_size)] if match["norm"] or match["norm_behind"] else []
    layers.append(nn.Linear(config.mm_hidden_size, config.hidden_size))
    for _ in range(1, int(match["depth"])):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)


def _build_mlp_residual(config: ProjectorConfig, match: re.Match[str]) -> nn.Module:
    mlp = _build_mlp_gelu(config, re.fullmatch(_MLP_GELU, f"mlp{match['depth']}x_gelu"))  # type: ignore[arg-type]
    blocks = (ResidualBlock(config.hidden_size) for _ in range(int(match["blocks"])))
    return nn.Sequential(*mlp.children(), *blocks)


def _build_identity(config: ProjectorConfig, _match: re.Match[str]) -> nn.Module:
    if config.mm_hidden_size != config.hidden_size:
        raise ValueError(
            f"mm_projector_type 'identity' needs equal widths, but the tower has {config.mm_hidden_size} and the "
            f"language model {config.hidden_size}; use 'linear' or 'mlp2x_gelu'"
        )
    return IdentityMap()


def _build_resampler(config: ProjectorConfig, match: re.Match[str]) -> nn.Module:
    return Resampler(int(match["queries"]), int(match["layers"]), config.mm_hidden_size, config.hidden_size)


_RESAMPLER: Final = r"resampler(?P<queries>[1-9]\d*)_(?P<layers>[1-9]\d*)"
_MLP_GELU: Final = r"(?P<norm>ln_)?mlp(?P<depth>[1-9]\d*)x_gelu(?P<norm_behind>_ln)?"
_BUILDERS: Final[dict[str, Callable[[ProjectorConfig, re.Match[str]], nn.Module]]] = {
    r"linear": _build_linear,
    r"ln_linear": _build_ln_linear,
    _MLP_GELU: _build_mlp_gelu,
    r"mlp(?P<depth>[1-9]\d*)x_res(?P<blocks>[1-9]\d*)x_gelu": _build_mlp_residual,
    r"identity": _build_identity,
    _RESAMPLER: _build_resampler,
}
"""Full-match pattern of `mm_projector_type` -> builder. A new projector is one function and one line here."""

_KNOWN: Final = (
    "linear, ln_linear, mlpNx_gelu (N >= 1, e.g. mlp2x_gelu), ln_mlpNx_gelu (InternVL: mlpNx_gelu_ln), "
    "mlpNx_resMx_gelu (M >= 1), identity, "
    "resamplerQ_N (Q features per image, N layers, e.g. resampler64_2); "
    "each also after poolR_ or shuffleR_, which merge R x R patches (e.g. shuffle2_ln_mlp2x_gelu)"
)


def num_projected_features(projector_type: str, num_features: int) -> int:
    """Return how many features the projector makes of an image's `num_features` from the tower."""
    _, rest = split_projector_type(projector_type)
    match = re.fullmatch(_RESAMPLER, rest)
    return num_features if match is None else int(match["queries"])


def keeps_grid(projector_type: str) -> bool:
    """Whether features after the projector keep the positions of their patches; a resampler's queries have none."""
    _, rest = split_projector_type(projector_type)
    return re.fullmatch(_RESAMPLER, rest) is None


def build_vision_projector(config: ProjectorConfig) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names, with fresh random weights.

    Raises:
        ValueError: the type is unknown, or `identity` is asked for between different widths.
    """
    _, projector_type = split_projector_type(config.mm_projector_type)
    for pattern, build in _BUILDERS.items():
        if match := re.fullmatch(pattern, projector_type):
            return build(config, match)
    raise ValueError(f"unknown mm_projector_type {config.mm_projector_type!r}; known: {_KNOWN}")
