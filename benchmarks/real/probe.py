"""What a linear classifier reads off the same features of the tower: the figure to hold the trained model against.

Shapes: N pictures, P side in pixels, G features per picture after pooling, V vision width.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

_MEAN: Final = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD: Final = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
_STRENGTHS: Final = (0.001, 0.01)


def probe(tower: Path, train: Path, held_out: list[Path], *, pool: int, layer: int, size: int) -> dict[str, Any]:
    """Fit one classifier per kind of question; returns `{shard: {kind: accuracy}}`, of the better of two strengths."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model: Any = AutoModel.from_pretrained(tower).eval()
    sets = {path: _read(path, size) for path in (train, *held_out)}
    features = {path: _features(model, pixels, layer, pool) for path, (pixels, _) in sets.items()}
    found: dict[str, dict[str, float]] = {path.stem: {} for path in held_out}
    for kind in sets[train][1][0]:
        for strength in _STRENGTHS:
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
            classifier.fit(features[train], [said[kind] for said in sets[train][1]])
            for path in held_out:
                score = float(classifier.score(features[path], [said[kind] for said in sets[path][1]]))
                found[path.stem][kind] = max(found[path.stem].get(kind, 0.0), score)
    return found


def _read(shard: Path, size: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Return normalised pixels [N, 3, P, P] and the answer to every kind of question."""
    pixels, answers = [], []
    with tarfile.open(shard) as tar:
        for entry in tar:
            stream = tar.extractfile(entry)
            content = b"" if stream is None else stream.read()
            if entry.name.endswith(".png"):
                picture = Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
                pixels.append((torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - _MEAN) / _STD)
            else:
                tree = json.loads(content)
                given = [turn["value"] for turn in tree["conversations"] if turn["from"] == "gpt"]
                answers.append(dict(zip(tree["kinds"], given, strict=True)))
    return torch.stack(pixels), answers


@torch.no_grad()
def _features(model: Any, pixels: torch.Tensor, layer: int, pool: int) -> np.ndarray:
    """Return patch features averaged in squares, normalised and joined [N, G * V]."""
    rows = []
    for batch in pixels.split(32):
        hidden = model(batch, output_hidden_states=True).hidden_states[layer][:, 1:].float()
        side = round(hidden.shape[1] ** 0.5)
        grid = hidden.transpose(1, 2).unflatten(2, (side, side))
        pooled = torch.nn.functional.avg_pool2d(grid, pool).flatten(2).transpose(1, 2)
        rows.append(torch.nn.functional.layer_norm(pooled, pooled.shape[-1:]).flatten(1))
    return np.asarray(torch.cat(rows).numpy())
