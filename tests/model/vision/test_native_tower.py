"""Towers of native resolution: packed images equal transformers' own classes, image by image."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.fusion.resolution import ImageView, grids_of
from model.hub.weights import build_llava, load_llava, save_llava, set_trainable
from model.vision.native_tower import NativeTower
from model.vision.tower_builder import build_vision_tower
from model.vision.tower_kinds import TOWER_KINDS
from tests.model.tiny import NATIVE_TOWERS, save_tiny_tower

X = IMAGE_TOKEN_INDEX
GRIDS = [(2, 3), (1, 1), (3, 2), (1, 4)]
QWENS = [kind for kind in NATIVE_TOWERS if "qwen" in kind]


def tower_of(kind: str, path: str, projector: str = "mlp2x_gelu", layer: int | list[int] = -1) -> NativeTower:
    tower = build_vision_tower(
        SimpleNamespace(
            vision_tower=path,
            mm_vision_select_layer=layer,
            mm_vision_select_feature="patch",
            mm_projector_type=projector,
        )
    )
    assert isinstance(tower, NativeTower)
    return tower


def pictures(cell: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, rows * cell, columns * cell, generator=generator) for rows, columns in GRIDS]


def cells(images: list[torch.Tensor], cell: int) -> torch.Tensor:
    parts = [
        image.unflatten(1, (-1, cell)).unflatten(3, (-1, cell)).permute(1, 3, 0, 2, 4).flatten(0, 1) for image in images
    ]
    return torch.cat(parts)


def naflex_alone(path: str, image: torch.Tensor) -> torch.Tensor:
    """Let transformers' class read one image, padded, with its processor's own patches; before the last norm."""
    model: Any = TOWER_KINDS["siglip2_vision_model"].model_class.from_pretrained(path).eval()
    states: list[torch.Tensor] = []
    model.encoder.layers[-1].register_forward_hook(lambda _, args, output: states.append(output))
    patches = torch.from_numpy(convert_image_to_patches(image.numpy(), 7))
    count = len(patches)
    padded = torch.cat([patches, torch.zeros(5, patches.shape[1])])[None]
    mask = torch.tensor([[1] * count + [0] * 5])
    with torch.no_grad():
        model(padded, mask, torch.tensor([[image.shape[1] // 7, image.shape[2] // 7]]))
    return states[0][0, :count]


def qwen_alone(kind: str, path: str, image: torch.Tensor) -> torch.Tensor:
    """Let transformers' class read one image, cut as its processor does, and merge its features itself."""
    model: Any = TOWER_KINDS[kind].model_class.from_pretrained(path).eval()
    rows, columns = image.shape[1] // 14, image.shape[2] // 14
    frames = torch.stack([image, image])  # [T, 3, H, W]
    cut = frames.reshape(1, 2, 3, rows, 2, 7, columns, 2, 7).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    with torch.no_grad():
        out = model(cut.reshape(rows * columns * 4, -1), torch.tensor([[1, rows * 2, columns * 2]]))
    merged: torch.Tensor = out.pooler_output
    return merged


