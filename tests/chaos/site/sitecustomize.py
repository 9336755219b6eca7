"""Put on PYTHONPATH by the chaos harness: the witness goes into every process that trains, Ray's workers included.

Python imports this module at every start. Nothing happens until the process imports the training worker, so that Ray's
helper processes stay as lean as they are.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TRAINING = "pipeline.training.worker"


class _WitnessOnImport(MetaPathFinder):
    """Finds the training worker as usual, and installs the witness once it was loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TRAINING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_install(module: ModuleType) -> None:
            load(module)
            from tests.chaos.attempt import install

            install()

        spec.loader.exec_module = load_and_install  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _WitnessOnImport())
