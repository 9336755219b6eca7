from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.vision.projector import IdentityMap, build_vision_projector


def config(kind: str, vision: int = 11, width: int = 13) -> SimpleNamespace:
    return SimpleNamespace(mm_projector_type=kind, mm_hidden_size=vision, hidden_size=width)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("linear", ["weight", "bias"]),
        ("mlp1x_gelu", ["0.weight", "0.bias"]),
        ("ln_linear", ["0.weight", "0.bias", "1.weight", "1.bias"]),
        ("ln_mlp2x_gelu", ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]),
        (
            "mlp1x_res1x_gelu",
            [f"{name}.{kind}" for name in ("0", "1.pre_norm", "1.proj.0", "1.proj.2") for kind in ("weight", "bias")],
        ),
        ("mlp2x_gelu", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("mlp3x_gelu", ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
    ],
)
def test_build_known_type_has_published_parameter_names(kind: str, names: list[str]) -> None:
    projector = build_vision_projector(config(kind))
    assert list(projector.state_dict()) == names
    assert projector(torch.zeros(2, 3, 11)).shape == (2, 3, 13)


def test_build_identity_returns_features_unchanged() -> None:
    projector = build_vision_projector(config("identity", 7, 7))
    features = torch.randn(2, 7)
    assert isinstance(projector, IdentityMap)
    assert projector(features) is features


def test_build_identity_between_widths_refuses() -> None:
    with pytest.raises(ValueError, match="tower has 11 and the language model 13"):
        build_vision_projector(config("identity"))


@pytest.mark.parametrize(
    "kind",
    [
        *("mlp2x_gel", "mlp2x_geluuu", "mlp0x_gelu", "xmlp2x_gelu", "linear ", "Linear", ""),
        *("ln_mlp0x_gelu", "mlp2x_res0x_gelu", "pool1_linear", "pool2_"),
    ],
)
def test_build_unknown_type_lists_known(kind: str) -> None:
    with pytest.raises(ValueError, match=r"known: linear, ln_linear, mlpNx_gelu.*identity"):
        build_vision_projector(config(kind))


def test_residual_blocks_add_to_the_normalised_features() -> None:
    projector: Any = build_vision_projector(config("mlp1x_res1x_gelu"))
    first, block = projector
    features = torch.randn(3, 11)
    normalised = torch.nn.functional.layer_norm(first(features), (13,))
    assert torch.allclose(block(first(features)), normalised + block.proj(normalised), atol=1e-6)