def test_packed_naflex_images_equal_each_image_padded_alone(tmp_path: Path) -> None:
    path = save_tiny_tower("siglip2_vision_model", tmp_path)
    images = pictures(7)
    got = tower_of("siglip2_vision_model", path)(cells(images, 7), GRIDS)
    assert isinstance(got, torch.Tensor)
    wanted = torch.cat([naflex_alone(path, image) for image in images])
    assert got.shape == (len(wanted), 1, 22)
    assert torch.allclose(got[:, 0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", QWENS)
def test_packed_qwen_images_equal_each_image_alone(kind: str, tmp_path: Path) -> None:
    path = save_tiny_tower(kind, tmp_path)
    images = pictures(14)
    tower = tower_of(kind, path)
    got = tower(cells(images, 14), GRIDS)
    assert isinstance(got, torch.Tensor)
    assert got.shape == (sum(rows * columns for rows, columns in GRIDS), 1, 4 * 24)
    merged = tower.vision_tower.merger(got.view(-1, 24))
    wanted = torch.cat([qwen_alone(kind, path, image) for image in images])
    assert torch.allclose(merged, wanted, atol=1e-4, rtol=1e-4)


def test_cells_of_several_patches_join_or_average_them(tmp_path: Path) -> None:
    kind = "siglip2_vision_model"
    path = save_tiny_tower(kind, tmp_path)
    images = pictures(14)
    joined = tower_of(kind, path, "shuffle2_mlp2x_gelu")(cells(images, 14), GRIDS)
    mean = tower_of(kind, path, "pool2_mlp2x_gelu")(cells(images, 14), GRIDS)
    assert isinstance(joined, torch.Tensor)
    assert isinstance(mean, torch.Tensor)
    single = naflex_alone(path, images[0]).view(2, 2, 3, 2, 22).transpose(1, 2).reshape(6, 4, 22)
    assert torch.allclose(joined[:6, 0], single.flatten(1), atol=1e-4, rtol=1e-4)
    assert torch.allclose(mean[:6, 0], single.mean(dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", NATIVE_TOWERS)
def test_order_of_images_and_their_neighbours_change_nothing(kind: str, tmp_path: Path) -> None:
    tower = tower_of(kind, save_tiny_tower(kind, tmp_path), layer=[-2, 1])
    images = pictures(tower.image_size)
    together = tower(cells(images, tower.image_size), GRIDS)
    backwards = tower(cells(images[::-1], tower.image_size), GRIDS[::-1])
    assert isinstance(together, torch.Tensor)
    assert isinstance(backwards, torch.Tensor)
    counts = [rows * columns for rows, columns in GRIDS]
    for ours, theirs in zip(together.split(counts), reversed(backwards.split(counts[::-1])), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", NATIVE_TOWERS)
def test_model_computes_learns_generates_saves_and_opens(kind: str, llama_path: str, tmp_path: Path) -> None:
    model = build_llava(llama_path, save_tiny_tower(kind, tmp_path / "tower"))
    model.train(False)
    model.config.image_aspect_ratio = "native_98_3000"
    tower = model.get_vision_tower()
    assert tower is not None
    side = tower.image_size
    sizes = [(2 * side, 3 * side), (side, 4 * side)]
    grids = [(2, 3), (1, 4)] if tower.sizing == "round" else None
    resolution = model.get_model().resolution_at(side, 1)
    found = grids_of([ImageView(*size) for size in sizes], resolution)
    assert grids is None or found == grids
    generator = torch.Generator().manual_seed(6)
    tiles = [torch.randn(rows * columns, 3, side, side, generator=generator) for rows, columns in found]
    ids, labels = torch.tensor([[1, X, 5, X, 7]]), torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 5, IGNORE_INDEX, 7]])
    out = model(ids, labels=labels, images=tiles, image_sizes=sizes, num_items_in_batch=1)
    counts = [len(part) for part in tiles]
    assert out.logits.shape[1] == 3 + sum(counts)

    set_trainable(model, "finetune")
    tower.set_frozen(False)
    batch = pack_samples([(ids[0], labels[0])], counts)
    loss = model.packed_loss(batch, model.encode_vision(torch.cat(tiles), 1, found).flatten(0, 1))
    assert torch.allclose(loss, out.loss, rtol=1e-4)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    tower.set_frozen(True)

    tokens = model.generate(ids, images=tiles, image_sizes=sizes, max_new_tokens=3, do_sample=False)
    assert tokens[0, 0] == out.logits[0, -1].argmax()
    save_llava(model, tmp_path / "saved")
    again = load_llava(tmp_path / "saved").train(False)(ids, images=tiles, image_sizes=sizes).logits
    assert torch.equal(again, out.logits)
    with pytest.raises(ValueError, match="pass image_sizes"):
        model(ids, images=tiles)


def test_settings_that_make_no_sense_are_refused(tower_path: str, llama_path: str, tmp_path: Path) -> None:
    native = save_tiny_tower("qwen2_5_vl_vision", tmp_path)
    with pytest.raises(ValueError, match="native resolution cannot be joined"):
        build_llava(llama_path, [tower_path, native])
    with pytest.raises(ValueError, match=r"mm_vision_scales \[1\], found 'patch' and \[1, 2\]"):
        build_llava(llama_path, native, scales=(1, 2))
    with pytest.raises(ValueError, match="take shuffle2_ out of mm_projector_type"):
        build_llava(llama_path, native, "shuffle2_mlp2x_gelu")
    with pytest.raises(ValueError, match="7 cells, but the grids of 1 images have 6"):
        tower_of("qwen2_5_vl_vision", native)(torch.zeros(7, 3, 14, 14), [(2, 3)])
