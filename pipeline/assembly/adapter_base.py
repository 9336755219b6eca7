"""Fingerprint of the weights that adapters were trained on."""

from __future__ import annotations

from pathlib import Path

from model.files.fingerprint import fingerprint, fingerprint_at_start
from pipeline.config import ConfigError, ModelConfig


def fingerprint_base(parts: ModelConfig) -> dict[str, str]:
    """Return fingerprints of the base weights of adapters; hub ids have none, since a revision does not change.

    The value is that of the first call in this process, which a run makes when it builds its model.
    """
    return {part: fingerprint_at_start(name) for part, name in _folders_of(parts).items()}


def check_base(folder: Path, base: ModelConfig, before: dict[str, str]) -> None:
    """Refuse to put adapters on other weights than those that they were trained on.

    Args:
        folder: of the adapters, for the message.
        base: their base model.
        before: `fingerprint_base` when they were trained.

    Raises:
        ConfigError: the base's weights or config.json have changed since, or it is gone; names it.
    """
    here = _folders_of(base)
    if gone := [part for part in before if part not in here]:
        raise ConfigError(
            f"{folder} holds adapters, whose {' and '.join(gone)} is no longer at the path in `base` of its "
            "ray_llava.json; put it back, or correct that path"
        )
    for part, name in here.items():
        if part in before and fingerprint(name) != before[part]:
            raise ConfigError(
                f"{folder} holds adapters that were trained on {name} as it was then; its weights or config.json have "
                "changed since, and adapters fit no others. Restore it, or train the adapters again"
            )


def _folders_of(parts: ModelConfig) -> dict[str, str]:
    """Return the parts of a model that are folders here."""
    tower = parts.vision_tower
    towers = (tower,) if isinstance(tower, str) else tower or ()
    names = {"language_model": parts.language_model}
    names |= {"vision_tower" if len(towers) == 1 else f"vision_tower {n}": name for n, name in enumerate(towers)}
    return {part: name for part, name in names.items() if Path(name).is_dir()}
