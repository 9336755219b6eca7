"""Write docs/benchmarks/DATE-parity.md: `python -m tests.model.backbones.parity_table FILE`."""

import platform
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from model.hub.weights import build_llava
from tests.model.backbones.parity import compare
from tests.model.tiny import KINDS, save_tiny_backbone, save_tiny_tower

_HEAD = f"""# Parity with transformers' classes

`python -m tests.model.backbones.parity_table FILE`, float32 on one CPU thread, {platform.machine()}, Python
{platform.python_version()}, torch {torch.__version__.partition("+")[0]}, transformers {transformers.__version__}.
Tiny models of every backbone with random weights and the fields of published configs. transformers' own class of the
language model reads the fused embeddings of each sample alone, with its own eager attention. Differences are relative
to the largest value; gradients are those of all weights of the language model, worst tensor. Tokens: greedy answers
that differ, of 5.

| backbone | logits | packed loss | gradients | tokens |
|---|---|---|---|---|
"""


def main(target: Path) -> None:
    """Measure every backbone."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        tower = save_tiny_tower("clip_vision_model", Path(scratch) / "tower")
        for kind in KINDS:
            folder = save_tiny_backbone(kind, Path(scratch) / kind)
            model = build_llava(folder, tower)
            model.train(False)
            found = compare(model, folder)
            rows.append(
                f"| `{kind}` | {found.logits:.1e} | {found.loss:.1e} | {found.gradients:.1e} | {found.tokens} |"
            )
    target.write_text(_HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
