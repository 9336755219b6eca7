"""The modules that decide what a run computes, and the tests that must notice a change in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.mutation_score.import_graph import ROOT

_TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "model.fusion.embedding": ("tests/model/fusion/test_fusion.py",),
    "model.fusion.feature_layout": (),
    "model.fusion.fusion": ("tests/model/fusion/test_embedding.py",),
    "model.fusion.packed": ("tests/model/fusion/test_feature_layout.py",),
    "model.fusion.resolution": ("tests/model/fusion/test_feature_layout.py",),
    "model.llava.attention": ("tests/model/llava/test_flash_attention_4.py",),
    "model.llava.attention_kernels": ("tests/model/llava/test_attention.py", "tests/model/backbones/test_parity.py"),
    "model.llava.loss": (),
    "pipeline.checkpoint.manifest": (),
    "pipeline.checkpoint.ownership": (),
    "pipeline.checkpoint.retention": (),
    "pipeline.checkpoint.verification": (),
    "pipeline.config.resume": ("tests/pipeline/config/test_config.py",),
    "pipeline.index.budget": (),
    "pipeline.index.grouping": (),
    "pipeline.index.rejected": (),
    "pipeline.plan.apportion": (),
    "pipeline.plan.efficiency": (),
    "pipeline.plan.epochs": ("tests/pipeline/plan/test_plan.py",),
    "pipeline.plan.mix": (),
    "pipeline.plan.mixed": (),
    "pipeline.plan.order": (),
    "pipeline.plan.packing": (),
    "pipeline.plan.plan": (),
    "pipeline.plan.quality": ("tests/pipeline/plan/test_efficiency.py",),
    "pipeline.plan.sources": (),
    "pipeline.plan.usable": (),
    "pipeline.run_folder.lease": (),
    "pipeline.run_folder.restarts": (),
    "pipeline.samples.prompt.tokenization": (),
    "pipeline.stream.rank_step": (),
    "pipeline.stream.transport": (),
    "pipeline.training.gradients": (),
    "pipeline.training.loop": (),
}
"""Test files of each module beyond the one of its own name, quickest first."""

LEFT_OUT: Final[dict[str, dict[str, str]]] = {
    "model.llava.attention_kernels": dict.fromkeys(
        ("_varlen", "_varlen_names_grouped_heads", "_flash_attention_2", "_flash_attention_4"),
        "runs on a GPU only",
    ),
    "pipeline.stream.rank_step": dict.fromkeys(
        ("_UntilKilled", "_start_deaf", "_DataWorker", "_DataWorkers"),
        "runs in processes of its own, which load the unchanged module; tests with the marker chaos end them",
    ),
}
"""Functions and classes of a module that are not changed, each with the reason."""


def target_modules() -> Sequence[str]:
    """Return the modules that are changed."""
    return list(_TARGETS)


def files_that_test(module: str) -> list[str]:
    """Return the test files of a module, relative to the repository: the one of its own name, then the others."""
    folder, _, name = module.rpartition(".")
    own = Path("tests", *folder.split("."), f"test_{name}.py")
    return [*([str(own)] if (ROOT / own).is_file() else []), *_TARGETS[module]]


def is_left_out(module: str, function: str) -> bool:
    """Whether a function, or a method of a class, is not changed."""
    return function.split(".")[0] in LEFT_OUT.get(module, {})
