"""A digest of the weight files that a run is built from: other weights under the same name are noticed on resume.

Samples of each file, not all of it: any training changes nearly every byte, and a start must not read 14 GB for this.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from pipeline.config import ConfigError, ModelConfig

_PATTERNS = ("*.safetensors", "*.bin")
_NUM_SAMPLES = 16
_SAMPLE_BYTES = 64 * 1024


def digest_weights(model: ModelConfig) -> dict[str, str]:
    """Return a digest for each folder that the config names; a hub id has none, since its cache pins a revision."""
    towers = model.vision_tower if isinstance(model.vision_tower, tuple) else (model.vision_tower,)
    folders = {model.language_model, *(tower for tower in towers if tower is not None)}
    return {folder: _digest(folder) for folder in sorted(folders) if Path(folder).is_dir()}


def check_same_weights(before: dict[str, str], model: ModelConfig) -> None:
    """Refuse to continue on other weights than those the run began with.

    Args:
        before: `digest_weights` when the checkpoint was taken.
        model: of the run that is to continue.

    Raises:
        ConfigError: they differ.
    """
    now = digest_weights(model)
    changed = [folder for folder, digest in before.items() if now.get(folder, digest) != digest]
    if changed:
        raise ConfigError(
            f"the weight files in {', '.join(changed)} are not those that the run began with. Restore them to resume, "
            "or choose another run_dir to start a new run"
        )


@functools.cache  # what counts is what the model was built from, at the start of the process
def _digest(folder: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _PATTERNS for path in Path(folder).glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_NUM_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
