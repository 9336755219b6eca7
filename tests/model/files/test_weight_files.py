"""Weight files as broken downloads leave them: every one is named, whatever reads it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.files.adapter import read_adapter
from model.files.checkpoint_files import read_tensors
from model.files.weight_files import read_shapes
from model.hub.weights import build_llava
from tests.model.tiny import save_tiny_backbone, save_tiny_tower

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 135\n"
STATE = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.zeros(7, dtype=torch.bfloat16)}
SHAPES = {"a.weight": (3, 4), "b": (7,)}


def write(file: Path, *, legacy: bool = False) -> Path:
    if file.suffix == ".safetensors":
        save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=not legacy)
    return file


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "pointer": (lambda data: POINTER, "is a Git LFS pointer"),
    "empty": (lambda data: b"", "is empty"),
    "page": (lambda data: b"<!DOCTYPE html><html>404</html>", "is a page of HTML"),
    "half": (lambda data: data[: len(data) // 2], "is cut|cannot be read|no readable"),
    "one byte short": (lambda data: data[:-1], "is cut|cannot be read"),
    "header only": (lambda data: data[:9], "is cut|no readable safetensors header"),
    "noise": (lambda data: b"\xff" * 64, "is cut|no readable safetensors header"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    file = write(tmp_path / name)
    file.write_bytes(change(file.read_bytes()))
    for read in (read_shapes, lambda path: read_tensors(str(path.parent), lambda _: True), read_adapter):
        with pytest.raises(ValueError, match=rf"{name} .*({message})|{name} ({message})"):
            read(file)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_shapes_of_a_whole_file_are_read_from_its_header(name: str, legacy: bool, tmp_path: Path) -> None:
    assert read_shapes(write(tmp_path / name, legacy=legacy)) == SHAPES


def test_pickle_with_code_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": io.BytesIO}, file)
    with pytest.raises(ValueError, match="something other than tensors"):
        read_shapes(file)


@pytest.mark.parametrize("part", ["lm", "tower"])
@pytest.mark.parametrize("damage", ["pointer", "half"])
def test_part_with_damaged_weights_is_refused_by_its_file(part: str, damage: str, tmp_path: Path) -> None:
    save_tiny_backbone("llama", tmp_path / "lm")
    save_tiny_tower("clip_vision_model", tmp_path / "tower")
    file = tmp_path / part / "model.safetensors"
    file.write_bytes(DAMAGES[damage][0](file.read_bytes()))
    with pytest.raises(ValueError, match=rf"{part}/model\.safetensors"):
        build_llava(str(tmp_path / "lm"), str(tmp_path / "tower"))
