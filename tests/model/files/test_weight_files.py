"""Weight files as broken downloads leave them: every one is named, whatever reads it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.files.adapter import read_adapter
from model.files.checkpoint_files import read_checkpoint_config, read_checkpoint_shapes, read_tensors
from model.files.weight_files import read_shapes
from model.hub.weights import build_llava, check_weights
from pipeline.assembly.facts import load_tokenizer, read_image_spec
from tests.model.tiny import save_tiny_backbone, save_tiny_tower
from tests.pipeline.samples.prompt.toy_tokenizers import build_tokenizer

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


def test_first_of_several_kinds_of_weights_is_the_one_that_transformers_reads(tmp_path: Path) -> None:
    torch.save({"old": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    save_file({"new": torch.zeros(3)}, tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"new": "part.safetensors"}}')
    assert read_checkpoint_shapes(str(tmp_path)) == {"new": (3,)}
    (tmp_path / "model.safetensors.index.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"index\.json is a Git LFS pointer"):
        read_checkpoint_shapes(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json"]
)
@pytest.mark.parametrize("content", [POINTER, b'{"a": 1', b""])
def test_damaged_json_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    save_tiny_backbone("llama", tmp_path)
    save_tiny_tower("clip_vision_model", tmp_path / "tower")
    shutil.copy(tmp_path / "tower/preprocessor_config.json", tmp_path)
    build_tokenizer("first").save_pretrained(tmp_path)
    read_all(str(tmp_path))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{name} is (a Git LFS pointer|not readable as JSON|empty)"):
        read_all(str(tmp_path))


def read_all(folder: str) -> None:
    read_checkpoint_config(folder, "language model")
    load_tokenizer(folder)
    read_image_spec(folder)


def test_buffers_that_old_checkpoints_carry_are_passed_over(tmp_path: Path) -> None:
    save_tiny_backbone("llama", tmp_path / "lm")
    save_tiny_tower("clip_vision_model", tmp_path / "tower")
    file = tmp_path / "lm/model.safetensors"
    old = {f"model.layers.{number}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for number in range(2)}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    build_llava(str(tmp_path / "lm"), str(tmp_path / "tower"))
    check_weights(str(tmp_path / "lm"))


@pytest.mark.parametrize("part", ["lm", "tower"])
@pytest.mark.parametrize("damage", ["pointer", "half"])
def test_part_with_damaged_weights_is_refused_by_its_file(part: str, damage: str, tmp_path: Path) -> None:
    save_tiny_backbone("llama", tmp_path / "lm")
    save_tiny_tower("clip_vision_model", tmp_path / "tower")
    file = tmp_path / part / "model.safetensors"
    file.write_bytes(DAMAGES[damage][0](file.read_bytes()))
    with pytest.raises(ValueError, match=rf"{part}/model\.safetensors"):
        build_llava(str(tmp_path / "lm"), str(tmp_path / "tower"))
