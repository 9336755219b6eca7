"""Teaches the demo's vision tower: from the features of each patch, a linear map must tell what is there.

The supervision is dense (colour and shape of the object whose centre is in the patch, and the patch's region) and
read off the layer that LLaVA selects; a second term asks the pooled output for everything shown. Replaces the
language supervision that real CLIP towers bring along.

Shapes: N images, C = GRID * GRID patches, V tower width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.demo_parts.schedule import cosine_with_warmup
from pipeline.tools.demo.drawing import draw_scene
from pipeline.tools.demo.samples import caption_sample
from pipeline.tools.demo.scenes import ALL_COMBINATIONS, COLORS, GRID, SHAPES, Scene

logger = logging.getLogger(__name__)

PATCH_SIZE = 16
IMAGE_SIZE = GRID * PATCH_SIZE
SELECT_LAYER = -2
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_PADDING_COLOR = tuple(int(255 * mean) for mean in CLIP_MEAN)
_COLOR_INDEX = {color: index for index, color in enumerate(COLORS, start=1)}
_SHAPE_INDEX = {shape: index for index, shape in enumerate(SHAPES, start=1)}
_COMBINATION_INDEX = {combination: index for index, combination in enumerate(ALL_COMBINATIONS)}


@dataclass(frozen=True)
class TowerLesson:
    """How long and on how much the tower is taught."""

    num_images: int = 120_000
    num_held_out: int = 2_000
    """Images to check on afterwards."""
    num_steps: int = 4_000
    batch_size: int = 512
    learning_rate: float = 1.5e-3


class LabelledImages(NamedTuple):
    """Preprocessed images and what each patch of them shows; 0 stands for nothing."""

    pixels: Tensor
    """uint8 [N, 3, IMAGE_SIZE, IMAGE_SIZE]."""
    colors: Tensor
    """int64 [N, C]."""
    shapes: Tensor
    """int64 [N, C]."""
    presence: Tensor
    """float32 [N, combinations]; 1 where the image shows the combination of colour and shape."""


class _Readout(nn.Module):
    """Linear classifiers over patch features and over the pooled output; thrown away after teaching."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.color = nn.Linear(width, 1 + len(COLORS))
        self.shape = nn.Linear(width, 1 + len(SHAPES))
        self.row = nn.Linear(width, 3)
        self.column = nn.Linear(width, 3)
        self.presence = nn.Linear(width, len(ALL_COMBINATIONS))


def tower_config() -> CLIPVisionConfig:
    """Return the architecture: 0.6 million parameters."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )


def teach_tower(lesson: TowerLesson, device: torch.device, num_processes: int) -> CLIPVisionModel:
    """Draw images, teach a new tower on them, and log how well it does on images it has not seen."""
    images = labelled_images(range(lesson.num_images), num_processes)
    held_out = labelled_images(range(lesson.num_images, lesson.num_images + lesson.num_held_out), num_processes)
    torch.manual_seed(0)
    config = tower_config()
    tower, readout = CLIPVisionModel(config), _Readout(config.hidden_size).to(device)
    nn.Module.to(tower, device)  # `PreTrainedModel.to` has no usable type
    parameters = [*tower.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lesson.learning_rate, weight_decay=0.05)
    images = LabelledImages._make(tensor.to(device) for tensor in images)
    for step in range(lesson.num_steps):
        rows = torch.randint(lesson.num_images, (lesson.batch_size,), device=device)
        batch = LabelledImages._make(tensor[rows] for tensor in images)
        optimizer.param_groups[0]["lr"] = lesson.learning_rate * cosine_with_warmup(step, lesson.num_steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = _loss(tower, readout, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 500 == 0 or step == lesson.num_steps - 1:
            logger.info("tower step %d loss %.4f", step, loss.item())
    batch = LabelledImages._make(tensor.to(device) for tensor in held_out)
    logger.info("tower on %d unseen images: %s", len(batch.pixels), _accuracy(tower.eval(), readout, batch))
    nn.Module.cpu(tower)
    return tower


def labelled_images(indices: Iterable[int], num_processes: int) -> LabelledImages:
    """Draw and label the caption scenes with these numbers, in parallel."""
    with ProcessPoolExecutor(num_processes) as pool:
        rows = list(pool.map(_labelled_image, indices, chunksize=256))
    pixels, colors, shapes, presence = (np.stack(column) for column in zip(*rows, strict=True))
    return LabelledImages(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(colors),
        torch.from_numpy(shapes),
        torch.from_numpy(presence),
    )


def _labelled_image(index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    scene = caption_sample("backbones", index).scene
    colors, shapes = np.zeros((2, GRID * GRID), np.int64)
    presence = np.zeros(len(ALL_COMBINATIONS), np.float32)
    for thing in scene.things:
        cell = thing.row * GRID + thing.column
        colors[cell], shapes[cell] = _COLOR_INDEX[thing.color], _SHAPE_INDEX[thing.shape]
        presence[_COMBINATION_INDEX[thing.color, thing.shape]] = 1
    return square_pixels(scene, pixels_per_cell=16 + index % 17), colors, shapes, presence


def square_pixels(scene: Scene, pixels_per_cell: int) -> NDArray[np.uint8]:
    """Draw a scene, pad it to a square of the mean colour and resize it to the tower's size: uint8 [H, W, 3]."""
    picture = draw_scene(scene, pixels_per_cell)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), _PADDING_COLOR)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def _normalised(pixels: Tensor) -> Tensor:
    mean = torch.tensor(CLIP_MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=pixels.device)[:, None, None]
    return (pixels.float() / 255 - mean) / std


def _loss(tower: CLIPVisionModel, readout: _Readout, batch: LabelledImages) -> Tensor:
    output = tower(_normalised(batch.pixels), output_hidden_states=True)
    patches = output.hidden_states[SELECT_LAYER][:, 1:]
    # Five in six patches show nothing: without the weight, "nothing" is learnt long before anything else.
    weight = torch.where(batch.colors > 0, 4.0, 1.0).flatten()
    lines = torch.arange(3, device=patches.device).repeat_interleave(GRID // 3)
    rows, columns = lines.repeat_interleave(GRID), lines.repeat(GRID)
    count = len(patches)

    def entropy(logits: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        return (each * weight).sum() / weight.sum()

    dense = entropy(readout.color(patches), batch.colors) + entropy(readout.shape(patches), batch.shapes)
    place = entropy(readout.row(patches), rows.expand(count, -1)) + entropy(
        readout.column(patches), columns.expand(count, -1)
    )
    shown = F.binary_cross_entropy_with_logits(readout.presence(output.pooler_output).float(), batch.presence)
    # Features of unit size suit a freshly initialised projector.
    size = (patches.float().square().mean() - 1).square()
    loss: Tensor = dense + 0.3 * place + shown + 0.1 * size
    return loss


@torch.no_grad()
def _accuracy(tower: CLIPVisionModel, readout: _Readout, batch: LabelledImages) -> dict[str, float]:
    patches = tower(_normalised(batch.pixels), output_hidden_states=True).hidden_states[SELECT_LAYER][:, 1:]
    colors, shapes = readout.color(patches).argmax(-1), readout.shape(patches).argmax(-1)
    things = batch.colors > 0
    right = (colors == batch.colors) & (shapes == batch.shapes)
    return {
        "patches with a thing": right[things].float().mean().item(),
        "empty patches": right[~things].float().mean().item(),
        "whole images": right.all(1).float().mean().item(),
        "feature_std": patches.std().item(),
        "feature_max": patches.abs().max().item(),
    }
