"""Vision towers: a pretrained image encoder, frozen by default, that turns images into feature sequences.

Which tower a checkpoint needs is read from its config.json (`model_type`), never guessed from its path. A tower can be
built from configuration alone and receive weights later, from a surrounding checkpoint or by `load_model`.

Shapes: N images, H x W pixels, P features per image after selection, V vision width.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PretrainedConfig

SelectFeature = Literal["patch", "cls_patch"]


class TowerSpec(NamedTuple):
    """What identifies a tower and the features taken from it."""

    name: str
    """Folder of a Hugging Face checkpoint, or hub id."""
    select_layer: int
    """Index into the hidden states; 0 is the embeddings, -1 the last layer, -2 the one before."""
    select_feature: SelectFeature
    """`patch` leaves the class token out, `cls_patch` keeps it."""


class ClipVisionTower(nn.Module):
    """CLIP image encoder. `vision_tower` exists as a sub-module once `build` or `load_model` was called."""

    num_class_tokens = 1
    """Leading hidden states that stand for no patch."""

    def __init__(self, spec: TowerSpec, config: CLIPVisionConfig):
        super().__init__()
        if spec.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature is {spec.select_feature!r}; known: patch, cls_patch")
        num_layers: int = config.num_hidden_layers
        if not -num_layers - 1 <= spec.select_layer <= num_layers:
            raise ValueError(
                f"mm_vision_select_layer is {spec.select_layer}, but {spec.name} has {num_layers} layers: "
                f"legal are {-num_layers - 1} to {num_layers}"
            )
        self.spec = spec
        self.config = config
        self.num_used_layers = spec.select_layer % (num_layers + 1)
        self.frozen = True
        self.is_loaded = False

    @property
    def hidden_size(self) -> int:
        """Width V of the features."""
        return self.config.hidden_size

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        return _side(self.config.image_size)

    @property
    def num_features(self) -> int:
        """Features per image P after selection."""
        patches = (self.image_size // _side(self.config.patch_size)) ** 2
        return patches + (self.spec.select_feature == "cls_patch")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of the features of uint8 images."""
        return next(self.vision_tower.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.vision_tower.parameters()).device

    def build(self) -> None:
        """Create the modules with uninitialised or random weights that a surrounding checkpoint will fill."""
        self._adopt(CLIPVisionModel(self.config))

    def load_model(self, dtype: torch.dtype | None = None) -> None:
        """Create the modules with the weights of `spec.name`; does nothing when they are loaded already.

        Args:
            dtype: type to load as; None keeps the checkpoint's own.
        """
        if not self.is_loaded:
            read_checkpoint_config(self.spec.name, "vision tower")  # for its clear error on a missing folder
            model = CLIPVisionModel.from_pretrained(
                self.spec.name, config=self.config, dtype="auto" if dtype is None else dtype
            )
            self._adopt(model)

    def set_frozen(self, frozen: bool) -> None:
        """Freeze the tower (no gradients, no graph, evaluation mode) or make it trainable."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ClipVisionTower":
        """Set training mode; a frozen tower stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Encode normalised images [N, 3, H, W] to [N, P, V], or a list of [3, H, W] to a list of [1, P, V].

        Features come in the images' type. A frozen tower runs without building a graph.
        """
        if not isinstance(images, Tensor):
            return [self._encode(image[None]) for image in images]
        return self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        if not self.is_loaded:
            raise ValueError(f"vision tower {self.spec.name} has no weights yet; call load_model() first")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            # Layer by layer rather than output_hidden_states: nothing after the selected layer is computed and no
            # other layer's output is kept, which for 64 images of ViT-L/14-336 saves about 1.8 GB in bfloat16.
            model = self.vision_tower
            hidden: Tensor = model.pre_layrnorm(model.embeddings(images.to(self.device, self.dtype)))
            for layer in model.encoder.layers[: self.num_used_layers]:
                hidden = layer(hidden, attention_mask=None)
        if self.spec.select_feature == "patch":
            hidden = hidden[:, 1:]
        return hidden.to(images.dtype)

    def _adopt(self, model: CLIPVisionModel) -> None:
        self.vision_tower = model
        self.is_loaded = True
        self.set_frozen(self.frozen)


def _side(size: int | list[int] | tuple[int, int] | None) -> int:
    """Return the side of a square given as one number; transformers' configs would also allow pairs."""
    if not isinstance(size, int):
        raise ValueError(f"expected one side length in the tower's config.json, found {size!r}")
    return size


TOWERS: Final[dict[str, type[ClipVisionTower]]] = {
    "clip_vision_model": ClipVisionTower,
    "clip": ClipVisionTower,
}
"""`model_type` in a checkpoint's config.json -> tower class. A new kind of tower is one class and one line here."""


def build_vision_tower(config: Any, delay_load: bool = False) -> ClipVisionTower:
    """Build the tower that a model config or a set of model arguments names.

    Args:
        config: has `mm_vision_tower` (model config) or `vision_tower` (model arguments), `mm_vision_select_layer`
            and `mm_vision_select_feature`. A `mm_vision_config` mapping, which saved LLaVA models carry, takes the
            place of the tower folder's config.json.
        delay_load: leave the modules out until `build` or `load_model` is called.

    Raises:
        ValueError: no tower is named, its folder is missing, or its `model_type` is unknown.
    """
    name = config.mm_vision_tower if hasattr(config, "mm_vision_tower") else config.vision_tower
    if not name:
        raise ValueError("no vision tower is named; set mm_vision_tower to a checkpoint folder or hub id")
    spec = TowerSpec(str(name), config.mm_vision_select_layer, config.mm_vision_select_feature)
    saved = config.mm_vision_config if hasattr(config, "mm_vision_config") else None
    values = dict(saved) if saved is not None else read_checkpoint_config(spec.name, "vision tower")
    kind = values.get("model_type")
    if kind not in TOWERS:
        raise ValueError(f"vision tower {spec.name} has model_type {kind!r}; known: {', '.join(sorted(TOWERS))}")
    if kind == "clip":  # image and text encoder in one checkpoint
        values = dict(values["vision_config"])
    tower = TOWERS[kind](spec, CLIPVisionConfig.from_dict(values))
    if not delay_load:
        tower.load_model()
    return tower


def read_checkpoint_config(name: str, what: str) -> dict[str, Any]:
    """Read config.json of a checkpoint folder or hub id.

    Raises:
        ValueError: there is no such folder or hub repository, or it holds no config.json.
    """
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None
    if not Path(name).is_dir() and not is_hub_id:
        raise ValueError(f"{what}: folder {name!r} does not exist; expected a Hugging Face checkpoint folder or hub id")
    try:
        values, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        raise ValueError(f"{what}: no config.json found for {name!r}, neither as a folder nor on the hub") from error
    if not values:
        raise ValueError(f"{what}: {name!r} holds no config.json")
    return dict(values)
