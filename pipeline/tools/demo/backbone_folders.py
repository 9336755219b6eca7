"""Folders of the demo's trained backbones;  `benchmarks.demo_parts.backbones` makes them."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
TOWER = WEIGHTS / "tower"
LANGUAGE_MODEL = WEIGHTS / "language_model"
