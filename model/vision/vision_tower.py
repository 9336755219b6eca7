"""Vision towers: a pretrained image encoder, frozen by default, that turns images into feature sequences.

Which tower a checkpoint needs is read from its config.json (`model_type`), never guessed from its path. A tower can be
built from configuration alone and receive weights later, from a surrounding checkpoint or by `load_model`.

Shapes: N images, H x W pixels, P features per image after selection, V vision width.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from model.files.checkpoint_files import read_checkpoint_shapes, read_tensors
from model.files.loading import check_shapes, fill_neutrally, load_strictly
from model.files.tower_layouts import current_names, is_in_encoder
from model.files.weight_files import Shapes
from model.vision.feature_merge import FeatureMerge
from model.vision.multi_scale import encode_scales
from model.vision.native_encoders import Sizing
from model.vision.tower_kinds import TOWER_KINDS

logger = logging.getLogger(__name__)

SelectFeature = Literal["patch", "cls_patch"]


class TowerSpec(NamedTuple):
    """What identifies a tower and the features taken from it."""

    name: str
    """Folder of a Hugging Face checkpoint, or hub id."""
    select_layer: int | tuple[int, ...]
    """Index into the hidden states; 0 is the embeddings, -1 the last layer. Several are joined along the width."""
    select_feature: SelectFeature
    """`patch` leaves the class tokens out, `cls_patch` keeps them."""
    merge: FeatureMerge = FeatureMerge()
    """What becomes of neighbouring patches."""
    scales: tuple[int, ...] = (1,)
    """Multiples of the encoder's size at which it sees an image, see `multi_scale`."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The selected hidden states."""
        return (self.select_layer,) if isinstance(self.select_layer, int) else self.select_layer


