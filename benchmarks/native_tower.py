"""SigLIP 2 NaFlex on images of mixed sizes: packed without padding, against transformers' padded batches.

`python -m benchmarks.native_tower` prints ratios. Each side runs in a process of its own, for its own peak of memory.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from model.fusion.native_size import native_grid
from model.vision.image_attention import NAME, register
from model.vision.native_encoders import run_naflex

_CONFIG: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
}
_PATCH, _MOST = 16, 784
_SIZES = [(224, 224), (480, 640), (640, 480), (96, 512), (1024, 768), (120, 90), (333, 500), (60, 60)]
"""Heights and widths; images are not enlarged, as a data set that was sized for other limits has them."""
_ROUNDS = 5


def _grids() -> list[tuple[int, int]]:
    return [native_grid(*size, _PATCH, 1, _MOST * _PATCH**2, "round") for size in _SIZES]


def _model() -> Any:
    torch.manual_seed(0)
    model: Any = Siglip2VisionModel(Siglip2VisionConfig(**_CONFIG, patch_size=_PATCH, vision_use_head=False))
    model.eval()
    return model


def _packed(model: Any, cells: list[torch.Tensor]) -> torch.Tensor:
    register()
    model.config._attn_implementation = NAME
    features: torch.Tensor = model.post_layernorm(run_naflex(model, torch.cat(cells), _grids(), 1, {6})[6])
    return features


def _padded(model: Any, cells: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.zeros(len(cells), max(map(len, cells)), 3 * _PATCH**2)
    mask = torch.zeros(rows.shape[:2], dtype=torch.int64)
    for row, own in enumerate(cells):
        rows[row, : len(own)] = own.permute(0, 2, 3, 1).flatten(1)
        mask[row, : len(own)] = 1
    hidden: torch.Tensor = model(rows, mask, torch.tensor(_grids())).last_hidden_state
    return hidden[mask.bool()]


def _measure(side: str) -> None:
    torch.set_num_threads(1)
    model = _model()
    generator = torch.Generator().manual_seed(1)
    cells = [torch.randn(rows * columns, 3, _PATCH, _PATCH, generator=generator) for rows, columns in _grids()]
    run = _packed if side == "packed" else _padded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    with torch.no_grad():
        for _ in range(_ROUNDS):
            start = time.process_time()
            out = run(model, cells)
            times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"time_s": min(times), "peak_kib": peak, "sum": float(out.double().abs().sum())}))


def main() -> None:
    """Run both sides, one after the other, and print what they took."""
    found = {}
    for side in ("packed", "padded"):
        command = [sys.executable, "-m", "benchmarks.native_tower", side]
        found[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    packed, padded = found["packed"], found["padded"]
    counts = [rows * columns for rows, columns in _grids()]
    print(f"{len(counts)} images of {counts} patches: {sum(counts)} packed, {max(counts) * len(counts)} padded")
    print(f"processor time, padded / packed: {padded['time_s'] / packed['time_s']:.2f}")
    print(f"peak of memory above the model, padded / packed: {padded['peak_kib'] / packed['peak_kib']:.2f}")
    print(f"relative difference of the sums of features: {abs(packed['sum'] / padded['sum'] - 1):.1e}")


if __name__ == "__main__":
    _measure(sys.argv[1]) if len(sys.argv) > 1 else main()
