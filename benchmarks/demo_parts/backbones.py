"""Makes the demo's small backbones: `python -m benchmarks.demo_parts.backbones --out DIR` (minutes on a GPU).

The results are committed under `pipeline/tools/demo/weights/`. `teach_tower` and `teach_language_model` say what each
has learnt before LLaVA training; neither has seen the other, so nothing connects pictures with words yet.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.demo_parts.teach_language_model import LanguageLesson, teach_language_model
from benchmarks.demo_parts.teach_tower import CLIP_MEAN, CLIP_STD, IMAGE_SIZE, TowerLesson, teach_tower
from benchmarks.demo_parts.vocabulary import build_tokenizer
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER, WEIGHTS


def save_tower(tower: CLIPVisionModel, folder: Path) -> None:
    """Write the tower with the preprocessing it was taught with."""
    _save_half(tower, folder)
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    ).save_pretrained(folder)


def save_language_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the language model with its tokenizer."""
    _save_half(model, folder)
    tokenizer.save_pretrained(folder)


def _save_half(model: PreTrainedModel, folder: Path) -> None:
    """Store 16-bit weights to keep the repository small; the config still asks for float32 when they are loaded."""
    model.half().save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)


def main() -> None:
    """Teach and save one or both backbones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder that receives tower/ and language_model/")
    parser.add_argument("--only", choices=("tower", "language_model"), help="make only this one")
    parser.add_argument("--rehearsal", action="store_true", help="a minute's work, to see that everything runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that draw and write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the writers are forked
    device = torch.device(arguments.device)
    tower_lesson, language_lesson = TowerLesson(), LanguageLesson()
    if arguments.rehearsal:
        tower_lesson = replace(tower_lesson, num_images=500, num_steps=20, batch_size=32)
        language_lesson = replace(language_lesson, num_captions=200, num_conversations=400, num_steps=20, batch_size=16)
    if arguments.only != "language_model":
        save_tower(teach_tower(tower_lesson, device, arguments.processes), arguments.out / TOWER.name)
    if arguments.only != "tower":
        tokenizer = build_tokenizer()
        model = teach_language_model(language_lesson, tokenizer, device, arguments.processes)
        save_language_model(model, tokenizer, arguments.out / LANGUAGE_MODEL.name)


if __name__ == "__main__":
    main()
