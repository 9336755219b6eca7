from types import SimpleNamespace

import pytest
import torch

from model.projector import IdentityMap, build_vision_projector


def config(kind: str, vision: int = 11, width: int = 13) -> SimpleNamespace:
    return SimpleNamespace(mm_projector_type=kind, mm_hidden_size=vision, hidden_size=width)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("linear", ["weight", "bias"]),
        ("mlp1x_gelu", ["0.weight", "0.bias"]),
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


@pytest.mark.parametrize("kind", ["mlp2x_gel", "mlp2x_geluuu", "mlp0x_gelu", "xmlp2x_gelu", "linear ", "Linear", ""])
def test_build_unknown_type_lists_known(kind: str) -> None:
    with pytest.raises(ValueError, match=r"known: linear, mlpNx_gelu.*identity"):
        build_vision_projector(config(kind))
