"""Vision towers put together from what a model config, or a set of model arguments, says about them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.files.checkpoint_files import read_checkpoint_config
from model.vision.feature_merge import FeatureMerge, split_projector_type
from model.vision.joined_towers import JoinedTowers
from model.vision.native_tower import NativeTower
from model.vision.pixels import PixelStats, read_pixel_stats
from model.vision.tower_kinds import TOWER_KINDS, read_tower_config
from model.vision.vision_tower import TowerSpec, VisionTower

AnyTower = VisionTower | JoinedTowers


class VisionArgs(NamedTuple):
    """Which vision modules a model gets, in the names of LLaVA's model arguments; see `initialize_vision_modules`."""

    vision_tower: str | Sequence[str]
    """Folder or hub id of a tower, or of several to be joined."""
    mm_vision_select_layer: int | tuple[int, ...] = -2
    mm_vision_select_feature: str = "patch"
    mm_vision_scales: tuple[int, ...] = (1,)
    mm_projector_type: str = "mlp2x_gelu"
    mm_patch_merge_type: str = "flat"
    pretrain_mm_mlp_adapter: str | Path | None = None
    """Projector file to start from."""


def build_vision_tower(config: Any, delay_load: bool = False) -> AnyTower:
    """Build the tower that a model config or a set of model arguments names; several names give joined towers.

    Args:
        config: has `mm_vision_tower` (model config) or `vision_tower` (model arguments), `mm_vision_select_layer`
            and `mm_vision_select_feature`; `mm_vision_scales` may name several scales; `mm_projector_type` may begin
            with what the tower merges. A `mm_vision_config` mapping (a list of them for several towers), which saved
            LLaVA models contain, replaces the tower folder's config.json.
        delay_load: leave the modules out until `build` or `load_model` is called.

    Raises:
        ValueError: no tower is named, its folder is missing, its `model_type` is unknown, or several do not fit.
    """
    named = config.mm_vision_tower if hasattr(config, "mm_vision_tower") else config.vision_tower
    if not named:
        raise ValueError("no vision tower is named; set mm_vision_tower to a checkpoint folder or hub id")
    saved = config.mm_vision_config if hasattr(config, "mm_vision_config") else None
    if isinstance(named, str):
        tower: AnyTower = _build_one(config, named, saved)
    else:
        configs = saved or [None] * len(named)
        members = [_build_one(config, name, values) for name, values in zip(named, configs, strict=True)]
        tower = members[0] if len(members) == 1 else JoinedTowers(members, _stats_of(config, list(named)))
    if not delay_load:
        tower.load_model()
    return tower


def _build_one(config: Any, name: str, saved: dict[str, Any] | None) -> VisionTower:
    select = config.mm_vision_select_layer
    layers = select if isinstance(select, int) else tuple(select)
    merge = FeatureMerge()
    if hasattr(config, "mm_projector_type"):
        merge, _ = split_projector_type(config.mm_projector_type)
    scales = tuple(config.mm_vision_scales) if hasattr(config, "mm_vision_scales") else (1,)
    spec = TowerSpec(name, layers, config.mm_vision_select_feature, merge, scales)
    values = dict(saved) if saved is not None else read_checkpoint_config(name, "vision tower")
    tower_config = read_tower_config(values, name)
    is_native = TOWER_KINDS[tower_config.model_type].native is not None
    return NativeTower(spec, tower_config) if is_native else VisionTower(spec, tower_config)


def _stats_of(config: Any, names: list[str]) -> list[PixelStats | None]:
    """Return each tower's normalisation: from the saved config, else from the tower's folder."""
    noted = config.mm_tower_pixels if hasattr(config, "mm_tower_pixels") else None
    if noted is None:
        return [read_pixel_stats(name) for name in names]
    return [None if entry is None else PixelStats(tuple(entry[0]), tuple(entry[1])) for entry in noted]
