"""Running the tests of a module on a changed version of it, in a process that is forked for each change.

The parent has imported the libraries, and of the product what cannot see the change, so a trial takes about a second.
Threads do not survive a fork, which is why nothing here computes before it.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final, Literal, NamedTuple

import pytest

from tests.mutation_score.alterations import altered_code
from tests.mutation_score.import_graph import ROOT, Graph, independent_of, module_of, module_path
from tests.mutation_score.targets import files_that_test

Outcome = Literal["killed", "survived", "out of time"]

LIBRARIES: Final = (
    "hypothesis", "numpy", "pyarrow.compute", "pydantic", "ray", "tokenizers", "torch.utils.data",
    "torch.distributed.tensor", "torch.nn.attention.flex_attention",
    "transformers.integrations.sdpa_attention", "transformers.models.clip",
    "transformers.models.llama.modeling_llama", "transformers.models.auto", "safetensors.torch", "webdataset",
    "_hypothesis_pytestplugin", "anyio.pytest_plugin", "pytest_timeout", "xdist.plugin",
)  # fmt: skip
"""What the tests of most targets import; those of one target are found when its own process tries them."""
_LEAST_CPU_S: Final = 20
_CPU_FACTOR: Final = 5
"""A trial may take this many times the processor time of the unchanged module: loops without an end are killed."""
_PROFILE: Final = "mutation_score"


class Trial(NamedTuple):
    """How the tests ended."""

    outcome: Outcome
    cpu_s: float


def import_libraries() -> None:
    """Import what is the same in all trials, once."""
    for name in LIBRARIES:
        importlib.import_module(name)
    from hypothesis import Phase, settings

    # A counterexample need not be made small, and the examples must be the same ones each time.
    settings.register_profile(
        _PROFILE, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )


class Bench:
    """The trials of one module, in a process that has imported what the module's tests need."""

    def __init__(self, module: str, graph: Graph) -> None:
        """Import what cannot see the module, and measure its tests.

        Raises:
            RuntimeError: the tests fail without any change.
        """
        self.module = module
        self._path = module_path(module)
        self._source = self._path.read_text(encoding="utf-8")
        self._tests = files_that_test(module)
        if not self._tests:
            raise RuntimeError(f"{module}: no test file of its own, and none named in tests/mutation_score/targets.py")
        for name in independent_of(graph, module, map(module_of, [*self._tests, *_conftests_of(self._tests)])):
            importlib.import_module(name)
        self._limit_s = 600.0
        calm = self._run(None)
        if calm.outcome != "survived":
            raise RuntimeError(f"{module}: its tests fail without a change: pytest {' '.join(self._tests)}")
        self._limit_s = max(_LEAST_CPU_S, _CPU_FACTOR * calm.cpu_s)
        self.calm_cpu_s = calm.cpu_s

    def try_change(self, number: int) -> Trial:
        """Run the tests with change `number` of `alterations_of`."""
        return self._run(altered_code(self._source, str(self._path), number))

    def _run(self, code: CodeType | None) -> Trial:
        gc.freeze()  # pytest collects garbage three times, and need not look through all libraries for it
        with tempfile.TemporaryDirectory() as folder:
            process_id = os.fork()
            if process_id == 0:
                _become_trial(self.module, self._path, code, self._tests, Path(folder), self._limit_s)
            status, used = _wait(process_id, 10 * self._limit_s)
        cpu_s = used.ru_utime + used.ru_stime
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            return Trial("out of time", cpu_s)
        return Trial("survived" if os.waitstatus_to_exitcode(status) == 0 else "killed", cpu_s)


def _conftests_of(tests: Sequence[str]) -> list[str]:
    folders = {folder for path in tests for folder in Path(path).parents}
    return [str(folder / "conftest.py") for folder in folders if (ROOT / folder / "conftest.py").is_file()]


def _wait(process_id: int, limit_s: float) -> tuple[int, resource.struct_rusage]:
    """Wait for a trial and end what it started; it may also sleep without using its processor time."""
    end = time.monotonic() + limit_s
    while True:
        done, status, used = os.wait4(process_id, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(process_id, signal.SIGKILL)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)
    return status, used


def _become_trial(
    module: str, path: Path, code: CodeType | None, tests: Sequence[str], folder: Path, limit_s: float
) -> None:
    """Turn this forked process into the trial; does not return."""
    status = 99
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s) + 5))
        silence = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(silence, descriptor)
        os.chdir(ROOT)
        if code is not None:
            sys.meta_path.insert(0, _Replaced(module, path, code))
        options = [
            "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-o", "timeout=0", f"--hypothesis-profile={_PROFILE}",
            "-m", "not ray and not chaos and not gpu and not slow", f"--basetemp={folder / 'tests'}",
        ]  # fmt: skip
        status = int(pytest.main([*tests, *options]))
    finally:
        os._exit(status)


class _Replaced(SourceFileLoader):
    """Finds one module, and loads the changed code in the place of its own."""

    def __init__(self, module: str, path: Path, code: CodeType) -> None:
        super().__init__(module, str(path))
        self._code = code

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return self._code