class VisionTower(nn.Module):
    """Image encoder of any kind. `vision_tower` exists as a sub-module once `build` or `load_model` was called."""

    vision_tower: Any

    def __init__(self, spec: TowerSpec, config: PretrainedConfig):
        super().__init__()
        if spec.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature is {spec.select_feature!r}; known: patch, cls_patch")
        self.kind = TOWER_KINDS[config.model_type]
        if spec.merge.side > 1 and spec.select_feature == "cls_patch":
            raise ValueError("mm_vision_select_feature 'cls_patch' cannot be merged: class tokens have no neighbours")
        if spec.scales != (1,):
            _check_scales(spec)
        num_layers: int = config.num_hidden_layers
        self._check_layers(spec, num_layers)
        self.spec = spec
        self.config = config
        if not self.kind.any_size:
            spec.merge.check(_side(config.image_size) // _side(config.patch_size), spec.name)
        self._states = tuple(layer % (num_layers + 1) for layer in spec.layers)
        self.num_used_layers = max(self._states)
        self.frozen = True
        self.is_loaded = False

    @staticmethod
    def _check_layers(spec: TowerSpec, num_layers: int) -> None:
        if not spec.layers or not all(-num_layers - 1 <= layer <= num_layers for layer in spec.layers):
            raise ValueError(
                f"mm_vision_select_layer is {spec.select_layer}, but {spec.name} has {num_layers} layers: "
                f"legal are {-num_layers - 1} to {num_layers}"
            )

    @property
    def hidden_size(self) -> int:
        """Width V of the features."""
        width: int = self.config.hidden_size
        return width * len(self._states) * len(self.spec.scales) * self.spec.merge.width_factor

    @property
    def sizing(self) -> Sizing | None:
        """How images of any shape are sized; None for squares."""
        return None if self.kind.native is None else self.kind.native.sizing

    @property
    def image_size(self) -> int:
        """Side of the square input that the encoder was trained with, pixels."""
        return _side(self.config.image_size)

    @property
    def input_size(self) -> int:
        """Side of the square image that the tower is given, pixels: that of its largest scale."""
        return self.image_size * max(self.spec.scales)

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return _side(self.config.patch_size)

    @property
    def num_class_tokens(self) -> int:
        """Leading hidden states that stand for no patch."""
        return self.kind.num_class_tokens(self.config)

    @property
    def num_features(self) -> int:
        """Features per image of `input_size` after selection."""
        return self.num_features_at(self.input_size)

    def num_features_at(self, image_size: int) -> int:
        """Return the features P per square image of another size, pixels.

        Raises:
            ValueError: the encoder has position embeddings for its own size only.
        """
        image_size //= max(self.spec.scales)
        if image_size != self.image_size and not self.kind.any_size:
            raise ValueError(
                f"vision tower {self.spec.name} takes images of {self.image_size} pixels, but its image processor "
                f"makes {image_size}; correct size and crop_size in preprocessor_config.json"
            )
        grid = image_size // self.patch_size
        self.spec.merge.check(grid, self.spec.name)
        kept = self.num_class_tokens if self.spec.select_feature == "cls_patch" else 0
        return int((grid // self.spec.merge.side) ** 2) + kept

    def feature_grid_at(self, image_size: int) -> int | None:
        """Return the features per side of a square image of that size, None when class tokens are among them.

        Raises:
            ValueError: as for `num_features_at`.
        """
        count = self.num_features_at(image_size)
        has_class_tokens = self.spec.select_feature == "cls_patch" and self.num_class_tokens > 0
        return None if has_class_tokens else math.isqrt(count)

    def size_for_grid(self, grid: int) -> int:
        """Return the image side, pixels, that gives that many patches per side, or the encoder's own if it is fixed."""
        return (grid * self.patch_size if self.kind.any_size else self.image_size) * max(self.spec.scales)

    @property
    def layers(self) -> list[nn.Module]:
        """The encoder layers that are computed; nothing after the last selected one is."""
        return list(self.kind.layers(self.vision_tower)[: self.num_used_layers])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of the features of uint8 images."""
        return self._adopted().dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._adopted().device

    def build(self) -> None:
        """Create the modules with uninitialised or random weights that a surrounding checkpoint will fill."""
        self._adopt(self.kind.model_class(self.config))

    def load_model(self, dtype: torch.dtype | None = None) -> None:
        """Create the modules with the weights of `spec.name`; does nothing when they are loaded already.

        Args:
            dtype: type to load as; None keeps the checkpoint's own.
        """
        if not self.is_loaded:
            self.load_state(read_tensors(self.spec.name, is_in_encoder), self.spec.name, dtype)

    def load_state(self, state: Mapping[str, Tensor], where: str, dtype: torch.dtype | None = None) -> None:
        """Create the modules with given weights, under the encoder's present or older names.

        Tensors that the selected features do not need may be missing: LLaVA-NeXT saves towers without their last layer
        and head. They are filled so that a layer of them changes nothing.

        Args:
            state: of the encoder, without a prefix.
            where: the weights' file or folder, for the message.
            dtype: type to load as; None keeps the weights' own.

        Raises:
            ValueError: tensors are missing, unexpected or of another shape; all are named.
        """
        named = current_names(state, self.config.model_type)
        own_dtype = next((tensor.dtype for tensor in named.values() if tensor.is_floating_point()), torch.float32)
        model, lacking = load_strictly(
            self.kind.model_class,
            self.config,
            None,
            named,
            may_lack=self._unneeded(),
            where=where,
            dtype=dtype or own_dtype,
        )
        if lacking:
            logger.info(
                "%s lacks %d tensors that no selected feature needs, such as %s", where, len(lacking), lacking[0]
            )
            fill_neutrally(model, lacking)
        self._adopt(model)

    def check(self) -> None:
        """Compare the tensors of `spec.name` with the encoder's, without reading a value.

        Raises:
            ValueError: a file is damaged, or tensors are missing, unexpected or of another shape.
        """
        shapes = read_checkpoint_shapes(self.spec.name)
        self.check_shapes({name: shape for name, shape in shapes.items() if is_in_encoder(name)}, self.spec.name)

    def check_shapes(self, shapes: Shapes, where: str) -> None:
        """Compare the tensors of a file, without a prefix, as `check` does."""
        named = current_names(
            {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, self.config.model_type
        )
        check_shapes(
            self.kind.model_class,
            self.config,
            {name: tuple(tensor.shape) for name, tensor in named.items()},
            may_lack=self._unneeded(),
            where=where,
        )

    def _unneeded(self) -> set[str]:
        """Return the names of the encoder's tensors that no selected feature needs."""
        with torch.device("meta"):
            model = self.kind.model_class(self.config)
        used = [*self.kind.before_layers(model), *self.kind.layers(model)[: self.num_used_layers]]
        needed = {id(tensor) for part in used for tensor in (*part.parameters(), *part.buffers())}
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name for name, tensor in named.items() if id(tensor) not in needed or name.endswith("mask_token")}

    def unneeded_tensors(self) -> set[str]:
        """Return the same as a model that has this tower names them after `vision_tower.`."""
        return {f"vision_tower.{name}" for name in self._unneeded()}

    def set_frozen(self, frozen: bool) -> None:
        """Freeze the tower (no gradients, no graph, evaluation mode) or make what features are computed with learn."""
        self.frozen = frozen
        self.requires_grad_(False)
        if not frozen:
            for part in (*self.kind.before_layers(self.vision_tower), *self.layers):
                part.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VisionTower":
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
            pixels = images.to(self.device, self.dtype)
            scales = self.spec.scales
            features = self._features(pixels) if scales == (1,) else encode_scales(self._features, pixels, scales)
            features = self.spec.merge.apply(features)
        return features.to(images.dtype)

    def _features(self, pixels: Tensor) -> Tensor:
        # Layer by layer rather than output_hidden_states: nothing after the selected layer is computed and no
        # other layer's output is kept, which for 64 images of ViT-L/14-336 saves about 1.8 GB in bfloat16.
        hidden = self.kind.embed(self.vision_tower, pixels)
        further = self.kind.layer_arguments(self.vision_tower, pixels)
        states = {0: hidden} if 0 in self._states else {}
        for number, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, *further)
            if number in self._states:
                states[number] = hidden
        skipped = self.num_class_tokens if self.spec.select_feature == "patch" else 0
        selected = [states[number][:, skipped:] for number in self._states]
        return selected[0] if len(selected) == 1 else torch.cat(selected, dim=-1)

    def _adopted(self) -> nn.Parameter:
        weights: nn.Module = self.vision_tower
        return next(weights.parameters())

    def _adopt(self, model: PreTrainedModel) -> None:
        self.vision_tower = model
        self.is_loaded = True
        self.set_frozen(self.frozen)


def _side(size: object) -> int:
    """Return the side of a square given as one number or as a pair of equal ones."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop() if len(sides) == 1 else None
    if not isinstance(side, int):
        raise ValueError(f"expected one side length in the tower's config.json, found {size!r}")
    return side


def _check_scales(spec: TowerSpec) -> None:
    if not spec.scales or sorted(set(spec.scales)) != list(spec.scales) or min(spec.scales) < 1:
        raise ValueError(f"mm_vision_scales is {list(spec.scales)}; expected rising whole multiples, such as [1, 2]")
    if spec.select_feature == "cls_patch":
        raise ValueError("mm_vision_select_feature 'cls_patch' has no place on several scales; use 'patch'")
