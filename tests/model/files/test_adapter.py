from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.files.adapter import load_projector, projector_state, read_adapter, write_projector


def projector(width: int = 5, *, newline: float | None = None) -> Any:
    """A decoder body with nothing but what projector pretraining learns."""
    body: Any = nn.Module()
    body.mm_projector = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
    body.image_newline = None if newline is None else nn.Parameter(torch.full((width,), newline))
    return body


def test_write_and_load_round_trip_under_published_names(tmp_path: Path) -> None:
    source, target = projector(), projector()
    path = write_projector(projector_state(source), tmp_path / "run")
    assert path == tmp_path / "run" / "mm_projector.safetensors"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert sorted(read_adapter(path)) == [
        f"model.mm_projector.{n}" for n in ("0.bias", "0.weight", "2.bias", "2.weight")
    ]
    load_projector(target, tmp_path / "run")
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
def test_load_original_bin_with_embeddings(tmp_path: Path, prefix: str) -> None:
    source, target = projector(), projector()
    state = {prefix + name: tensor for name, tensor in source.mm_projector.state_dict().items()}
    torch.save({**state, "model.embed_tokens.weight": torch.zeros(2, 5)}, tmp_path / "mm_projector.bin")
    load_projector(target, tmp_path)
    assert torch.equal(target.state_dict()["mm_projector.2.weight"], source.state_dict()["mm_projector.2.weight"])


def test_load_bin_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model.mm_projector.0.weight": Path("x")}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="holds something other than tensors"):
        load_projector(projector(), tmp_path)


def test_load_misfit_names_every_tensor(tmp_path: Path) -> None:
    state = {
        "model.mm_projector.0.weight": torch.zeros(5, 4),
        "model.mm_projector.0.bias": torch.zeros(5),
        "model.mm_projector.4.bias": torch.zeros(5),
        "model.image_newline": torch.zeros(5),
    }
    torch.save(state, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="does not fit the projector Sequential") as error:
        load_projector(projector(), tmp_path)
    for part in (
        "missing mm_projector.2.weight [5, 5]",
        "missing mm_projector.2.bias [5]",
        "unexpected mm_projector.4.bias [5]",
        "unexpected image_newline [5]",
        "mm_projector.0.weight has shape [5, 4], expected [5, 3]",
    ):
        assert part in str(error.value)


def test_image_newline_is_saved_and_loaded(tmp_path: Path) -> None:
    target = projector(newline=0.0)
    load_projector(target, write_projector(projector_state(projector(newline=7.0)), tmp_path))
    assert target.image_newline.tolist() == [7.0] * 5


def test_image_newline_that_a_file_lacks_keeps_its_value(tmp_path: Path) -> None:
    source, target = projector(), projector(newline=3.0)
    load_projector(target, write_projector(projector_state(source), tmp_path))
    assert target.image_newline.tolist() == [3.0] * 5
    assert torch.equal(target.mm_projector[0].weight, source.mm_projector[0].weight)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mm_projector\.safetensors does not exist"):
        read_adapter(tmp_path)
