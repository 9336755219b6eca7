"""Who may read a model: every user that the umask allows."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.files.file_mode import follow_umask
from model.hub.weights import LlavaModel, save_llava, save_projector


@pytest.fixture(params=[0o022, 0o007])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_file_of_a_model_may_be_read_as_the_umask_says(llava: LlavaModel, tmp_path: Path, umask: int) -> None:
    save_llava(llava, tmp_path)
    save_projector(llava, tmp_path)
    files = {path.name: mode(path) for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "mm_projector.safetensors"} <= set(files)
    assert set(files.values()) == {0o666 & ~umask}


def test_one_file_is_changed_and_its_neighbours_are_not(tmp_path: Path, umask: int) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
        (tmp_path / name).chmod(0o600)
    follow_umask(tmp_path / "a.safetensors")
    assert [mode(tmp_path / f"{name}.safetensors") for name in "ab"] == [0o666 & ~umask, 0o600]
